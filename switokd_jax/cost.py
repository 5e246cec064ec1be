"""What training costs: floating-point operations of a network for one image, and those that a run really spent."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from switokd_jax.state import Tree, draw_variables


@dataclasses.dataclass(frozen=True)
class Cost:
    """Floating-point operations for one image, a multiplication and an addition counted as two.

    Attributes:
      forward: of the forward pass in training mode.
      backward: of the backward pass, without the forward one.
    """

    forward: float
    backward: float


def per_image(module: Any, image_shape: tuple[int, ...]) -> Cost:
    """Counts by XLA's cost analysis of the traced program; nothing is compiled.

    Every convolution is counted as `lax` has it, whatever form a backend likes, so the number does not depend on the
    machine; products with padding are not counted. What `remat` computes again is left out: it is the price of memory,
    not of the method.

    Args:
      module: a network of `models.create`.
      image_shape: (height, width, channels).
    """
    plain = module.clone(
        convolution=jax.lax.conv_general_dilated,
        axis_name=None,
        remat=False,
        dtype=jnp.float32,
        param_dtype=jnp.float32,
    )
    key = jax.random.PRNGKey(0)
    variables = jax.eval_shape(lambda: draw_variables(plain, key, image_shape))
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)

    def forward(params: Tree, batch_stats: Tree, image: jax.Array) -> tuple[jax.Array, Tree]:
        made: tuple[jax.Array, Tree] = plain.apply(
            {"params": params, "batch_stats": batch_stats},
            image,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": key},
        )
        return made

    def both(params: Tree, batch_stats: Tree, image: jax.Array) -> Any:
        logits, pullback, moved = jax.vjp(lambda p: forward(p, batch_stats, image), params, has_aux=True)
        return logits, moved, pullback(logits)

    counts = [_operations(f, variables["params"], variables["batch_stats"], image) for f in (forward, both)]
    return Cost(forward=counts[0], backward=counts[1] - counts[0])


def _operations(function: Any, *shapes: Any) -> float:
    return float(jax.jit(function).lower(*shapes).cost_analysis()["flops"])


def spent(networks: Mapping[str, Mapping[str, Any]], steps: int, examples: float) -> float:
    """Floating-point operations of a run so far: all networks look at every image, and a network's backward pass runs
    in the steps that it takes. Optimizers, losses and adapters, which are small beside that, are left out.

    Args:
      networks: by name 'forward_flops', 'backward_flops' (for one image) and 'updates', as in summary.json.
      steps: taken so far.
      examples: seen so far.
    """
    return sum(
        examples * (of["forward_flops"] + of["backward_flops"] * of["updates"] / max(steps, 1))
        for of in networks.values()
    )
