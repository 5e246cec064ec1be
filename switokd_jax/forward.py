"""A network's forward pass, with its pullback for the backward pass: on the full batch or in microbatches."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from switokd_jax.models.branches import split_collection, split_logits, view_of_branch
from switokd_jax.optim import Schedule
from switokd_jax.state import NetworkState, Tree


@dataclasses.dataclass(frozen=True)
class NetworkSpec:
    """The static part of one network or adapter.

    Attributes:
      module: maps images [batch, height, width, channels] to logits [batch, classes], or to such logits of each branch.
      optimizer: optax chain without the learning rate; see `optim`.
      schedule: learning rate of a global step.
      nodes: names of the topology's nodes whose logits it computes: its own name, or one for each branch.
      label_smoothing: of the network's cross-entropy, in [0, 1).
      ema: decay of the averaged parameters; 0 keeps none.
      ema_warmup: the decay of update t, from 1, is at most 1 - 1 / t.
      frozen: runs in evaluation mode and takes no steps.
      features: names of the intermediate features that the method asks for.
    """

    module: nn.Module
    optimizer: optax.GradientTransformation
    schedule: Schedule
    nodes: tuple[str, ...]
    label_smoothing: float = 0.0
    ema: float = 0.0
    ema_warmup: bool = False
    frozen: bool = False
    features: tuple[str, ...] = ()


class NodeOutput(NamedTuple):
    """Outputs of a node of the topology on a batch: its logits and the requested features.

    A loss may depend on nothing else.
    """

    logits: jax.Array
    features: dict[str, jax.Array]


class ForwardPass(NamedTuple):
    """Result of one forward pass of a network.

    Attributes:
      outputs: by node.
      batch_stats: new running statistics.
      pullback: maps a cotangent of `outputs` to the gradient of the parameters (see `jax.vjp`).
    """

    outputs: dict[str, NodeOutput]
    batch_stats: Tree
    pullback: Callable[[dict[str, NodeOutput]], tuple[Tree]]


def forward(
    network: NetworkSpec,
    state: NetworkState,
    images: jax.Array,
    batch_positions: jax.Array,
    dropout_key: jax.Array,
    num_microbatches: int = 1,
) -> ForwardPass:
    """Runs a network in training mode, or in evaluation mode if it is frozen.

    Args:
      network: the static part.
      state: its parameters and running statistics.
      images: as in `apply_network`.
      batch_positions: [batch] int32, positions of the images in the global batch.
      dropout_key: of this step and network.
      num_microbatches: equal parts of the batch that are computed one after another (gradient accumulation). With more
        than one, BatchNorm takes its statistics from each microbatch, and the backward pass recomputes each.
    """

    def apply(
        params: Tree, batch_stats: Tree, images: jax.Array, batch_positions: jax.Array
    ) -> tuple[dict[str, NodeOutput], Tree]:
        variables = {"params": params, "batch_stats": batch_stats, "batch": {"positions": batch_positions}}
        return apply_network(network, variables, images, dropout_key)

    def full_batch(params: Tree) -> tuple[dict[str, NodeOutput], Tree]:
        return apply(params, state.batch_stats, images, batch_positions)

    def microbatched(params: Tree) -> tuple[dict[str, NodeOutput], Tree]:
        @jax.checkpoint
        def one_microbatch(batch_stats: Tree, microbatch: tuple[jax.Array, jax.Array]) -> tuple[Tree, Tree]:
            outputs, new_batch_stats = apply(params, batch_stats, *microbatch)
            return new_batch_stats, outputs

        microbatches = (
            split_microbatches(images, num_microbatches),
            split_microbatches(batch_positions, num_microbatches),
        )
        batch_stats, outputs = jax.lax.scan(one_microbatch, state.batch_stats, microbatches)
        return jax.tree.map(merge_microbatches, outputs), batch_stats

    run = full_batch if num_microbatches == 1 else microbatched
    outputs, pullback, batch_stats = jax.vjp(run, state.params, has_aux=True)
    return ForwardPass(outputs, batch_stats, pullback)


def apply_network(
    network: NetworkSpec, variables: Tree, images: jax.Array, dropout_key: jax.Array | None = None
) -> tuple[dict[str, NodeOutput], Tree]:
    """Computes the outputs of a network's nodes: in training mode, or in evaluation mode if it is frozen.

    Args:
      network: the static part.
      variables: {'params', 'batch_stats'}; for dropout also {'batch': {'positions'}}, see `forward`.
      images: [batch, height, width, channels]; or [batch, nodes, height, width, channels], a view for each branch.
      dropout_key: of this step and network; evaluation mode needs none.

    Returns:
      `NodeOutput` by node, and the new running statistics.
    """
    mutable = ["intermediates"] if network.frozen else ["batch_stats", "intermediates"]
    rngs = {} if dropout_key is None else {"dropout": dropout_key}
    logits, mutated = network.module.apply(variables, images, train=not network.frozen, mutable=mutable, rngs=rngs)
    intermediates = split_collection(network.module, mutated.get("intermediates", {}))
    outputs = {
        node: NodeOutput(
            node_logits, {name: view_of_branch(features[name][0], images.shape[0], i) for name in network.features}
        )
        for i, (node, node_logits, features) in enumerate(
            zip(network.nodes, split_logits(network.module, logits), intermediates, strict=True)
        )
    }
    return outputs, mutated.get("batch_stats", variables["batch_stats"])


def split_microbatches(x: jax.Array, num_microbatches: int) -> jax.Array:
    """Reshapes [batch, ...] to [microbatches, batch / microbatches, ...]; each has examples of every device."""
    return jnp.moveaxis(x.reshape(-1, num_microbatches, *x.shape[1:]), 1, 0)


def merge_microbatches(x: jax.Array) -> jax.Array:
    """Inverts `split_microbatches`."""
    batch_first: jax.Array = jnp.moveaxis(x, 0, 1)
    return batch_first.reshape(-1, *x.shape[2:])
