"""Several processes, one run: how they find each other, and how one that fails ends without waiting for the others.

Every process runs the same command. Process 0 keeps the list of who is alive; one that says nothing for `HEARTBEAT`
seconds counts as dead and ends the others.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

import jax

from switokd_jax.errors import UserError

HEARTBEAT = 30


@dataclasses.dataclass(frozen=True)
class Cluster:
    """A process among others.

    Attributes:
      by: who says so: 'flags', 'slurm', 'ompi' or 'tpu'.
      coordinator: host and port of process 0; None where JAX finds it out.
      count: of processes, and
      index: of this one, from 0; None likewise.
    """

    by: str
    coordinator: str | None = None
    count: int | None = None
    index: int | None = None


def find(
    coordinator: str | None, count: int | None, index: int | None, environment: Mapping[str, str]
) -> Cluster | None:
    """The job that the flags or the environment tell of: a Slurm step or an Open MPI run of several tasks, or a Cloud
    TPU. None for a process on its own.

    Args:
      coordinator: --coordinator, 'HOST:PORT'.
      count: --num_processes.
      index: --process_id.
      environment: variables.

    Raises:
      ConfigError: naming the flag or the variable that is missing or wrong.
    """
    if coordinator is not None and not coordinator.rpartition(":")[2].isdigit():
        raise UserError(f"--coordinator {coordinator!r} has no port; give HOST:PORT of process 0")
    if count is not None or index is not None:
        if coordinator is None or count is None or index is None:
            raise UserError("--coordinator, --num_processes and --process_id belong together; give all three")
        if not 0 <= index < count:
            raise UserError(f"--process_id {index} is not one of {count} processes; give 0 to {count - 1}")
        return Cluster("flags", coordinator, count, index)
    if _number(environment, "SLURM_STEP_NUM_TASKS", 1) > 1:
        return Cluster("slurm", coordinator)
    if (size := _number(environment, "OMPI_COMM_WORLD_SIZE", 1)) > 1:
        # JAX reads the coordinator's place from what Open MPI left out of its version 5.
        if coordinator is None and "OMPI_MCA_orte_hnp_uri" not in environment:
            raise UserError("Open MPI 5 does not say where process 0 runs; give --coordinator=HOST:PORT")
        return Cluster("ompi", coordinator, size, _number(environment, "OMPI_COMM_WORLD_RANK", 0))
    if coordinator is not None:
        raise UserError("--coordinator needs --num_processes and --process_id, or a Slurm or Open MPI job")
    chips = [chip for pattern in ("accel[0-9]*", "vfio/[0-9]*") for chip in Path("/dev").glob(pattern)]
    if chips and importlib.util.find_spec("libtpu") and environment.get("JAX_PLATFORMS", "tpu").startswith("tpu"):
        return Cluster("tpu")
    return None


def _number(environment: Mapping[str, str], name: str, otherwise: int) -> int:
    text = environment.get(name, str(otherwise))
    if not text.isdigit():
        raise UserError(f"the environment variable {name} is {text!r}, no number; unset it or use srun or mpirun")
    return int(text)


def join(job: Cluster) -> None:
    """Waits until all processes of the job are there; before anything else is asked of JAX.

    Raises:
      ConfigError: if they do not find each other.
    """
    try:
        jax.distributed.initialize(
            job.coordinator,
            job.count,
            job.index,
            cluster_detection_method="deactivate" if job.by == "flags" else None,
            heartbeat_timeout_seconds=HEARTBEAT,
        )
    except (RuntimeError, ValueError) as error:
        raise UserError(f"the processes of this run ({job.by}) do not find each other: {error}") from error


def leave(status: int) -> NoReturn:
    """Ends a process of a job that failed: without the farewell of `jax.distributed`, which waits for the others."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
