"""The only file that knows devices: one step under `jax.jit` over a mesh, or under `jax.pmap`.

The step sees its devices through `step.Across`. Under jit the arrays are global and XLA splits the work, so
there is nothing to do. Under pmap each device has its share of the batch: logits and labels, which are
small, are gathered, so that every device makes the same decision of the same numbers, and gradients are
summed. A last batch that the device count does not divide is computed whole by every device, so shards are
always of equal size. Each process sends its own part of a batch to its own devices. A call takes several batches,
one step after another.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from switokd_jax.calls import compiler_options, in_turn
from switokd_jax.data.batches import Share, Stack
from switokd_jax.fields import ConfigError
from switokd_jax.state import Tree
from switokd_jax.step import Across

AXIS = "data"
AHEAD = 2  # stacks of batches that are on their way to the devices while a call runs
# Makes the function (state or variables, data, batch) for one way of working together.
MakeStep = Callable[[Across], Callable[..., Any]]


@dataclasses.dataclass(frozen=True)
class Batches:
    """Global batches on the devices, for one call.

    Attributes:
      size: examples in each.
      count: steps to take; 0 compiles and changes nothing.
      split: whether each device has a part of every batch, or all of it.
      examples: `data.batches.Examples` of arrays [most, batch, ...].
    """

    size: int
    count: int
    split: bool
    examples: Tree


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A compiled step.

    Attributes:
      variants: the jitted functions behind it, by whether the batch is split over the devices.
    """

    variants: dict[bool, Any]

    def call(self, tree: Tree, data: Tree, batches: Batches) -> Any:
        """Takes the steps: the state or variables, the placed data and batches to results, still on the devices.

        Returns:
          What `calls.in_turn` says.
        """
        return self.variants[batches.split](tree, data, batches.examples, batches.count)


@dataclasses.dataclass(frozen=True)
class Distribution:
    """Places arrays and compiles steps for all devices. Made by `create`.

    Attributes:
      parallelism: 'jit' or 'pmap'.
      local_norm: whether BatchNorm sees its own device's share only.
      mesh: one axis over all devices.
    """

    parallelism: str
    local_norm: bool
    mesh: Mesh

    @property
    def device_count(self) -> int:
        """Devices of all processes."""
        return self.mesh.size

    @property
    def platform(self) -> str:
        """'cpu', 'gpu' or 'tpu'."""
        return str(self.mesh.devices.flat[0].platform)

    @property
    def alone(self) -> bool:
        """Whether a compiled program sees the images of one device only."""
        return self.device_count == 1 or self.parallelism == "pmap"

    @property
    def norm_axis(self) -> str | None:
        """The axis_name of BatchNorm: under jit its batch is the global one already."""
        return AXIS if self.parallelism == "pmap" and not self.local_norm else None

    def place(self, tree: Tree) -> Tree:
        """Copies a tree of arrays to every device."""
        if self.parallelism == "jit":
            return jax.device_put(tree, self._sharding())
        stacked = jax.tree.map(lambda x: np.broadcast_to(x, (self.device_count, *np.shape(x))), tree)
        return jax.device_put(stacked, self._sharding(AXIS))

    def one(self, tree: Tree) -> Tree:
        """The inverse of `place`: the single value behind equal copies."""
        return tree if self.parallelism == "jit" else jax.tree.map(lambda x: x[0], tree)

    def template(self, tree: Tree) -> Tree:
        """Shape, dtype and placement of single values, for reading them from a checkpoint."""
        sharding = self._sharding()
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)

    def compile(self, make: MakeStep, *, carried: bool) -> Compiled:
        """Compiles a step for batches that are split over the devices and for those that are not.

        Args:
          make: makes the step for an `Across`.
          carried: as in `calls.in_turn`; the memory of a tree that is carried on is reused.
        """
        donated = (0,) if carried else ()
        if self.parallelism == "jit":
            whole = jax.jit(
                in_turn(make(Across()), carried=carried),
                donate_argnums=donated,
                out_shardings=self._sharding(),
                compiler_options=compiler_options(self.platform),
            )
            return Compiled({True: whole, False: whole})
        variants = {
            split: jax.pmap(
                in_turn(make(self._across(split)), carried=carried),
                axis_name=AXIS,
                in_axes=(0, 0, 0, None),
                donate_argnums=donated,
                devices=list(self.mesh.devices),
            )
            for split in (True, False)
        }
        return Compiled(variants)

    @property
    def share(self) -> Share:
        """The part of each global batch that this process reads."""
        return Share(jax.process_index(), jax.process_count(), self.device_count)

    def batches(self, stack: Stack) -> Batches:
        """Places a stack of batches, this process's share of them."""
        split = stack.size % self.device_count == 0
        placed = jax.tree.map(lambda x: self._place_rows(x, stack.size, split), stack.examples)
        return Batches(stack.size, stack.count, split, placed)

    def ahead(self, stacks: Iterable[Stack]) -> Iterator[Batches]:
        """Places batches before they are wanted: the copy to the devices runs beside the steps."""
        waiting: collections.deque[Batches] = collections.deque()
        for stack in stacks:
            waiting.append(self.batches(stack))
            if len(waiting) > AHEAD:
                yield waiting.popleft()
        yield from waiting

    def _place_rows(self, x: np.ndarray, size: int, split: bool) -> jax.Array:
        """x: [most, this process's part of the batch, ...]."""
        most, _, *rest = x.shape
        if self.parallelism == "jit":
            sharding = self._sharding(None, AXIS) if split else self._sharding()
            return jax.make_array_from_process_local_data(sharding, x, (most, size, *rest))
        here = self.device_count // jax.process_count()
        each = size // self.device_count if split else size
        by_device = np.moveaxis(x.reshape(most, here, each, *rest), 1, 0) if split else x
        rows = np.broadcast_to(by_device, (here, most, each, *rest))
        shape = (self.device_count, most, each, *rest)
        return jax.make_array_from_process_local_data(self._sharding(AXIS), rows, shape)

    def _sharding(self, *axes: str | None) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec(*axes))

    def _across(self, split: bool) -> Across:
        average = self._mean if self.local_norm else (lambda tree: tree)
        if not split:
            return Across(average=average)
        return Across(gather=_gather, scatter=self._scatter, total=_sum, average=average, first=_first)

    def _scatter(self, x: jax.Array) -> jax.Array:
        size = x.shape[0] // self.device_count
        return jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index(AXIS) * size, size)

    @staticmethod
    def _mean(tree: Tree) -> Tree:
        return jax.tree.map(lambda x: jax.lax.pmean(x, AXIS), tree)


def create(
    parallelism: str, batch_norm: str, batch_size: int, devices: Sequence[jax.Device] | None = None
) -> Distribution:
    """The given devices, or all that JAX sees, in one axis.

    Raises:
      ConfigError: if the batch cannot be split into equal shares.
    """
    devices = jax.devices() if devices is None else list(devices)
    if batch_size % len(devices):
        near = max(batch_size // len(devices), 1) * len(devices)
        raise ConfigError(
            f"config.batch_size is {batch_size}, which {len(devices)} devices do not divide; use {near}, say"
        )
    # Process by process, as `Share` counts the rows of a batch.
    devices = sorted(devices, key=lambda device: device.process_index)
    mesh = Mesh(np.array(devices), (AXIS,), axis_types=(AxisType.Auto,))
    return Distribution(parallelism, batch_norm == "local", mesh)


def _first(size: int) -> jax.Array:
    return jax.lax.axis_index(AXIS) * size


def _gather(tree: Tree) -> Tree:
    """Arrays [this device's examples, ...] to [all examples, ...], by one collective for each dtype."""
    leaves, structure = jax.tree.flatten(tree)
    rows = [leaf.reshape(len(leaf), -1) for leaf in leaves]
    gathered = {
        dtype: jax.lax.all_gather(jnp.concatenate([row for row in rows if row.dtype == dtype], 1), AXIS, tiled=True)
        for dtype in {row.dtype for row in rows}
    }
    begin = dict.fromkeys(gathered, 0)
    out = []
    for leaf, row in zip(leaves, rows, strict=True):
        end = begin[row.dtype] + row.shape[1]
        out.append(gathered[row.dtype][:, begin[row.dtype] : end].reshape(-1, *leaf.shape[1:]))
        begin[row.dtype] = end
    return jax.tree.unflatten(structure, out)


def _sum(tree: Tree) -> Tree:
    return jax.tree.map(lambda x: jax.lax.psum(x, AXIS), tree)


def is_main_process() -> bool:
    """Whether this process writes logs, figures and summaries."""
    return jax.process_index() == 0
