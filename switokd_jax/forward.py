"""A network's forward pass, ready for its backward pass: whole, or in parts, one after another."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from switokd_jax.optim import Schedule
from switokd_jax.state import NetworkState, Tree


@dataclasses.dataclass(frozen=True)
class NetworkSpec:
    """What of one network, or of an adapter, does not change in a run; `features` are the tapped names asked for."""

    module: nn.Module
    optimizer: optax.GradientTransformation
    schedule: Schedule
    label_smoothing: float = 0.0
    ema: float = 0.0
    frozen: bool = False
    features: tuple[str, ...] = ()


class NetworkOutput(NamedTuple):
    """What a network says of a batch; everything a loss may depend on."""

    logits: jax.Array
    features: dict[str, jax.Array]


class ForwardPass(NamedTuple):
    """What a forward pass leaves: `pullback` takes the gradient at `said` to that at the parameters."""

    said: NetworkOutput
    batch_stats: Tree
    pullback: Callable[[NetworkOutput], tuple[Tree]]


def forward(
    network: NetworkSpec, state: NetworkState, images: jax.Array, places: jax.Array, dropout: jax.Array, parts: int
) -> ForwardPass:
    """Runs a network in training mode, or in evaluation mode if it is frozen.

    Args:
      network: what does not change.
      state: its parameters and running statistics.
      images: [batch, height, width, channels].
      places: [batch] int32, of the images in the global batch.
      dropout: the key of this step and network.
      parts: 1, or in how many equal parts the batch is computed, one after another (gradient accumulation). BatchNorm
        then takes its statistics from each part; parts are computed again in the backward pass.
    """

    def apply(params: Tree, batch_stats: Tree, images: jax.Array, places: jax.Array) -> tuple[NetworkOutput, Tree]:
        variables = {"params": params, "batch_stats": batch_stats, "batch": {"positions": places}}
        # A frozen network speaks in evaluation mode and keeps its statistics.
        moving = [] if network.frozen else ["batch_stats"]
        logits, moved = network.module.apply(
            variables, images, train=not network.frozen, mutable=[*moving, "intermediates"], rngs={"dropout": dropout}
        )
        tapped = {name: moved["intermediates"][name][0] for name in network.features}
        return NetworkOutput(logits, tapped), moved.get("batch_stats", batch_stats)

    def whole(params: Tree) -> tuple[NetworkOutput, Tree]:
        return apply(params, state.batch_stats, images, places)

    def in_parts(params: Tree) -> tuple[NetworkOutput, Tree]:
        @jax.checkpoint
        def part(batch_stats: Tree, some: tuple[jax.Array, jax.Array]) -> tuple[Tree, NetworkOutput]:
            said, moved = apply(params, batch_stats, *some)
            return moved, said

        moved, said = jax.lax.scan(part, state.batch_stats, (_divide(images, parts), _divide(places, parts)))
        return jax.tree.map(_join, said), moved

    said, pullback, batch_stats = jax.vjp(whole if parts == 1 else in_parts, state.params, has_aux=True)
    return ForwardPass(said, batch_stats, pullback)


def _divide(x: jax.Array, parts: int) -> jax.Array:
    """[batch, ...] to [parts, batch / parts, ...], every part with examples of every device."""
    return jnp.moveaxis(x.reshape(-1, parts, *x.shape[1:]), 1, 0)


def _join(x: jax.Array) -> jax.Array:
    """The inverse of `_divide`."""
    joined: jax.Array = jnp.moveaxis(x, 0, 1)
    return joined.reshape(-1, *x.shape[2:])
