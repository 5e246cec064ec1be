"""Metrics: functions of logits, counts over a run, and the names of metrics."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from switokd_jax.errors import UserError
from switokd_jax.losses import Labels, cross_entropy, hard_labels
from switokd_jax.precision import promote_to_float32

CALIBRATION_BINS = 15  # as in Guo et al. 2017


def top_k_correct(
    logits: Float[Array | np.ndarray, "batch classes"], labels: Labels, k: int = 1
) -> Float[Array, " batch"]:
    """Returns 1.0 where the (likeliest) label is among the k highest logits, else 0.0; float32.

    Ties go to lower classes.

    >>> top_k_correct(jnp.asarray([[0.1, 0.2, 0.7], [0.5, 0.3, 0.2]]), jnp.asarray([2, 1])).tolist()
    [1.0, 0.0]
    """
    labels = hard_labels(labels)
    if k == 1:
        return (jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32)
    _, top_classes = jax.lax.top_k(logits, min(k, logits.shape[-1]))
    return jnp.any(top_classes == labels[:, None], axis=-1).astype(jnp.float32)


def classification_sums(logits: jax.Array, labels: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
    """Sums of the evaluation metrics over one batch; `classification_metrics` turns their totals into metrics.

    Args:
      logits: [batch, classes].
      labels: [batch] integer.
      mask: [batch] float32, 0 for padding.

    Returns:
      Scalars loss, top1, top5 and count; class_top1 and class_count [classes]; calibration_gap [bins], the sum of
      (correct - confidence) over the examples of each confidence bin.
    """
    classes = jax.nn.one_hot(labels, logits.shape[-1], dtype=mask.dtype)
    top1 = top_k_correct(logits, labels) * mask
    confidence = jnp.max(jax.nn.softmax(promote_to_float32(logits)), axis=-1)
    # Each bin is open below and closed above.
    bin_index = jnp.clip(jnp.ceil(confidence * CALIBRATION_BINS).astype(jnp.int32) - 1, 0, CALIBRATION_BINS - 1)
    return {
        "loss": jnp.sum(cross_entropy(logits, labels) * mask),
        "top1": jnp.sum(top1),
        "top5": jnp.sum(top_k_correct(logits, labels, 5) * mask),
        "count": jnp.sum(mask),
        "class_top1": top1 @ classes,
        "class_count": mask @ classes,
        "calibration_gap": (top1 - confidence * mask) @ jax.nn.one_hot(bin_index, CALIBRATION_BINS, dtype=mask.dtype),
    }


def mean_log_probabilities(logits: Sequence[Float[Array, "batch classes"]]) -> Float[Array, "batch classes"]:
    """Computes the log of the mean of several networks' probabilities, in float32 at least: an ensemble's logits.

    >>> p, q = jnp.log(jnp.asarray([[0.5, 0.5]])), jnp.log(jnp.asarray([[0.9, 0.1]]))
    >>> print(f"{jnp.exp(mean_log_probabilities([p, q]))[0, 0]:.4f}")
    0.7000
    """
    log_p = jnp.stack([jax.nn.log_softmax(promote_to_float32(z)) for z in logits])
    return jax.scipy.special.logsumexp(log_p, axis=0) - jnp.log(jnp.asarray(len(logits), log_p.dtype))


def classification_metrics(sums: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Evaluation metrics of one network, from the totals of `classification_sums` over a split.

    Returns:
      loss; top1 and top5 in percent; class_top1 [classes] in percent, NaN for a class without examples;
      calibration_error, the mean over examples of |accuracy - confidence| of their bin (Guo et al., "On Calibration of
      Modern Neural Networks", ICML 2017, arXiv 1706.04599, equation 3); count.
    """
    with np.errstate(invalid="ignore"):
        class_top1 = 100.0 * sums["class_top1"] / sums["class_count"]
    return {
        "loss": float(sums["loss"] / sums["count"]),
        "top1": float(100.0 * sums["top1"] / sums["count"]),
        "top5": float(100.0 * sums["top5"] / sums["count"]),
        "class_top1": class_top1,
        "calibration_error": float(np.abs(sums["calibration_gap"]).sum() / sums["count"]),
        "count": int(sums["count"]),
    }


def expert_share(expert_steps: Mapping[str, Any], steps: int) -> dict[str, float]:
    """Share of the steps so far that were in expert mode, in [0, 1], by pair.

    >>> expert_share({"teacher->student": 3}, 12)
    {'teacher->student': 0.25}
    """
    return {pair: int(count) / max(steps, 1) for pair, count in expert_steps.items()}


def expert_share_of_rows(rows: Sequence[Mapping[str, Any]], pair: str) -> float:
    """Returns the share of expert steps among rows of metrics.jsonl, in [0, 1].

    Args:
      rows: at least one row of the training split; each is one step.
      pair: 'teacher->student'.

    >>> expert_share_of_rows([{"t->s/expert": True}, {"t->s/expert": False}], "t->s")
    0.5
    """
    return float(np.mean([row[f"{pair}/expert"] for row in rows]))


def expert_share_of_summary(summary: Mapping[str, Any]) -> dict[str, float]:
    """Returns the share of expert steps of a finished run by pair, in [0, 1], from the content of its summary.json.

    >>> expert_share_of_summary({"switch": {"t->s": {"expert_fraction": 0.25}}})
    {'t->s': 0.25}
    """
    return {pair: switch["expert_fraction"] for pair, switch in summary["switch"].items()}


def finite_key(network: str) -> str:
    """Name of the step metric that says whether a network's loss and gradient are finite."""
    return f"{network}/finite"


def merge_metrics(metrics: dict[str, jax.Array], method_metrics: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Adds a method's own metrics, of any name, to those of the step.

    Raises:
      UserError: if one has a name that the step uses itself, or is not a scalar.
    """
    for name, value in method_metrics.items():
        if name in (*metrics, "split", "epoch", "step"):
            raise UserError(f"the method's metric {name!r} has the name of another metric; give it another name")
        if jnp.shape(value):
            raise UserError(f"the method's metric {name!r} has shape {jnp.shape(value)}; it must be a scalar")
    return {**metrics, **{name: jnp.asarray(value) for name, value in method_metrics.items()}}


def sort_metrics(names: Iterable[str], owners: Sequence[str]) -> list[str]:
    """Sorts metric names by the network or pair before the '/', in the order of `owners`; all others follow.

    >>> sort_metrics(["grad_norm", "b/loss", "a/top1", "a/loss"], ["a", "b"])
    ['a/loss', 'a/top1', 'b/loss', 'grad_norm']
    """
    rank = {owner: i for i, owner in enumerate(owners)}
    return sorted(names, key=lambda name: (rank.get(name.partition("/")[0], len(owners)), name))
