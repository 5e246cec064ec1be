"""Distribution of a run over its devices: one step under `jax.jit` over a mesh, or for each device, as pmap has it.

The step communicates through `Collectives`. Under jit arrays are global and XLA partitions the work. Each device holds
the full state or, with 'fsdp', a shard of every network's parameters and optimizer state: parameters are gathered for
the forward and backward pass, and the gradient comes back sharded. With 'pmap' each device sees its shard of the batch
(see `pmap`). A last batch of an epoch that the device count does not divide is computed in full by every device, so
shards always have equal size. Each process sends its own rows of a batch to its own devices. One call runs several
batches, one step each.
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

from switokd_jax.data.sampling import ProcessShard, StackedBatches
from switokd_jax.errors import UserError
from switokd_jax.parallel import multihost
from switokd_jax.parallel.collectives import Collectives
from switokd_jax.parallel.compile import CompiledStep, DeviceBatches, compiler_options, multi_step
from switokd_jax.parallel.pmap import pmap_collectives
from switokd_jax.parallel.sharding import AXIS, ShardingStrategy
from switokd_jax.program_cache import LowerByName, Program, trace
from switokd_jax.state import Tree

PREFETCH_DEPTH = 2  # stacks of batches that are copied to the devices while a call runs
# (collectives, state or variables, data, batch) -> results, as in `multi_step`.
StepFn = Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class Distribution:
    """Puts arrays on the devices and compiles steps for them. Create with `create`.

    Attributes:
      parallelism: 'jit' or 'pmap'.
      local_norm: whether BatchNorm uses the statistics of its own device's shard.
      deterministic: whether every start gives the same bits.
      strategy: shardings on a mesh of one axis over all devices.
      barrier_ids: numbers of the barriers; equal in all processes.
    """

    parallelism: str
    local_norm: bool
    deterministic: bool
    strategy: ShardingStrategy
    barrier_ids: Iterator[int] = dataclasses.field(default_factory=itertools.count)

    @property
    def mesh(self) -> Mesh:
        """Mesh of one axis over all devices."""
        return self.strategy.mesh

    @property
    def device_count(self) -> int:
        """Number of devices of all processes."""
        return self.mesh.size

    @property
    def platform(self) -> str:
        """Platform of the devices: 'cpu', 'gpu' or 'tpu'."""
        return str(self.mesh.devices.flat[0].platform)

    @property
    def device_info(self) -> dict[str, Any]:
        """Platform, kind and number of the devices, and the number of processes, as JSON values."""
        first = self.mesh.devices.flat[0]
        return {
            "platform": first.platform,
            "kind": first.device_kind,
            "count": self.device_count,
            "processes": jax.process_count(),
        }

    @property
    def peak_bytes(self) -> int | None:
        """Largest memory use so far of a device of this process [bytes]; None if the backend has no figure (CPU)."""
        stats = [device.memory_stats() for device in self.mesh.local_devices]
        return max(each["peak_bytes_in_use"] for each in stats) if all(stats) else None

    @property
    def single_device_program(self) -> bool:
        """True if a compiled program sees the images of one device only."""
        return self.device_count == 1 or self.parallelism == "pmap"

    @property
    def batch_norm_axis_name(self) -> str | None:
        """`axis_name` for BatchNorm. None under jit, where the batch is the global one already."""
        return AXIS if self.parallelism == "pmap" and not self.local_norm else None

    def device_put(self, tree: Tree) -> Tree:
        """Puts a tree of arrays, the same in every process, on the devices: replicated, or sharded by `strategy`."""
        if self.parallelism == "pmap":
            copies = (self._local_device_count,)
            return jax.tree.map(lambda x: self._stack_per_device(np.broadcast_to(x, (*copies, *np.shape(x)))), tree)
        return self.strategy.device_put(tree)

    def unreplicate(self, tree: Tree) -> Tree:
        """Inverts `device_put`: returns the single value behind equal copies."""
        if self.parallelism == "jit":
            return tree
        if jax.process_count() == 1:
            # Not x[0]: that is a program over all devices, with a collective in it.
            return jax.tree.map(lambda x: x.addressable_data(0)[0], tree)
        return jax.tree.map(self._to_global_array, tree)

    def abstract_state(self, tree: Tree) -> Tree:
        """Returns the shape, dtype and sharding of each array, as Orbax wants them to restore a checkpoint."""
        shardings = self.strategy.tree_sharding(tree)
        return jax.tree.map(
            lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree, shardings
        )

    def bytes_per_device(self, tree: Tree) -> int:
        """Returns the bytes that each device holds of a tree after `device_put`."""
        return self.strategy.bytes_per_device(tree)

    def compile(self, step_fn: StepFn, *, has_state: bool, lower_by_name: LowerByName = trace) -> CompiledStep:
        """Compiles a step for batches that are sharded over the devices and for those that are not.

        Args:
          step_fn: (collectives, state or variables, data, batch) -> results.
          has_state: as in `multi_step`. The memory of a state is donated: the step may reuse it for the next one.
          lower_by_name: traces the step, or finds it traced.
        """
        lower = lower_by_name(f"{step_fn.__module__}.{step_fn.__qualname__}")
        options = compiler_options(self.platform, deterministic=self.deterministic)
        if self.parallelism == "jit":
            program = self._jit(step_fn, has_state=has_state)
            return CompiledStep({True: program, False: program}, options, lower, self.barrier)
        variants = {sharded: self._pmap(step_fn, sharded=sharded, has_state=has_state) for sharded in (True, False)}
        return CompiledStep(variants, options, lower, self.barrier)

    def _jit(self, step_fn: StepFn, *, has_state: bool) -> Program:
        donated = (0,) if has_state else ()
        if not self.strategy.fsdp:
            call = multi_step(functools.partial(step_fn, Collectives()), has_state=has_state)
            jit = functools.partial(jax.jit, out_shardings=self.strategy.named_sharding(), donate_argnums=donated)
            return Program(call, jit, has_state)
        collectives = Collectives(all_gather_params=self.strategy.unshard, psum=self.strategy.shard)
        call = multi_step(functools.partial(step_fn, collectives), has_state=has_state)
        jit = functools.partial(jax.jit, donate_argnums=donated)
        return Program(lambda *arguments: self.strategy.constrain(call(*arguments)), jit, has_state)

    def _pmap(self, step_fn: StepFn, *, sharded: bool, has_state: bool) -> Program:
        """Does what jax.pmap does, in the words that have replaced it: that one is a jit of shard_map since JAX 0.8."""
        collectives = pmap_collectives(AXIS, self.device_count, sharded=sharded, local_norm=self.local_norm)
        call = multi_step(functools.partial(step_fn, collectives), has_state=has_state)

        def call_on_device(tree: Tree, data: Tree, batches: Tree, count: jax.Array) -> Tree:
            own = jax.tree.map(lambda x: x[0], (tree, data, batches))
            return jax.tree.map(lambda x: x[None], call(*own, count))

        per_device, replicated = PartitionSpec(AXIS), PartitionSpec()
        mapped = jax.shard_map(
            call_on_device,
            mesh=self.mesh,
            in_specs=(per_device, per_device, per_device, replicated),
            out_specs=per_device,
            check_vma=False,  # a step may return sums of its own device, as under pmap
        )
        return Program(mapped, functools.partial(jax.jit, donate_argnums=(0,) if has_state else ()), has_state)

    def barrier(self) -> None:
        """Barrier before the first collective. Processes finish compiling at different times and Gloo collectives time
        out after 30 s; this barrier uses the coordination service, needs no device communication and waits up to an
        hour."""
        multihost.barrier(f"switokd_jax/{next(self.barrier_ids)}")

    @property
    def process_shard(self) -> ProcessShard:
        """The rows of each global batch that this process reads."""
        return ProcessShard(jax.process_index(), jax.process_count(), self.device_count)

    def put_batches(self, stack: StackedBatches) -> DeviceBatches:
        """Puts this process's rows of a stack of batches on its devices."""
        sharded = stack.size % self.device_count == 0
        examples = jax.tree.map(lambda x: self._put_rows(x, stack.size, sharded), stack.examples)
        return DeviceBatches(stack.size, stack.count, sharded, examples)

    def prefetch_to_device(self, stacks: Iterable[StackedBatches]) -> Iterator[DeviceBatches]:
        """Puts batches on the devices ahead of their use, so that the copies overlap with the steps."""
        queue: collections.deque[DeviceBatches] = collections.deque()
        for stack in stacks:
            queue.append(self.put_batches(stack))
            if len(queue) > PREFETCH_DEPTH:
                yield queue.popleft()
        yield from queue

    def _put_rows(self, x: np.ndarray, size: int, sharded: bool) -> jax.Array:
        """Puts x [max_steps, rows of this process, ...] on the devices; `size` is that of the global batch."""
        max_steps, _, *rest = x.shape
        if self.parallelism == "jit":
            sharding = self.strategy.named_sharding(None, AXIS) if sharded else self.strategy.named_sharding()
            return jax.make_array_from_process_local_data(sharding, x, (max_steps, size, *rest))
        local, rows = self._local_device_count, size // self.device_count if sharded else size
        per_device = np.moveaxis(x.reshape(max_steps, local, rows, *rest), 1, 0) if sharded else x
        return self._stack_per_device(np.broadcast_to(per_device, (local, max_steps, rows, *rest)))

    @property
    def _local_device_count(self) -> int:
        return self.device_count // jax.process_count()

    def _stack_per_device(self, x: np.ndarray) -> jax.Array:
        """Puts x [devices of this process, ...] on the devices: [devices of all processes, ...], the layout of the
        arguments and results of a pmap that is compiled ahead of time."""
        return jax.make_array_from_process_local_data(NamedSharding(self.mesh, PartitionSpec(AXIS)), x)

    def _to_global_array(self, x: jax.Array) -> jax.Array:
        """Turns equal copies [devices, ...] into one replicated array [...] of all processes, as Orbax saves it."""
        copies = [shard.data[0] for shard in x.addressable_shards]
        return jax.make_array_from_single_device_arrays(x.shape[1:], self.strategy.named_sharding(), copies)


def one_device() -> list[jax.Device]:
    """The first device of this process, for programs that need no others."""
    return jax.local_devices()[:1]


def create(
    parallelism: str,
    sharding: str,
    batch_norm: str,
    batch_size: int,
    devices: Sequence[jax.Device] | None = None,
    *,
    deterministic: bool = False,
) -> Distribution:
    """Makes the distribution over the given devices, or over all that JAX sees.

    Args:
      parallelism: 'jit' or 'pmap'.
      sharding: 'replicated' or 'fsdp'.
      batch_norm: 'global' or 'local'.
      batch_size: size of a global batch.
      devices: the devices; all of them by default.
      deterministic: whether every start has to give the same bits.

    Raises:
      UserError: if the device count does not divide the batch size.
    """
    devices = jax.devices() if devices is None else list(devices)
    if batch_size % len(devices):
        nearest = max(batch_size // len(devices), 1) * len(devices)
        raise UserError(
            f"config.batch_size is {batch_size}, which {len(devices)} devices do not divide; use {nearest}, say"
        )
    # Ordered by process, as `ProcessShard` counts the rows of a batch.
    devices = sorted(devices, key=lambda device: device.process_index)
    mesh = Mesh(np.array(devices), (AXIS,), axis_types=(AxisType.Auto,))
    return Distribution(parallelism, batch_norm == "local", deterministic, ShardingStrategy(mesh, sharding == "fsdp"))
