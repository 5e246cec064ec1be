"""Sends the jobs of a grid to a Slurm cluster, as job arrays that submitit makes.

Each job trains as it would on this machine and writes its result to the same file. One that is preempted, or near its
time limit, saves and is requeued. Slurm alone decides when and where a job runs.
"""

from __future__ import annotations

import collections
import dataclasses
import graphlib
import importlib
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from switokd_jax.analysis import job_runner
from switokd_jax.analysis.jobs import Job
from switokd_jax.errors import EXIT_STATUS, UserError, import_extra, one_line
from switokd_jax.files import read_json, write_json
from switokd_jax.stop_signals import StopRequested

SECONDS_TO_SAVE = 120  # between Slurm's signal and the time limit
MIN_MINUTES = 10  # of a start: to import, compile, train and save
ALL = 100_000  # jobs of an array at the same time, where nothing limits them
MAX_STARTS = 10_000  # submitit gives up a job after so many time limits; ours end once they are trained


@dataclasses.dataclass(frozen=True)
class Resources:
    """What each job asks of Slurm. The cluster decides where a value is 0 or empty.

    Attributes:
      minutes: the time limit. A job that has not finished by then is requeued and resumes.
      partition: name of the partition.
      gpus: number of GPUs.
      cpus: number of cores.
      parallelism: number of jobs of an array that may run at the same time.
    """

    minutes: int
    partition: str = ""
    gpus: int = 0
    cpus: int = 0
    parallelism: int = 0

    def parameters(self) -> dict[str, Any]:
        """Returns the parameters of submitit's executor."""
        optional = {
            "slurm_partition": self.partition,
            "slurm_gpus_per_node": self.gpus,
            "slurm_cpus_per_task": self.cpus,
            # srun does not take the number of cores from the job since Slurm 22.05.
            "slurm_srun_args": [f"--cpus-per-task={self.cpus}"] if self.cpus else [],
            "slurm_array_parallelism": self.parallelism or ALL,
        }
        return {
            "timeout_min": self.minutes,
            "slurm_signal_delay_s": SECONDS_TO_SAVE,
            # A job that can never start is removed from the queue.
            "slurm_additional_parameters": {"requeue": True, "kill-on-invalid-dep": "yes"},
            **{name: value for name, value in optional.items() if value},
        }


@dataclasses.dataclass(frozen=True)
class ClusterJob:
    """What runs on a node of the cluster: one job of a grid. submitit pickles, calls and requeues it."""

    job: Job
    folder: Path

    def __call__(self) -> None:
        """Trains and writes the result, or asks to be requeued.

        Raises:
          RuntimeError: if the run failed; it is then a failed job for Slurm, too.
        """
        requeue = signal.getsignal(signal.SIGUSR2)  # submitit's; Slurm sends the signal before the time limit
        signal.signal(signal.SIGUSR2, _terminate)
        try:
            returncode = job_runner.run_one(self.job, self.folder)
        except StopRequested as stop:
            returncode = stop.status
        # Slurm may send its signal to our child as well, before that can handle it.
        is_preempted = returncode in (EXIT_STATUS[signal.SIGTERM], -signal.SIGUSR2)
        if is_preempted and callable(requeue) and not is_cancelled(os.environ):
            requeue(signal.SIGUSR2, None)  # ends this process
        if returncode:
            raise RuntimeError(f"{self.job.name}: {job_runner.failure(self.job, self.folder)} (status {returncode})")
        job_runner.write_result(self.job, self.folder)

    def checkpoint(self) -> Any:
        """Returns what the requeued job calls: the same, which resumes."""
        return importlib.import_module("submitit.helpers").DelayedSubmission(self)


def _terminate(number: int, frame: FrameType | None) -> None:
    del number, frame
    os.kill(os.getpid(), signal.SIGTERM)


def is_cancelled(environment: Mapping[str, str]) -> bool:
    """Returns whether the user cancelled the Slurm job of this process, or Slurm itself has requeued it."""
    if "SLURM_JOB_ID" not in environment:
        return False
    command = ["squeue", "--noheader", "--format=%T", f"--jobs={environment['SLURM_JOB_ID']}"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() != "RUNNING"


class JobArray(NamedTuple):
    """Jobs that start as soon as all that they depend on have succeeded: the names of those, and the jobs."""

    depends_on: tuple[str, ...]
    jobs: list[Job]

    def __str__(self) -> str:
        after = f", after {', '.join(self.depends_on)}" if self.depends_on else ""
        return f"an array of {len(self.jobs)}{after}: {', '.join(job.name for job in self.jobs)}"


def group_into_arrays(jobs: Sequence[Job], queued: Collection[str] = ()) -> list[JobArray]:
    """Groups jobs into arrays, one for all that depend on the same jobs, in an order in which they can be submitted.

    Args:
      jobs: those to submit.
      queued: names of jobs that the cluster has already. All others that a job depends on have finished.

    Raises:
      UserError: if jobs depend on each other.

    >>> grid = [Job("kd", "c.py", depends_on=("a",)), Job("a", "c.py"), Job("b", "c.py", depends_on=("done",))]
    >>> print(*group_into_arrays(grid), sep="; ")
    an array of 2: a, b; an array of 1, after a: kd
    """
    unfinished = {job.name for job in jobs}.union(queued)
    needed = {job.name: tuple(name for name in job.depends_on if name in unfinished) for job in jobs}
    try:
        order = [*graphlib.TopologicalSorter(needed).static_order()]
    except graphlib.CycleError as error:
        raise UserError(f"runs depend on each other: {', '.join(error.args[1])}") from None
    arrays: dict[tuple[str, ...], list[Job]] = {needed[name]: [] for name in order if name in needed}
    for job in jobs:
        arrays[needed[job.name]].append(job)
    return [JobArray(*array) for array in arrays.items()]


def submit(jobs: Sequence[Job], folder: Path, resources: Resources, cluster: str = "slurm") -> str:
    """Submits the jobs that have no result and are not in the queue.

    Args:
      jobs: of the whole grid.
      folder: of all runs. The nodes have to see it under the same path.
      resources: of each job.
      cluster: an executor of submitit: 'slurm', or 'local' for processes of this machine, which wait for no others.

    Returns:
      Lines that say what is in the queue.

    Raises:
      UserError: if the jobs cannot be used, there is no cluster, or it refuses a job; arrays before that one are in the
        queue.
    """
    submitit = import_extra("submitit", "slurm", "--launcher=slurm")
    job_runner.check_jobs(jobs, folder)
    folder = folder.resolve()
    unfinished = job_runner.unfinished_jobs(jobs, folder)
    states = _queue_states() if cluster == "slurm" else {}
    known = read_json(_ids_path(folder)) if _ids_path(folder).exists() else {}
    ids: dict[str, str] = {job.name: known[job.name] for job in unfinished if known.get(job.name) in states}
    in_queue = collections.Counter(states[job_id] for job_id in ids.values())
    lines = [f"{count} of {len(jobs)} runs in the queue: {state}" for state, count in in_queue.items()]
    ended = [job for job in unfinished if job.name in known and job.name not in ids and job.log_path(folder).exists()]
    lines += [f"{job.name} failed: {job_runner.failure(job, folder)}" for job in ended]
    for array in group_into_arrays([job for job in unfinished if job.name not in ids], ids):
        executor = submitit.AutoExecutor(folder / "slurm", cluster, slurm_max_num_timeout=MAX_STARTS)
        executor.update_parameters(name=folder.name, **resources.parameters())
        if array.depends_on:
            executor.update_parameters(
                slurm_dependency=":".join(["afterok", *(ids[name] for name in array.depends_on)])
            )
        try:
            with executor.batch():
                submitted = [executor.submit(ClusterJob(job, folder)) for job in array.jobs]
        except (OSError, RuntimeError, subprocess.SubprocessError) as error:
            raise UserError(f"Slurm refused {array.jobs[0].name}: {one_line(error)}") from None
        ids |= {job.name: entry.job_id for job, entry in zip(array.jobs, submitted, strict=True)}
        write_json(_ids_path(folder), known | ids)  # now, lest they be submitted again if the next array is refused
        lines.append(f"submitted {array}")
    if lines:
        lines.append("repeat the command for the table so far; it submits again what has failed")
    return "\n".join(lines)


def plan(jobs: Sequence[Job], folder: Path, resources: Resources) -> str:
    """Describes the arrays that would be submitted if the queue were empty."""
    arrays = group_into_arrays(job_runner.unfinished_jobs(jobs, folder))
    requests = ", ".join(f"{name}={value}" for name, value in dataclasses.asdict(resources).items() if value)
    return "\n".join([*map(str, arrays), f"each run asks for {requests}"])


def parse_minutes(text: str) -> int:
    """Parses a time limit in one of Slurm's forms, and rounds it up to minutes.

    Raises:
      UserError: if it has none of these forms, or is below `MIN_MINUTES`.

    >>> parse_minutes("90"), parse_minutes("12:00:00"), parse_minutes("1-6"), parse_minutes("10:30")
    (90, 720, 1800, 11)
    """
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text)
    total = None
    if match:
        days, *clock = (int(part or 0) for part in match.groups())
        # The first number is minutes, unless days stand before it or two numbers behind: then it is hours.
        hours, minutes, seconds = clock if match[1] or match[4] else (0, *clock[:2])
        total = (days * 24 + hours) * 60 + minutes + (seconds > 0)
    if total is None:
        raise UserError(f"--time={text} is no time limit; give minutes, 12:00:00 or 1-12:00:00")
    if total < MIN_MINUTES:
        raise UserError(
            f"--time={text} is too short for a start that trains and saves; give {MIN_MINUTES} minutes or more"
        )
    return total


def _queue_states() -> dict[str, str]:
    """Returns the states of this user's jobs by Slurm's id: '12_3' in an array, else '12'."""
    if shutil.which("squeue") is None:
        raise UserError("--launcher=slurm: there is no squeue here; start the command on a login node of the cluster")
    command = ["squeue", "--me", "--noheader", "--array", "--format=%i %T"]
    try:
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except subprocess.CalledProcessError as error:
        raise UserError(f"Slurm does not answer: {one_line(error.stderr or error)}") from None
    return {words[0]: words[1] for words in map(str.split, output.splitlines()) if len(words) == 2}


def _ids_path(folder: Path) -> Path:
    return folder / "slurm" / "ids.json"
