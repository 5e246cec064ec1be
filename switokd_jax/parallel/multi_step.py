"""Several steps in one call of the devices, so that the host has nothing to do between them; what XLA is told of it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from switokd_jax.data.sampling import Batch
from switokd_jax.state import Tree

# XLA:CPU sends matrix products and convolutions to YNNPACK unless told otherwise. Products and sums are faster there,
# 3x3 convolutions slower (32x32x32, batch 128: 10.8 ms against 6.5 by Eigen). Measured with jaxlib 0.10.2.
CPU_OPTIONS = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE"}


def multi_step(step: Callable[..., Any], *, has_state: bool) -> Callable[..., Any]:
    """Makes (tree, data, batches [most, batch, ...], count) -> results of a step of one batch.

    The steps run in one loop whose length is traced: one compiled function takes any count up to `most`.

    Args:
      step: (tree, data, batch); traced once.
      carried: whether it returns (the next step's tree, outputs), or outputs alone and every step sees the same tree.

    Returns:
      A function whose results are (the last tree, outputs) or outputs, each output [most, ...]; those beyond the
      count are 0.
    """

    # As a function of its own it is traced once: for the outputs' shapes, and again from the cache for the loop.
    @jax.jit
    def one(tree: Tree, data: Tree, batch: Batch) -> tuple[Tree, Tree]:
        result = step(tree, data, batch)
        return result if has_state else (tree, result)

    def call(tree: Tree, data: Tree, batches: Batch, count: jax.Array | int) -> Any:
        def batch(i: jax.Array | int) -> Batch:
            return jax.tree.map(lambda x: x[i], batches)

        def body(i: jax.Array, before: tuple[Tree, Tree]) -> tuple[Tree, Tree]:
            tree, outputs = before
            tree, output = one(tree, data, batch(i))
            return tree, jax.tree.map(lambda xs, x: xs.at[i].set(x), outputs, output)

        most = len(batches.index)
        _, shapes = jax.eval_shape(one, tree, data, batch(0))
        outputs = jax.tree.map(lambda x: jnp.zeros((most, *x.shape), x.dtype), shapes)
        tree, outputs = jax.lax.fori_loop(0, count, body, (tree, outputs))
        return (tree, outputs) if has_state else outputs

    return call


@functools.cache
def compiler_options(platform: str, *, deterministic: bool) -> dict[str, Any]:
    """What XLA is told on a platform: to be fast, where it knows the option, or ('gpu') to give the same bits always.

    Args:
      platform: 'cpu', 'gpu' or 'tpu'.
      deterministic: whether the bits matter.
    """
    if platform == "gpu" and deterministic:
        return {"xla_gpu_deterministic_ops": True}  # no atomic sums, and no choice by measured time
    if platform != "cpu":
        return {}
    try:
        jax.jit(lambda: 0, compiler_options=CPU_OPTIONS)()
    except jax.errors.JaxRuntimeError:  # experimental: an older or newer jaxlib may not have it
        return {}
    return CPU_OPTIONS
