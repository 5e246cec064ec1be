"""Evaluation: every example of a split exactly once, in padded and masked batches, with metrics as sums."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from switokd_jax.config import DataConfig
from switokd_jax.data import transforms
from switokd_jax.data.dataset import Split
from switokd_jax.data.image_records import ImageSpec, RecordSplit
from switokd_jax.data.loader import Loader, make_loader
from switokd_jax.data.normalization import Preprocess
from switokd_jax.data.resident import DeviceDataset, gather_batch
from switokd_jax.data.sampling import Batch, BatchIterator, stack_batches
from switokd_jax.errors import UserError
from switokd_jax.metrics import classification_metrics, classification_sums, mean_log_probabilities
from switokd_jax.parallel import mesh
from switokd_jax.parallel.collectives import Collectives
from switokd_jax.parallel.compile import CompiledStep

MAX_EVALUATIONS = 10**6  # of a run
EvalStepFn = Callable[[Collectives, Mapping[str, Any], DeviceDataset | None, Batch], dict[str, Any]]


def make_eval_step(
    modules: Mapping[str, Any], preprocess: Preprocess, dtype: Any, *, with_ensemble: bool = False
) -> EvalStepFn:
    """Returns the step that evaluates all networks on one padded batch, for `Distribution.compile`.

    The step takes (collectives, variables by name, data, batch). It returns sums over the global batch:
      networks: by name, `metrics.classification_sums`;
      agreement: [networks, networks], examples that both put into the same class;
      error_correlation: [networks, networks], e_i e_j with the errors e_i = 1 - softmax(z_i)[y] of the true class;
      ensemble: `metrics.classification_sums` of the networks' mean probabilities, if it is asked for.
    """

    def step(
        collectives: Collectives, variables: Mapping[str, Any], data: DeviceDataset | None, batch: Batch
    ) -> dict[str, Any]:
        raw_images, labels = gather_batch(data, batch)
        images, mask = transforms.normalize(raw_images, preprocess, dtype), jnp.asarray(batch.mask)
        logits = {
            name: module.apply(collectives.all_gather_params(variables[name]), images, train=False)
            for name, module in modules.items()
        }
        classes = jnp.stack([jnp.argmax(z, axis=-1) for z in logits.values()])
        same_class = (classes[:, None] == classes[None, :]).astype(mask.dtype)
        errors = jnp.stack(
            [1.0 - jnp.take_along_axis(jax.nn.softmax(z), labels[:, None], axis=-1)[:, 0] for z in logits.values()]
        )
        sums = {
            "networks": {name: classification_sums(z, labels, mask) for name, z in logits.items()},
            "agreement": same_class @ mask,
            "error_correlation": (errors * mask.astype(errors.dtype)) @ errors.T,
        }
        if with_ensemble:
            sums["ensemble"] = classification_sums(mean_log_probabilities([*logits.values()]), labels, mask)
        return collectives.psum(sums)

    return step


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Result of evaluating some networks on one split.

    Attributes:
      examples: number of examples, each counted once.
      networks: by name, `metrics.classification_metrics`.
      agreement: [networks, networks] float64, share of the examples that both put into the same class.
      error_correlation: [networks, networks] float64, mean over the split of e_i e_j, e = 1 - softmax(z)[y].
      ensemble: `metrics.classification_metrics` of the networks' mean probabilities; None if nobody asked for it.
    """

    examples: int
    networks: Mapping[str, Mapping[str, Any]]
    agreement: np.ndarray
    error_correlation: np.ndarray
    ensemble: Mapping[str, Any] | None = None


class Interrupted(Exception):
    """An evaluation was stopped before its end."""


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """Evaluates networks on one split. Has to be closed: a stream keeps its worker processes between evaluations.

    Attributes:
      step: the compiled `make_eval_step`.
      loader: of the split; its data are on the devices.
      distribution: of the devices.
      max_steps: largest number of batches in one call of the devices.
    """

    step: CompiledStep
    loader: Loader
    distribution: mesh.Distribution
    max_steps: int

    def run(self, variables: Mapping[str, Any], is_interrupted: Callable[[], bool] = lambda: False) -> Evaluation:
        """Evaluates every example once.

        Args:
          variables: by network, on the devices.
          is_interrupted: asked before every call of the devices.

        Raises:
          Interrupted: as soon as `is_interrupted` returns True. The evaluator cannot be used any more.
        """
        stacks = stack_batches(itertools.islice(self._batches, self.loader.eval_steps), self.max_steps)
        outputs = []
        for batches in self.distribution.prefetch_to_device(stacks):
            if is_interrupted():
                raise Interrupted
            outputs.append(self.distribution.unreplicate(self.step.call(variables, self.loader.device_data, batches)))
        sums = _total(outputs)
        networks = {name: classification_metrics(network) for name, network in sums["networks"].items()}
        examples = next(iter(networks.values()))["count"]  # without those that could not be decoded
        if not examples:
            raise UserError(f"none of the {self.loader.num_examples} images to evaluate can be used")
        return Evaluation(
            examples=examples,
            networks=networks,
            agreement=sums["agreement"] / examples,
            error_correlation=sums["error_correlation"] / examples,
            ensemble=classification_metrics(sums["ensemble"]) if "ensemble" in sums else None,
        )

    def close(self) -> None:
        """Ends the worker processes of a stream."""
        self._batches.close()

    @functools.cached_property
    def _batches(self) -> BatchIterator:
        return self.loader.eval_batches(MAX_EVALUATIONS)


def open_device_loader(
    split: Split | RecordSplit,
    image_spec: ImageSpec,
    spec: DataConfig,
    seed: int,
    batch_size: int,
    distribution: mesh.Distribution,
) -> Loader:
    """Makes the loader of a split (see `data.loader.make_loader`), with its data on the devices."""
    loader = make_loader(split, image_spec, spec, seed, batch_size, distribution.process_shard)
    return dataclasses.replace(loader, device_data=distribution.device_put(loader.device_data))


def _total(outputs: list[Any]) -> Any:
    """Adds up the outputs [max_steps, ...] of several calls; rows beyond a call's steps are 0."""
    # The sums of each batch stay on the devices until the end; float64 on the host adds them exactly.
    return jax.tree.map(lambda *xs: np.sum(np.asarray(xs, np.float64), axis=(0, 1)), *jax.device_get(outputs))


def metrics_row(evaluation: Evaluation, networks: Sequence[str]) -> dict[str, Any]:
    """Formats an evaluation for metrics.jsonl: NAME/loss, NAME/top1, NAME/top5, NAME/class_top1 (None for NaN)."""
    row: dict[str, Any] = {}
    for name in networks:
        metrics = evaluation.networks[name]
        row |= {f"{name}/{key}": metrics[key] for key in ("loss", "top1", "top5")}
        row[f"{name}/class_top1"] = [None if np.isnan(x) else round(float(x), 4) for x in metrics["class_top1"]]
    return row
