"""Compiled steps: several steps run in one compiled loop, so the host dispatches once per call instead of once per
step. The XLA options of each platform are chosen here as well."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from switokd_jax.data.sampling import Batch
from switokd_jax.program_cache import Lower, Program
from switokd_jax.state import Tree

# XLA:CPU sends matrix products and convolutions to YNNPACK by default. Products and sums are faster there, 3x3
# convolutions slower (32x32x32, batch 128: 10.8 ms against 6.5 ms by Eigen). Measured with jaxlib 0.10.2. The analysis
# by regions leaves out copies at the borders of loops and conditionals: 4 % of the CIFAR-100 pair's learning step.
CPU_OPTIONS: dict[str, Any] = {
    "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE",
    "xla_cpu_copy_insertion_use_region_analysis": True,
}


@dataclasses.dataclass(frozen=True)
class DeviceBatches:
    """Global batches on the devices, for one call of a compiled step.

    Attributes:
      size: examples per batch.
      count: number of batches, and so of steps.
      sharded: True if each device holds a part of every batch, False if each holds all of it.
      examples: `data.sampling.Batch` of arrays [max_steps, batch, ...].
    """

    size: int
    count: int
    sharded: bool
    examples: Tree


@dataclasses.dataclass(frozen=True)
class CompiledStep:
    """A step that is compiled once for each combination of array shapes. Create with `Distribution.compile`.

    Attributes:
      variants: the functions, by whether the batches are sharded over the devices.
      options: compiler options of XLA.
      lower: traces the functions, or finds them traced.
      barrier: waits for the other processes.
      executables: compiled programs, by the batch size and the shapes of data and batches.
    """

    variants: Mapping[bool, Program]
    options: Mapping[str, Any]
    lower: Lower
    barrier: Callable[[], None]
    executables: dict[Any, Any] = dataclasses.field(default_factory=dict)

    def call(self, tree: Tree, data: Tree, batches: DeviceBatches) -> Any:
        """Runs `batches.count` steps.

        Args:
          tree: the train state or variables, on the devices.
          data: the resident data set on the devices, or None.
          batches: the batches on the devices.

        Returns:
          The results of `multi_step`, still on the devices.
        """
        return self.executable(tree, data, batches)(tree, data, batches.examples, batches.count)

    def is_compiled(self, data: Tree, batches: DeviceBatches) -> bool:
        """Returns whether `call` with arguments of these shapes compiles nothing."""
        return _shape_key(data, batches) in self.executables

    def executable(self, tree: Tree, data: Tree, batches: DeviceBatches) -> Any:
        """Returns the program for arguments of `call`. All processes compile it when they first meet these shapes."""
        key = _shape_key(data, batches)
        if key not in self.executables:
            program = self.variants[batches.sharded]
            lowered = self.lower(program, tree, data, batches.examples, batches.count)
            self.executables[key] = lowered.compile(dict(self.options))
            self.barrier()
        return self.executables[key]


def _shape_key(data: Tree, batches: DeviceBatches) -> tuple[Any, ...]:
    return (batches.size, *(x.shape for x in jax.tree.leaves((data, batches.examples))))


def multi_step(step: Callable[..., Any], *, has_state: bool) -> Callable[..., Any]:
    """Makes a function that runs a step on several batches, in one loop.

    The length of the loop is traced, so one compiled function takes any count up to the batches' leading size.

    Args:
      step: (tree, data, batch) -> (next tree, outputs) if `has_state`, else (tree, data, batch) -> outputs. It is
        traced once.
      has_state: whether each step takes the tree that the step before returned; otherwise all take the same tree.

    Returns:
      A function (tree, data, batches [max_steps, batch, ...], count) -> (last tree, outputs) or outputs. Each output
      is [max_steps, ...]; rows from `count` on are 0.
    """

    # Jitted by itself, it is traced once: for the shapes of the outputs, and from JAX's cache for the loop.
    @jax.jit
    def single_step(tree: Tree, data: Tree, batch: Batch) -> tuple[Tree, Tree]:
        result = step(tree, data, batch)
        return result if has_state else (tree, result)

    def call(tree: Tree, data: Tree, batches: Batch, count: jax.Array | int) -> Any:
        def batch(i: jax.Array | int) -> Batch:
            return jax.tree.map(lambda x: x[i], batches)

        def body(i: jax.Array, carry: tuple[Tree, Tree]) -> tuple[Tree, Tree]:
            tree, outputs = carry
            tree, output = single_step(tree, data, batch(i))
            return tree, jax.tree.map(lambda xs, x: xs.at[i].set(x), outputs, output)

        max_steps = len(batches.index)
        _, shapes = jax.eval_shape(single_step, tree, data, batch(0))
        outputs = jax.tree.map(lambda x: jnp.zeros((max_steps, *x.shape), x.dtype), shapes)
        tree, outputs = jax.lax.fori_loop(0, count, body, (tree, outputs))
        return (tree, outputs) if has_state else outputs

    return call


@functools.cache
def compiler_options(platform: str, *, deterministic: bool) -> dict[str, Any]:
    """Returns the compiler options of XLA for a platform.

    Args:
      platform: 'cpu', 'gpu' or 'tpu'.
      deterministic: whether every start has to give the same bits. Only GPUs need an option for that.
    """
    if platform == "gpu" and deterministic:
        return {"xla_gpu_deterministic_ops": True}  # no atomic sums, and no choice of kernels by measured time
    if platform != "cpu":
        return {}
    return {name: value for name, value in CPU_OPTIONS.items() if _has_option(name, value)}


def _has_option(name: str, value: Any) -> bool:
    """Returns whether the installed XLA has a compiler option; they are experimental."""
    try:
        jax.jit(lambda: 0, compiler_options={name: value})()
    except jax.errors.JaxRuntimeError:
        return False
    return True
