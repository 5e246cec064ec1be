"""Where jobs run: each in a process of its own, or in a thread of this process, with its own part of the devices.

Processes suit GPUs and CPUs. A TPU's chips belong to one process, so jobs are its threads there; they share what has
been compiled, and each has its own output and ends without the others.
"""

from __future__ import annotations

import dataclasses
import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol, TextIO

import jax

from switokd_jax.analysis.jobs import Job
from switokd_jax.errors import UserError
from switokd_jax.stop_signals import PARENT_VARIABLE

# Trains with the flags of main on some devices, writes its output to a stream, and saves and ends once the event is
# set. Returns the exit status that the command would have.
TrainFn = Callable[[Sequence[str], Sequence[jax.Device], TextIO, threading.Event], int]
MEMORY_VARIABLE = "XLA_PYTHON_CLIENT_MEM_FRACTION"
SHARED_MEMORY = 0.9  # of a GPU, among the jobs that share it


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Exit status of a job, and how long it ran."""

    returncode: int
    seconds: float


class Workers(Protocol):
    """Runs jobs, up to `count` at a time, each in a call of `run` from a thread of the caller's."""

    @property
    def count(self) -> int:
        """Number of jobs that can run at the same time."""

    def run(self, job: Job, folder: Path) -> Outcome:
        """Runs a job to its end; its output is added to its log. After `terminate` nothing starts any more."""

    def terminate(self) -> None:
        """Asks all running jobs to save and end."""


def split_devices(num_devices: int, count: int | None, per_job: int | None) -> list[tuple[int, ...]]:
    """Divides devices among jobs that run at the same time.

    Args:
      num_devices: number of devices.
      count: number of jobs at a time; None for as many as have devices of their own.
      per_job: devices of each job; None for an equal part, one at least.

    Returns:
      For each job the indices of its devices. Jobs share devices if there are fewer than they need together.

    Raises:
      UserError: naming the flag that cannot be used.

    >>> split_devices(8, 3, None), split_devices(2, 3, 1), split_devices(4, None, 2)
    ([(0, 1), (2, 3), (4, 5)], [(0,), (1,), (0,)], [(0, 1), (2, 3)])
    """
    if count is not None and count < 1:
        raise UserError(f"--jobs is {count}; at least one run has to go on at a time")
    if per_job is not None and not 1 <= per_job <= num_devices:
        raise UserError(f"--devices-per-job is {per_job}; give 1 to {num_devices}, the devices of this machine")
    size = per_job or max(1, num_devices // (count or num_devices))
    jobs = count or num_devices // size
    return [tuple((job * size + i) % num_devices for i in range(size)) for job in range(jobs)]


class Processes:
    """Runs each job in a child process, with the command that a user would type.

    Args:
      device_groups: for each job at a time, the indices of its devices among those of this process.
      platform: of the devices. On 'gpu' a process sees only its own, and takes its part of the memory of those that it
        shares. On 'cpu' it gets its part of the cores, on Linux.
    """

    def __init__(self, device_groups: Sequence[Sequence[int]] = ((0,),), platform: str = "cpu") -> None:
        self._groups, self._platform = device_groups, platform
        self._free = _queue(range(len(device_groups)))
        self._running: set[subprocess.Popen[bytes]] = set()
        self._terminated = False
        self._lock = threading.Lock()

    @property
    def count(self) -> int:
        """Number of jobs that can run at the same time."""
        return len(self._groups)

    def run(self, job: Job, folder: Path) -> Outcome:
        """Runs a job to its end; its output is added to its log. After `terminate` nothing starts any more."""
        slot, begin = self._free.get(), time.monotonic()
        with self._lock:  # a process must not start between the end of `terminate` and being known to it
            if self._terminated:
                return Outcome(-signal.SIGTERM, 0.0)
            process = self._start(job, folder, slot)
            self._running.add(process)
        returncode = process.wait()
        with self._lock:
            self._running.remove(process)
        self._free.put(slot)
        return Outcome(returncode, time.monotonic() - begin)

    def terminate(self) -> None:
        """Sends SIGTERM to all running processes."""
        with self._lock:
            self._terminated = True
            for process in self._running:
                process.terminate()

    def _start(self, job: Job, folder: Path, slot: int) -> subprocess.Popen[bytes]:
        environment = {**os.environ, PARENT_VARIABLE: str(os.getpid())}  # it saves and ends if we are killed
        if self._platform == "gpu":
            environment |= gpu_environment(self._groups, slot, os.environ)
        path = job.log_path(folder)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as output:
            # In a session of its own, or the terminal would send Ctrl-C to the process as well as to us.
            process = subprocess.Popen(
                job.command(folder), stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True
            )
        if hasattr(os, "sched_setaffinity") and self.count > 1:
            cores = sorted(os.sched_getaffinity(0))
            if len(cores) >= self.count:  # XLA starts a thread for each core that it may use
                os.sched_setaffinity(process.pid, cores[slot :: self.count])
        return process


def gpu_environment(groups: Sequence[Sequence[int]], slot: int, environment: Mapping[str, str]) -> dict[str, str]:
    """Returns the environment variables of a job that shall see only its own GPUs.

    Args:
      groups: for each job at a time, the indices of its GPUs among those that `environment` shows.
      slot: the job, an index of `groups`.
      environment: of this process. CUDA_VISIBLE_DEVICES may name some of the machine's GPUs, by number or UUID.

    >>> gpu_environment([(0, 1), (2, 3)], 1, {})
    {'CUDA_VISIBLE_DEVICES': '2,3'}
    >>> gpu_environment([(0,), (1,), (0,)], 2, {"CUDA_VISIBLE_DEVICES": "4,5"})
    {'CUDA_VISIBLE_DEVICES': '4', 'XLA_PYTHON_CLIENT_MEM_FRACTION': '0.450'}
    """
    visible = [name.strip() for name in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    own = groups[slot]
    variables = {"CUDA_VISIBLE_DEVICES": ",".join(visible[i] if visible else str(i) for i in own)}
    sharing = max(sum(i in group for group in groups) for i in own)
    if sharing > 1 and MEMORY_VARIABLE not in environment:
        variables[MEMORY_VARIABLE] = f"{SHARED_MEMORY / sharing:.3f}"
    return variables


class Threads:
    """Runs each job in a thread of this process.

    Args:
      device_groups: for each job at a time its devices.
      train: trains one job.
    """

    def __init__(self, device_groups: Sequence[Sequence[jax.Device]], train: TrainFn) -> None:
        self._groups, self._train = device_groups, train
        self._free = _queue(range(len(device_groups)))
        self._stop = threading.Event()

    @property
    def count(self) -> int:
        """Number of jobs that can run at the same time."""
        return len(self._groups)

    def run(self, job: Job, folder: Path) -> Outcome:
        """Runs a job to its end; its output is added to its log. After `terminate` nothing starts any more."""
        slot, begin = self._free.get(), time.monotonic()
        if self._stop.is_set():
            return Outcome(-signal.SIGTERM, 0.0)
        path = job.log_path(folder)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", buffering=1, errors="backslashreplace") as output:
            returncode = self._train(job.main_flags(folder), self._groups[slot], output, self._stop)
        self._free.put(slot)
        return Outcome(returncode, time.monotonic() - begin)

    def terminate(self) -> None:
        """Asks all running jobs to save and end."""
        self._stop.set()


def make_workers(
    kind: str, count: int | None, per_job: int | None, devices: Sequence[jax.Device], train: TrainFn
) -> Workers:
    """Makes the workers that suit some devices.

    Args:
      kind: 'processes', 'threads', or 'auto' for threads where one process owns several devices: on TPUs, and on a CPU
        that JAX divides into several.
      count: as in `split_devices`.
      per_job: likewise.
      devices: all devices of this process.
      train: trains one job in a thread.

    Raises:
      UserError: naming the flag that cannot be used.
    """
    platform = devices[0].platform
    groups = split_devices(len(devices), count, per_job)
    if kind == "processes" and platform == "tpu":
        raise UserError("--workers=processes: a TPU's chips belong to one process; give --workers=threads")
    if kind == "threads" or (kind == "auto" and (platform == "tpu" or (platform == "cpu" and len(devices) > 1))):
        return Threads([[devices[i] for i in group] for group in groups], train)
    return Processes(groups, platform)


def parse_count(text: str) -> int | None:
    """Parses the value of --jobs: a number, or None for 'auto'.

    Raises:
      ValueError: for any other text.
    """
    return None if text == "auto" else int(text)


def _queue(items: Iterable[int]) -> queue.SimpleQueue[int]:
    filled: queue.SimpleQueue[int] = queue.SimpleQueue()
    for item in items:
        filled.put(item)
    return filled
