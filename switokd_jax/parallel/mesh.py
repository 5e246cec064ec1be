"""The only part that knows devices: one step under `jax.jit` over a mesh, or under `jax.pmap`.

The step sees its devices through `Collectives`. Under jit the arrays are global and XLA splits the work. Each device
has the whole state, or ('fsdp') its part of every network's parameters and optimizer state: a network is put together
for its forward and backward pass, and its gradient comes back in parts. Under pmap each device has its share of the
batch: see `per_device`. A last batch that the device count does not divide is computed whole by every device, so shards
are always of equal size. Each process sends its own part of a batch to its own devices. A call takes several batches,
one step after another.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from orbax.checkpoint import multihost

from switokd_jax.data.sampling import ProcessShard, StackedBatches
from switokd_jax.errors import UserError
from switokd_jax.parallel.collectives import Collectives
from switokd_jax.parallel.compile import CompiledStep, DeviceBatches
from switokd_jax.parallel.multi_step import compiler_options, multi_step
from switokd_jax.parallel.pmap import across
from switokd_jax.parallel.sharding import AXIS, ShardingStrategy
from switokd_jax.state import Tree

PATIENCE = 3600  # seconds that a process waits for another one to compile
AHEAD = 2  # stacks of batches that are on their way to the devices while a call runs


@dataclasses.dataclass(frozen=True)
class Distribution:
    """Places arrays and compiles steps for all devices. Made by `create`.

    Attributes:
      parallelism: 'jit' or 'pmap'.
      local_norm: whether BatchNorm sees its own device's share only.
      deterministic: whether every start gives the same bits.
      placement: where arrays lie, on a mesh of one axis over all devices.
      meetings: numbers of the times that the processes have waited for each other.
    """

    parallelism: str
    local_norm: bool
    deterministic: bool
    placement: ShardingStrategy
    meetings: Iterator[int] = dataclasses.field(default_factory=itertools.count)

    @property
    def mesh(self) -> Mesh:
        """All devices in one axis."""
        return self.placement.mesh

    @property
    def device_count(self) -> int:
        """Devices of all processes."""
        return self.mesh.size

    @property
    def platform(self) -> str:
        """'cpu', 'gpu' or 'tpu'."""
        return str(self.mesh.devices.flat[0].platform)

    @property
    def device_info(self) -> dict[str, Any]:
        """Which devices these are."""
        first = self.mesh.devices.flat[0]
        return {
            "platform": first.platform,
            "kind": first.device_kind,
            "count": self.device_count,
            "processes": jax.process_count(),
        }

    @property
    def peak_bytes(self) -> int | None:
        """The most memory that one of this process's devices has held; None where the backend does not say (CPU)."""
        stats = [device.memory_stats() for device in self.mesh.local_devices]
        return max(each["peak_bytes_in_use"] for each in stats) if all(stats) else None

    @property
    def single_device_program(self) -> bool:
        """Whether a compiled program sees the images of one device only."""
        return self.device_count == 1 or self.parallelism == "pmap"

    @property
    def batch_norm_axis_name(self) -> str | None:
        """The axis_name of BatchNorm: under jit its batch is the global one already."""
        return AXIS if self.parallelism == "pmap" and not self.local_norm else None

    def device_put(self, tree: Tree) -> Tree:
        """Puts a tree of arrays, the same in every process, on every device; of a split state each its part."""
        if self.parallelism == "pmap":
            return jax.tree.map(lambda x: self._mapped(np.broadcast_to(x, (self._here, *np.shape(x)))), tree)
        return self.placement.put(tree)

    def unreplicate(self, tree: Tree) -> Tree:
        """The inverse of `place`: the single value behind equal copies."""
        if self.parallelism == "jit":
            return tree
        if jax.process_count() == 1:
            # Not x[0], which is a program of all devices with a message in it.
            return jax.tree.map(lambda x: x.addressable_data(0)[0], tree)
        return jax.tree.map(self._joined, tree)

    def abstract_state(self, tree: Tree) -> Tree:
        """Shape, dtype and placement of single values, for reading them from a checkpoint."""
        places = self.placement.of(tree)
        return jax.tree.map(lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), tree, places)

    def bytes_per_device(self, tree: Tree) -> int:
        """Bytes that each device holds of a tree once it is placed."""
        return self.placement.bytes_per_device(tree)

    def compile(self, step_fn: Callable[..., Any], *, has_state: bool) -> CompiledStep:
        """Compiles a step for batches that are split over the devices and for those that are not.

        Args:
          step_fn: (collectives, state or variables, data, batch) to results.
          carried: as in `calls.multi_step`; the memory of a tree that is carried on is reused.
        """
        donated = (0,) if has_state else ()
        options = compiler_options(self.platform, deterministic=self.deterministic)
        if self.parallelism == "jit":
            if self.placement.fsdp:
                parts = Collectives(all_gather_params=self.placement.gathered, psum=self.placement.parted)
                call = multi_step(functools.partial(step_fn, parts), has_state=has_state)
                together = jax.jit(
                    lambda *arguments: self.placement.constrain(call(*arguments)), donate_argnums=donated
                )
            else:
                call = multi_step(functools.partial(step_fn, Collectives()), has_state=has_state)
                together = jax.jit(call, out_shardings=self.placement.along(), donate_argnums=donated)
            return CompiledStep({True: together, False: together}, options, self.barrier)

        def per_device(split: bool) -> Any:
            way = across(AXIS, self.device_count, split=split, local_norm=self.local_norm)
            call = multi_step(functools.partial(step_fn, way), has_state=has_state)
            devices = list(self.mesh.devices)
            return jax.pmap(call, axis_name=AXIS, in_axes=(0, 0, 0, None), donate_argnums=donated, devices=devices)

        return CompiledStep({split: per_device(split) for split in (True, False)}, options, self.barrier)

    def barrier(self) -> None:
        """Waits for the other processes, before they first need each other: who is ready first would wait in a message,
        and Gloo gives up after 30 seconds. Through JAX's coordination service, so without a message between devices.
        """
        if jax.process_count() > 1:
            wait = multihost.get_barrier_sync_fn(processes=set(range(jax.process_count())))
            wait(key=f"switokd_jax/{next(self.meetings)}", timeout_ms=PATIENCE * 1000)

    @property
    def process_shard(self) -> ProcessShard:
        """The part of each global batch that this process reads."""
        return ProcessShard(jax.process_index(), jax.process_count(), self.device_count)

    def put_batches(self, stack: StackedBatches) -> DeviceBatches:
        """Places a stack of batches, this process's share of them."""
        split = stack.size % self.device_count == 0
        placed = jax.tree.map(lambda x: self._place_rows(x, stack.size, split), stack.examples)
        return DeviceBatches(stack.size, stack.count, split, placed)

    def prefetch_to_device(self, stacks: Iterable[StackedBatches]) -> Iterator[DeviceBatches]:
        """Places batches before they are wanted: the copy to the devices runs beside the steps."""
        waiting: collections.deque[DeviceBatches] = collections.deque()
        for stack in stacks:
            waiting.append(self.put_batches(stack))
            if len(waiting) > AHEAD:
                yield waiting.popleft()
        yield from waiting

    def _place_rows(self, x: np.ndarray, size: int, split: bool) -> jax.Array:
        """x: [most, this process's part of the batch, ...]."""
        most, _, *rest = x.shape
        if self.parallelism == "jit":
            where = self.placement.along(None, AXIS) if split else self.placement.along()
            return jax.make_array_from_process_local_data(where, x, (most, size, *rest))
        each = size // self.device_count if split else size
        by_device = np.moveaxis(x.reshape(most, self._here, each, *rest), 1, 0) if split else x
        return self._mapped(np.broadcast_to(by_device, (self._here, most, each, *rest)))

    @property
    def _here(self) -> int:
        """Devices of this process."""
        return self.device_count // jax.process_count()

    def _mapped(self, x: np.ndarray) -> jax.Array:
        """[devices of this process, ...] to [devices of all, ...], as a pmap that is compiled ahead takes and gives."""
        return jax.make_array_from_process_local_data(NamedSharding(self.mesh, PartitionSpec(AXIS)), x)

    def _joined(self, x: jax.Array) -> jax.Array:
        """The copies of one process as those of all: what Orbax takes from several processes."""
        copies = [shard.data[0] for shard in x.addressable_shards]
        return jax.make_array_from_single_device_arrays(x.shape[1:], self.placement.along(), copies)


def create(
    parallelism: str,
    sharding: str,
    batch_norm: str,
    batch_size: int,
    devices: Sequence[jax.Device] | None = None,
    *,
    deterministic: bool = False,
) -> Distribution:
    """The given devices, or all that JAX sees, in one axis.

    Raises:
      ConfigError: if the batch cannot be split into equal shares.
    """
    devices = jax.devices() if devices is None else list(devices)
    if batch_size % len(devices):
        near = max(batch_size // len(devices), 1) * len(devices)
        raise UserError(
            f"config.batch_size is {batch_size}, which {len(devices)} devices do not divide; use {near}, say"
        )
    # Process by process, as `ProcessShard` counts the rows of a batch.
    devices = sorted(devices, key=lambda device: device.process_index)
    mesh = Mesh(np.array(devices), (AXIS,), axis_types=(AxisType.Auto,))
    return Distribution(parallelism, batch_norm == "local", deterministic, ShardingStrategy(mesh, sharding == "fsdp"))


def is_main_process() -> bool:
    """Whether this process writes logs, figures and summaries."""
    return jax.process_index() == 0
