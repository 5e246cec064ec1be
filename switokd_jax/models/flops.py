"""What training costs: floating-point operations of a network for one image, and those that a run really spent."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from switokd_jax.models.init import init_variables
from switokd_jax.state import Tree

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class FlopCount:
    """Floating-point operations of convolutions and matrix products for one image; a product and its addition are two.

    Attributes:
      forward: of the forward pass in training mode.
      backward: of the backward pass, without the forward one.
    """

    forward: float
    backward: float


def count_flops_per_image(module: Any, image_shape: tuple[int, ...]) -> FlopCount:
    """Counts the convolutions and matrix products of the traced passes; nothing is compiled or computed.

    Every convolution is counted as `lax` has it, whatever form a backend likes, so the number does not depend on the
    machine; products with padding are left out, and so is what `remat` computes again: it is the price of memory, not
    of the method.

    Args:
      module: a network of `models.create`.
      image_shape: (height, width, channels).
    """
    plainest = {
        "convolution": jax.lax.conv_general_dilated,
        "axis_name": None,
        "remat": False,
        "dtype": jnp.float32,
        "param_dtype": jnp.float32,
    }
    # A user's network may do without some of these.
    plain = module.clone(**{name: value for name, value in plainest.items() if hasattr(module, name)})
    key = jax.random.PRNGKey(0)
    variables = jax.eval_shape(lambda: init_variables(plain, key, image_shape))
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

    counts = [
        _operations(jax.make_jaxpr(passes)(variables["params"], variables["batch_stats"], image).jaxpr)
        for passes in (forward, both)
    ]
    return FlopCount(forward=counts[0], backward=counts[1] - counts[0])


def _operations(jaxpr: Any) -> float:
    """Of all convolutions and matrix products of a program and of those inside it."""
    total = 0.0
    for equation in jaxpr.eqns:
        operands, results = ([v.aval.shape for v in ends] for ends in (equation.invars, equation.outvars))
        if equation.primitive.name == "conv_general_dilated":
            total += _convolution(operands[0], operands[1], results[0], equation.params)
        elif equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            total += 2.0 * math.prod(results[0]) * math.prod(operands[0][i] for i in contracted)
        times = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        for inner in jax.tree.leaves(equation.params, is_leaf=_is_program):
            if _is_program(inner):
                total += times * _operations(getattr(inner, "jaxpr", inner))
    return total


def _is_program(x: Any) -> bool:
    return hasattr(x, "eqns") or hasattr(getattr(x, "jaxpr", None), "eqns")


def _convolution(image: Shape, kernel: Shape, out: Shape, params: Mapping[str, Any]) -> float:
    """Each output element sums over the kernel's inputs at the places where the kernel lies on the image."""
    image_axes, kernel_axes, out_axes = params["dimension_numbers"]
    places = 1
    for i, (stride, (before, _), spread, apart) in enumerate(
        zip(params["window_strides"], params["padding"], params["lhs_dilation"], params["rhs_dilation"], strict=True)
    ):
        size = image[image_axes[2 + i]]
        at = [
            o * stride + k * apart - before
            for o in range(out[out_axes[2 + i]])
            for k in range(kernel[kernel_axes[2 + i]])
        ]
        places *= sum(0 <= each <= (size - 1) * spread and each % spread == 0 for each in at)
    return 2.0 * places * out[out_axes[0]] * out[out_axes[1]] * kernel[kernel_axes[1]]


def unit(most: float) -> tuple[str, float]:
    """The unit for numbers up to `most`, and its size: TFLOP for 2.5e12."""
    units = (("EFLOP", 1e18), ("PFLOP", 1e15), ("TFLOP", 1e12), ("GFLOP", 1e9))
    return next(((name, size) for name, size in units if most >= size), units[-1])


def training_flops(networks: Mapping[str, Mapping[str, Any]], steps: int, examples: float) -> float:
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
