"""Training cost in floating-point operations: of a network for one image, and of a run."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from switokd_jax.models.init import init_variables
from switokd_jax.models.layers import with_options
from switokd_jax.state import Tree

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class FlopCount:
    """Floating-point operations of a network for one image; a multiplication and its addition are two.

    Convolutions and matrix products are counted, everything else is not.

    Attributes:
      forward: operations of the forward pass in training mode.
      backward: operations of the backward pass, without those of the forward pass.
    """

    forward: float
    backward: float


def count_flops_per_image(module: Any, image_shape: tuple[int, ...]) -> FlopCount:
    """Counts the operations of a network by tracing its passes; nothing is compiled or computed.

    The number does not depend on the machine, because every convolution is counted as
    `lax.conv_general_dilated`. Products with padding are not counted. Neither is what `remat` computes again: that is
    the price of memory, not of the method.

    Args:
      module: a network of `models.create`.
      image_shape: (height, width, channels), or (branches, height, width, channels) for a view of each branch.
    """
    reference_options = {
        "convolution": jax.lax.conv_general_dilated,
        "axis_name": None,
        "remat": False,
        "dtype": jnp.float32,
        "param_dtype": jnp.float32,
    }
    reference = with_options(module, **reference_options)
    key = jax.random.key(0)
    variables = jax.eval_shape(lambda: init_variables(reference, key, image_shape))
    # BatchNorm refuses one image where a stage has one pixel.
    images = jax.ShapeDtypeStruct((2, *image_shape), jnp.float32)

    def forward(params: Tree, batch_stats: Tree, images: jax.Array) -> tuple[jax.Array, Tree]:
        outputs: tuple[jax.Array, Tree] = reference.apply(
            {"params": params, "batch_stats": batch_stats},
            images,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": key},
        )
        return outputs

    def forward_and_backward(params: Tree, batch_stats: Tree, images: jax.Array) -> Any:
        logits, pullback, mutated = jax.vjp(lambda p: forward(p, batch_stats, images), params, has_aux=True)
        return logits, mutated, pullback(logits)

    forward_flops, total_flops = (
        _count_jaxpr(jax.make_jaxpr(fn)(variables["params"], variables["batch_stats"], images).jaxpr) / 2
        for fn in (forward, forward_and_backward)
    )
    return FlopCount(forward=forward_flops, backward=total_flops - forward_flops)


def _count_jaxpr(jaxpr: Any) -> float:
    """Counts the convolutions and matrix products of a jaxpr and of the jaxprs inside it."""
    total = 0.0
    for equation in jaxpr.eqns:
        inputs, outputs = ([v.aval.shape for v in variables] for variables in (equation.invars, equation.outvars))
        if equation.primitive.name == "conv_general_dilated":
            total += _count_convolution(inputs[0], inputs[1], outputs[0], equation.params)
        elif equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            total += 2.0 * math.prod(outputs[0]) * math.prod(inputs[0][i] for i in contracted)
        repeats = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        for param in jax.tree.leaves(equation.params, is_leaf=_is_jaxpr):
            if _is_jaxpr(param):
                total += repeats * _count_jaxpr(getattr(param, "jaxpr", param))
    return total


def _is_jaxpr(x: Any) -> bool:
    return hasattr(x, "eqns") or hasattr(getattr(x, "jaxpr", None), "eqns")


def _count_convolution(image: Shape, kernel: Shape, out: Shape, params: Mapping[str, Any]) -> float:
    """Counts the products of kernel elements with elements of the image, those with padding or holes left out."""
    image_axes, kernel_axes, out_axes = params["dimension_numbers"]
    num_positions = 1
    for i, (stride, (pad_before, _), lhs_dilation, rhs_dilation) in enumerate(
        zip(params["window_strides"], params["padding"], params["lhs_dilation"], params["rhs_dilation"], strict=True)
    ):
        size = image[image_axes[2 + i]]
        positions = [
            o * stride + k * rhs_dilation - pad_before
            for o in range(out[out_axes[2 + i]])
            for k in range(kernel[kernel_axes[2 + i]])
        ]
        num_positions *= sum(0 <= p <= (size - 1) * lhs_dilation and p % lhs_dilation == 0 for p in positions)
    return 2.0 * num_positions * out[out_axes[0]] * out[out_axes[1]] * kernel[kernel_axes[1]]


def unit(largest: float) -> tuple[str, float]:
    """Returns the name and the size of the unit for numbers up to `largest`.

    >>> unit(2.5e12)
    ('TFLOP', 1000000000000.0)
    """
    units = (("EFLOP", 1e18), ("PFLOP", 1e15), ("TFLOP", 1e12), ("GFLOP", 1e9))
    return next(((name, size) for name, size in units if largest >= size), units[-1])


def training_flops(networks: Mapping[str, Mapping[str, Any]], steps: int, examples: float) -> float:
    """Computes the floating-point operations of a run.

    Every network runs its forward pass on every image, and its backward pass in the steps that it takes. Optimizers,
    losses and adapters are not counted: they are small beside that.

    Args:
      networks: by name 'forward_flops', 'backward_flops' (for one image) and 'updates', as in summary.json.
      steps: number of steps taken.
      examples: number of images that every network processed.

    >>> training_flops({"student": {"forward_flops": 1.0, "backward_flops": 2.0, "updates": 5}}, steps=10, examples=100)
    200.0
    """
    return sum(
        examples * (network["forward_flops"] + network["backward_flops"] * network["updates"] / max(steps, 1))
        for network in networks.values()
    )


def saved_fraction(networks: Mapping[str, Mapping[str, Any]], teachers: Collection[str], steps: int) -> float:
    """Computes which part of a run's floating-point operations its pauses have saved.

    Args:
      networks: as `training_flops` takes them.
      teachers: names of the networks that a switch may pause.
      steps: number of steps taken.

    >>> costs = {"forward_flops": 1.0, "backward_flops": 2.0}
    >>> networks = {"teacher": {**costs, "updates": 4}, "student": {**costs, "updates": 10}}
    >>> round(saved_fraction(networks, ["teacher"], steps=10), 6)
    0.2
    """
    without_pauses = {
        name: {**network, "updates": steps} if name in teachers else network for name, network in networks.items()
    }
    spent, full = (training_flops(each, steps, examples=1.0) for each in (networks, without_pauses))
    return 1.0 - spent / full
