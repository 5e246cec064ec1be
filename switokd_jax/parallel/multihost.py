"""Runs of several processes: how the processes find each other, wait for each other and end.

All processes run the same command. Process 0 hosts JAX's coordination service; a process that sends it nothing for
`HEARTBEAT_TIMEOUT_S` counts as dead, and then all others end.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

import jax

from switokd_jax.errors import UserError, one_line

HEARTBEAT_TIMEOUT_S = 30
CONNECT_TIMEOUT_S = 50
BARRIER_TIMEOUT_S = 3600  # another process may still be compiling


@dataclasses.dataclass(frozen=True)
class Cluster:
    """Processes that run together, as one of them sees it.

    Attributes:
      launcher: who started the processes: 'flags', 'slurm', 'ompi' or 'tpu'.
      coordinator: 'HOST:PORT' of process 0; None if JAX detects it.
      num_processes: number of processes; None if JAX detects it.
      process_id: index of this process, from 0; None if JAX detects it.
    """

    launcher: str
    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None


def detect_cluster(
    coordinator: str | None, num_processes: int | None, process_id: int | None, environment: Mapping[str, str]
) -> Cluster | None:
    """Returns the cluster that the flags or the environment describe: a Slurm step or an Open MPI run of several
    tasks, or a Cloud TPU. None for a process on its own.

    `jax.distributed.initialize` detects these as well; this function adds one-line errors for what it would miss.

    Args:
      coordinator: --coordinator, 'HOST:PORT'.
      num_processes: --num_processes.
      process_id: --process_id.
      environment: environment variables.

    Raises:
      UserError: naming the flag or the variable that is missing or wrong.

    >>> detect_cluster("host:1234", 2, 1, environment={})
    Cluster(launcher='flags', coordinator='host:1234', num_processes=2, process_id=1)
    """
    if coordinator is not None and not coordinator.rpartition(":")[2].isdigit():
        raise UserError(f"--coordinator {coordinator!r} has no port; give HOST:PORT of process 0")
    if num_processes is not None or process_id is not None:
        if coordinator is None or num_processes is None or process_id is None:
            raise UserError("--coordinator, --num_processes and --process_id belong together; give all three")
        if not 0 <= process_id < num_processes:
            raise UserError(
                f"--process_id {process_id} is not one of {num_processes} processes; give 0 to {num_processes - 1}"
            )
        return Cluster("flags", coordinator, num_processes, process_id)
    if _integer(environment, "SLURM_STEP_NUM_TASKS", 1) > 1:
        return Cluster("slurm", coordinator)
    if (size := _integer(environment, "OMPI_COMM_WORLD_SIZE", 1)) > 1:
        # JAX reads the coordinator's address from a variable that Open MPI dropped in its version 5.
        if coordinator is None and "OMPI_MCA_orte_hnp_uri" not in environment:
            raise UserError("Open MPI 5 does not tell where process 0 runs; give --coordinator=HOST:PORT")
        return Cluster("ompi", coordinator, size, _integer(environment, "OMPI_COMM_WORLD_RANK", 0))
    if coordinator is not None:
        raise UserError("--coordinator needs --num_processes and --process_id, or a Slurm or Open MPI job")
    chips = [chip for pattern in ("accel[0-9]*", "vfio/[0-9]*") for chip in Path("/dev").glob(pattern)]
    if chips and importlib.util.find_spec("libtpu") and environment.get("JAX_PLATFORMS", "tpu").startswith("tpu"):
        return Cluster("tpu")
    return None


def _integer(environment: Mapping[str, str], name: str, default: int) -> int:
    text = environment.get(name, str(default))
    if not text.isdigit():
        raise UserError(f"the environment variable {name} is {text!r}, no number; unset it or use srun or mpirun")
    return int(text)


def initialize(cluster: Cluster) -> None:
    """Connects this process to the others and waits until all are connected. Has to run before any other use of JAX.

    Raises:
      UserError: if the processes cannot connect.
    """
    if cluster.process_id == 0 and cluster.coordinator:
        _check_port(cluster.coordinator)
    try:
        jax.distributed.initialize(
            cluster.coordinator,
            cluster.num_processes,
            cluster.process_id,
            cluster_detection_method="deactivate" if cluster.launcher == "flags" else None,
            initialization_timeout=CONNECT_TIMEOUT_S,
            heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT_S,
        )
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"the processes of this run ({cluster.launcher}) cannot connect to each other: {error}"
        ) from error


def start_backend() -> None:
    """Starts JAX's backend; in a run of several processes after `initialize`.

    Raises:
      UserError: if there is none of the kind that JAX_PLATFORMS names.
    """
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        platforms = os.environ.get("JAX_PLATFORMS", "")
        reason = one_line(error) if str(error) else "this installation has no such backend"
        raise UserError(
            f"JAX cannot use JAX_PLATFORMS={platforms!r} here ({reason}); unset it, or install JAX for that device"
        ) from None


def _check_port(coordinator: str) -> None:
    """Checks that process 0 can listen on its port: JAX's service ends the process if it cannot.

    Raises:
      UserError: if something else listens there.
    """
    port = int(coordinator.rpartition(":")[2])
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except (OSError, OverflowError) as error:
            reason = error.strerror if isinstance(error, OSError) else "ports end at 65535"
            raise UserError(
                f"--coordinator {coordinator}: process 0 cannot listen on port {port} ({reason}); give another port to "
                "all processes, and each process an id of its own"
            ) from None


def barrier(key: str) -> None:
    """Waits until all processes have called this with the same key; returns at once for a process on its own.

    Uses JAX's coordination service: no device communication, and a timeout of `BARRIER_TIMEOUT_S`.
    """
    if jax.process_count() > 1:
        from orbax.checkpoint import multihost as orbax_multihost  # not for `--help`, which has no barriers

        wait = orbax_multihost.get_barrier_sync_fn(processes=set(range(jax.process_count())))
        wait(key=key, timeout_ms=BARRIER_TIMEOUT_S * 1000)


def is_main_process() -> bool:
    """Returns whether this process writes metrics, figures and summaries."""
    return jax.process_index() == 0


def process_index() -> int:
    """Returns the index of this process, from 0."""
    return jax.process_index()


def exit_without_barrier(status: int) -> NoReturn:
    """Ends a process of a failed run without the shutdown barrier of `jax.distributed`, which waits for the others."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
