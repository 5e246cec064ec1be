"""Every example scored exactly once: padded and masked batches, metrics as sums."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from switokd_jax.data import transforms
from switokd_jax.data.normalization import Preprocess
from switokd_jax.data.resident import DeviceDataset, gather_batch
from switokd_jax.data.sampling import Batch
from switokd_jax.losses import cross_entropy
from switokd_jax.metrics import top_k_correct
from switokd_jax.parallel.collectives import Collectives

Sums = dict[str, dict[str, jax.Array]]


def score_step(
    modules: Mapping[str, Any], preprocess: Preprocess, num_classes: int, dtype: Any
) -> Callable[[Collectives], Callable[..., Sums]]:
    """Makes the step that scores all networks on one padded batch.

    The step takes (variables by name, data, batch) and returns, by network, sums
    over the global batch: loss and top1, top5 (counts), count, and per class class_top1 and class_count.
    """

    def make(across: Collectives) -> Callable[..., Sums]:
        def step(variables: Mapping[str, Any], data: DeviceDataset | None, batch: Batch) -> Sums:
            raw, labels = gather_batch(data, batch)
            images, mask = transforms.normalize(raw, preprocess, dtype), jnp.asarray(batch.mask)
            classes = jax.nn.one_hot(labels, num_classes, dtype=mask.dtype)

            def score(name: str) -> dict[str, jax.Array]:
                logits = modules[name].apply(across.all_gather_params(variables[name]), images, train=False)
                top1 = top_k_correct(logits, labels) * mask
                return {
                    "loss": jnp.sum(cross_entropy(logits, labels) * mask),
                    "top1": jnp.sum(top1),
                    "top5": jnp.sum(top_k_correct(logits, labels, 5) * mask),
                    "count": jnp.sum(mask),
                    "class_top1": top1 @ classes,
                    "class_count": mask @ classes,
                }

            return across.psum({name: score(name) for name in modules})

        return step

    return make


def correlation_step(
    modules: Mapping[str, Any], preprocess: Preprocess, num_classes: int, dtype: Any
) -> Callable[[Collectives], Callable[..., jax.Array]]:
    """Makes the step that sums how the networks' errors go together over one padded batch.

    With errors e_i = softmax(z_i) - onehot(y), the step takes what `score_step`'s does and returns the sum over
    the global batch of e_i . e_j, [networks, networks].
    """

    def make(across: Collectives) -> Callable[..., jax.Array]:
        def step(variables: Mapping[str, Any], data: DeviceDataset | None, batch: Batch) -> jax.Array:
            raw, labels = gather_batch(data, batch)
            images, mask = transforms.normalize(raw, preprocess, dtype), jnp.asarray(batch.mask)
            truth = jax.nn.one_hot(labels, num_classes)
            logits = [
                modules[name].apply(across.all_gather_params(variables[name]), images, train=False) for name in modules
            ]
            errors = jnp.stack([jax.nn.softmax(z) - truth.astype(z.dtype) for z in logits])
            return across.psum(jnp.einsum("ibc,jbc,b->ij", errors, errors, mask.astype(errors.dtype)))

        return step

    return make


def score(
    call: Callable[..., Sums],
    one: Callable[[Any], Any],
    variables: Any,
    data: Any,
    batches: Iterable[Any],
) -> dict[str, dict[str, Any]]:
    """Scores a split: by network loss, top1 and top5 (percent), class_top1 [classes] (percent, NaN for a
    class without examples) and count.

    Args:
      call: the compiled score steps.
      one: takes equal copies on devices to the single value (`Distribution.unreplicate`).
      variables: by network, placed on the devices.
      data: what of the split lies on the devices, or None.
      batches: stacks of padded and masked batches, placed.
    """
    total = _total([one(call(variables, data, stack)) for stack in batches])
    out = {}
    for name, sums in total.items():
        with np.errstate(invalid="ignore"):
            per_class = 100.0 * sums["class_top1"] / sums["class_count"]
        out[name] = {
            "loss": float(sums["loss"] / sums["count"]),
            "top1": float(100.0 * sums["top1"] / sums["count"]),
            "top5": float(100.0 * sums["top5"] / sums["count"]),
            "class_top1": per_class,
            "count": int(sums["count"]),
        }
    return out


def error_correlation(
    call: Callable[..., jax.Array],
    one: Callable[[Any], Any],
    variables: Any,
    data: Any,
    batches: Iterable[Any],
    examples: int,
) -> np.ndarray:
    """Mean over a split of e_i . e_j, [networks, networks] float64; arguments as in `score`, and the split's size."""
    correlation: np.ndarray = _total([one(call(variables, data, stack)) for stack in batches])
    return correlation / examples


def _total(parts: list[Any]) -> Any:
    """Sums of outputs [most, ...] of several calls, whose rows beyond a call's count are 0."""
    # The sums of each batch stay on the devices until the end; float64 on the host keeps them exact.
    return jax.tree.map(lambda *xs: np.sum(np.asarray(xs, np.float64), axis=(0, 1)), *jax.device_get(parts))


def as_line(scores: Mapping[str, dict[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    """Scores as a line of metrics.jsonl, network by network: loss, top1, top5, class_top1 (None for NaN)."""
    line: dict[str, Any] = {}
    for name in names:
        score = scores[name]
        line |= {f"{name}/{key}": score[key] for key in ("loss", "top1", "top5")}
        line[f"{name}/class_top1"] = [None if np.isnan(x) else round(float(x), 4) for x in score["class_top1"]]
    return line
