"""Interface between the train step and the methods: `MethodInputs` in, `MethodOutput` out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, no_type_check

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float

from switokd_jax.losses import cross_entropy
from switokd_jax.metrics import top_k_correct
from switokd_jax.precision import promote_to_float32
from switokd_jax.switching import Switch
from switokd_jax.topology import Pair, Topology

AdapterFn = Callable[..., tuple[Any, Any]]
"""A trained module with its parameters: its inputs -> its output, and its new running statistics.

With the keyword frozen=True no gradient reaches its parameters: a network that has to fool a discriminator does not
train it.
"""


Stages = Sequence[str]
"""Names of the features of a network's stages, in order."""
NO_STAGES = "a network has no features 'stage1', 'stage2', ...; name others in the fields student and teacher"
Shapes = Mapping[str, tuple[int, ...]]
"""Shapes [1, ...] of a network's features, by name."""


@dataclasses.dataclass(frozen=True)
class TrainedModule:
    """A module that a method trains beside the networks: a projection, a gate, a classifier of fused features.

    Attributes:
      module: a Flax module, called with its inputs and `train`.
      inputs: shapes [1, ...] of its inputs.
      learner: name of the node whose network's optimizer and learning rate it has.
    """

    module: Any
    inputs: tuple[tuple[int, ...], ...]
    learner: str


@dataclasses.dataclass(frozen=True)
class MemoryInputs:
    """Arguments from which a method creates its memory.

    Attributes:
      nodes: names of the networks.
      labels: [training images] int32; None if the pipeline reads the labels batch by batch.
      keys: one PRNG key per adapter, by its name; that of an edge is 'student <- teacher'.
    """

    nodes: tuple[str, ...]
    labels: np.ndarray | None = None
    keys: Mapping[str, jax.Array] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class MethodInputs:
    """Outputs of all networks on the GLOBAL batch, and what else a method's loss may depend on.

    Attributes:
      logits: [batch, classes] by network.
      cross_entropy: scalar by network: mean over the batch, with the network's own label smoothing.
      frozen: names of the networks that are not trained: the teachers of the offline methods.
      features: [batch, ...] by network and feature name; only the features that the method requests.
      adapters: the trained modules by name. That of an edge, 'student <- teacher', takes the learner's and the source's
        feature.
      indices: [batch] int32, indices of the examples in the training split.
      keys: PRNG key of this step, by adapter.
      epoch: scalar int32, counted from 1.
      memory: state that the method keeps between steps, as created by its `init_memory`; None for most methods.
      averaged_logits: [batch, classes] by network that learns, of its averaged parameters on the same images; only for
        methods with `mean_teachers`. They have no gradient.
    """

    logits: Mapping[str, jax.Array]
    cross_entropy: Mapping[str, jax.Array]
    frozen: frozenset[str] = frozenset()
    features: Mapping[str, Mapping[str, jax.Array]] = dataclasses.field(default_factory=dict)
    adapters: Mapping[str, AdapterFn] = dataclasses.field(default_factory=dict)
    indices: jax.Array = dataclasses.field(default_factory=lambda: jnp.zeros(0, jnp.int32))
    keys: Mapping[str, jax.Array] = dataclasses.field(default_factory=dict)
    epoch: jax.Array | int = 1
    memory: Any = None
    averaged_logits: Mapping[str, jax.Array] = dataclasses.field(default_factory=dict)


@no_type_check  # JAX also builds it from other leaves, such as ShapeDtypeStruct
@struct.dataclass
class MethodOutput:
    """Losses, update decisions and metrics of one step.

    Attributes:
      losses: scalar by network. A loss may depend on another network's outputs only through stop_gradient, except for
        methods that are `joint`. Other names are losses of an ensemble or of a module that the method trains; the step
        reports them as 'NAME/loss'.
      should_update: traced boolean by network, for each network that can be paused. A network without an entry is
        updated in every step, without a conditional.
      switches: the switch of each gated pair.
      adapter_stats: new running statistics of the adapters that have some, by name.
      memory: the method's new memory; None keeps the old one.
      metrics: scalars of any name, written to metrics.jsonl as they are.
      freeze_paused_stats: whether a paused network also keeps its BatchNorm running statistics.
    """

    losses: Mapping[str, jax.Array]
    should_update: Mapping[str, jax.Array] = struct.field(default_factory=dict)
    switches: Mapping[Pair, Switch] = struct.field(default_factory=dict)
    adapter_stats: Mapping[str, Any] = struct.field(default_factory=dict)
    memory: Any = None
    metrics: Mapping[str, jax.Array] = struct.field(default_factory=dict)
    freeze_paused_stats: bool = struct.field(default=False, pytree_node=False)


MethodFn = Callable[[MethodInputs, jax.Array, Topology, Any], MethodOutput]
"""Pure function (inputs, labels, topology, hyperparameters) -> output, traced inside the train step.

labels: [batch] int32 of the global batch; with `config.data.mix` [batch, classes] probabilities, for which `losses` has
`hard_labels`, `class_probabilities` and `value_at_labels`.
"""


def add_distillation(
    task_losses: Mapping[str, Float[Array, ""]], terms: Iterable[tuple[str, Float[Array, ""]]], **fields: Any
) -> MethodOutput:
    """Adds distillation terms to the task losses, and reports their sum as the metric 'NAME/distillation'.

    Args:
      task_losses: scalar by network: its loss on the labels.
      terms: pairs (learner, scalar term), added to the learner's loss in this order.
      **fields: other fields of `MethodOutput`.

    Returns:
      A `MethodOutput` with losses[i] = task_losses[i] + the terms of i.

    >>> output = add_distillation({"a": jnp.float32(1.0), "b": jnp.float32(2.0)}, [("b", jnp.float32(0.5))])
    >>> {name: float(loss) for name, loss in output.losses.items()}
    {'a': 1.0, 'b': 2.5}
    >>> float(output.metrics["b/distillation"])
    0.5
    """
    losses = dict(task_losses)
    for learner, term in terms:
        losses[learner] += term
    # A difference, not a second sum: a term with two uses would compile to another rounding of the loss.
    metrics = {f"{name}/distillation": loss - task_losses[name] for name, loss in losses.items()}
    return MethodOutput(losses, metrics=jax.lax.stop_gradient(metrics), **fields)


def add_ensemble(output: MethodOutput, logits: jax.Array, labels: jax.Array, *terms: Float[Array, ""]) -> MethodOutput:
    """Adds the loss of an ensemble, and reports its accuracy as the metric 'ensemble/top1'.

    Args:
      output: of the networks.
      logits: [batch, classes], of the ensemble.
      labels: [batch] int32, or [batch, classes] probabilities of mixed images.
      *terms: scalars that are added to the ensemble's cross-entropy.
    """
    loss = sum(terms, jnp.mean(cross_entropy(logits, labels)))
    top1 = 100.0 * jnp.mean(top_k_correct(logits, labels))
    return dataclasses.replace(
        output, losses={**output.losses, "ensemble": loss}, metrics={**output.metrics, "ensemble/top1": top1}
    )


def stack_logits(inputs: MethodInputs, nodes: Sequence[str]) -> Float[Array, "nodes batch classes"]:
    """Stacks the logits of these networks, in float32 at least."""
    return jnp.stack([promote_to_float32(inputs.logits[node]) for node in nodes])


def rampup_weight(epoch: jax.Array | int, rampup_epochs: float) -> Float[Array, ""]:
    """Computes the weight exp(-5 (1 - t)^2) of a distillation term, with t = min((epoch - 1) / rampup_epochs, 1).

    Source: Laine and Aila 2017 (arXiv 1610.02242), as in the public code of ONE and OKDDip.

    Args:
      epoch: counted from 1.
      rampup_epochs: epochs until the weight is 1; 0 for a weight of 1 from the start.

    >>> [round(float(rampup_weight(epoch, 80.0)), 4) for epoch in (1, 41, 81, 300)], float(rampup_weight(1, 0.0))
    ([0.0067, 0.2865, 1.0, 1.0], 1.0)
    """
    progress = jnp.minimum((epoch - 1) / rampup_epochs, 1.0) if rampup_epochs else jnp.ones(())
    return jnp.exp(-5.0 * (1.0 - progress) ** 2)
