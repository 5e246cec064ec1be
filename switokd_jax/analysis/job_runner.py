"""Runs many training runs, several at a time, each as the command that a user would type.

Finished runs are skipped, interrupted ones resume, and a failed run does not stop the others.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import math
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from switokd_jax.analysis.job_workers import Outcome, Processes, Workers
from switokd_jax.analysis.jobs import Job
from switokd_jax.analysis.tables import align_columns
from switokd_jax.errors import UserError
from switokd_jax.files import read_json, write_json
from switokd_jax.stop_signals import STOP_SIGNALS, raise_stop_requested
from switokd_jax.workdir.layout import Workdir
from switokd_jax.workdir.metric_writers import evaluation_rows, read_metrics
from switokd_jax.workdir.resume import OVERRIDABLE_ON_RESUME

LogFn = Callable[[str], None]


def read_result(job: Job, folder: Path) -> dict[str, Any] | None:
    """Reads the summary of a finished job from FOLDER/results/NAME.json or the file that is kept for other machines.

    Returns:
      The summary; None if the job has not finished.

    Raises:
      UserError: if the result is of a run with another config file or other flags.
    """
    path = next((path for path in (job.result_path(folder), job.kept) if path and path.exists()), None)
    if path is None:
        return None
    result = read_json(path)
    if not {"config", "flags", "summary"} <= result.keys():
        raise UserError(f"{path} is no result of a run; remove it, and the run is finished again")
    if (result["config"], _fixed_flags(result["flags"])) != (job.config, _fixed_flags(job.flags)):
        raise UserError(
            f"{path} is of a run with {' '.join([result['config'], *result['flags']])}, not "
            f"{' '.join([job.config, *job.flags])}; choose another --workdir"
        )
    summary: dict[str, Any] = result["summary"]
    return summary


def unfinished_jobs(jobs: Sequence[Job], folder: Path) -> list[Job]:
    """Returns the jobs without a result, and those of another machine whose checkpoints one of them reads."""
    pending = [job for job in jobs if read_result(job, folder) is None]
    needed = {name for job in pending for name in job.depends_on}
    return [job for job in jobs if job in pending or (job.name in needed and not _has_ended_here(job, folder))]


def _has_ended_here(job: Job, folder: Path) -> bool:
    """Returns whether the folder has the checkpoints of a run that has come to its end, which writes its summary."""
    workdir = Workdir(folder / job.name)
    return workdir.checkpoints.exists() and workdir.summary.exists()


def run(
    jobs: Sequence[Job], folder: Path, workers: Workers | None = None, log: LogFn = print, seconds: float = math.inf
) -> dict[str, str]:
    """Runs all jobs that have not finished.

    The output of a job goes to FOLDER/logs/NAME.txt. Ctrl-C and SIGTERM are passed on to the running jobs, which save
    a checkpoint and end; no other job starts.

    Args:
      jobs: in the order in which they start, except that a job waits for those it depends on.
      folder: for all workdirs, results and logs.
      workers: run the jobs, several at a time; one process after the other unless given.
      log: receives one line for each job that ends.
      seconds: after which the running jobs are told to save and no other starts.

    Returns:
      The reason of failure by name of each job that has no result; empty if all succeeded.

    Raises:
      UserError: if two jobs have one name, or the folder cannot be used; nothing has started.
      KeyboardInterrupt: after the running jobs have ended.
      TimeoutError: likewise, if the time was up before all were done.
    """
    check_jobs(jobs, folder)
    workers = workers or Processes()
    pending = unfinished_jobs(jobs, folder)
    finished, failed = {job.name for job in jobs} - {job.name for job in pending}, dict[str, str]()
    if finished:
        log(f"{len(finished)} of {len(jobs)} runs are done")
    futures: dict[concurrent.futures.Future[Outcome], Job] = {}
    deadline = time.monotonic() + seconds
    with _stop_signals_as_interrupt(), concurrent.futures.ThreadPoolExecutor(workers.count) as pool:
        try:
            while pending or futures:
                remaining = deadline - time.monotonic()
                if remaining <= 0.0:
                    raise TimeoutError(f"{seconds:g} s are up")
                for job in _take_ready(pending, finished, workers.count - len(futures)):
                    futures[pool.submit(workers.run, job, folder)] = job
                failed |= _take_unreachable(pending, failed, idle=not futures)
                timeout = None if remaining == math.inf else remaining
                ended, _ = concurrent.futures.wait(futures, timeout, concurrent.futures.FIRST_COMPLETED)
                for future in ended:
                    job, outcome = futures.pop(future), future.result()
                    if outcome.returncode == 0:
                        scores = write_result(job, folder)
                        finished.add(job.name)
                        log(f"[{len(finished)}/{len(jobs)}] {job.name}: {scores}, {outcome.seconds:.0f} s")
                    else:
                        failed[job.name] = failure(job, folder) or f"status {outcome.returncode}"
                        log(f"{job.name} failed: {failed[job.name]}")
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt | TimeoutError):
                log("waiting for the running jobs to save")
            workers.terminate()  # the pool then waits for its threads, and they for their jobs
            raise
    return failed


def write_result(job: Job, folder: Path) -> str:
    """Writes the result of a job that succeeded, and returns its scores as text."""
    summary = read_json(Workdir(folder / job.name).summary)
    path = job.result_path(folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    result = {"config": job.config, "flags": [*job.flags], "summary": summary}
    write_json(path, result)
    if job.kept and not job.kept.exists():
        job.kept.parent.mkdir(parents=True, exist_ok=True)
        write_json(job.kept, _kept_result(job, Workdir(folder / job.name), summary))
    return ", ".join(f"{name} {scores['final_top1']:.2f} %" for name, scores in summary["networks"].items())


def run_one(job: Job, folder: Path) -> int:
    """Runs one job in a process, whether or not it has a result, and passes stop signals on to it.

    Returns:
      Its exit status.

    Raises:
      StopRequested: for a signal, after the job has ended.
    """
    workers = Processes()
    with _stop_signals_as_interrupt(), concurrent.futures.ThreadPoolExecutor(workers.count) as pool:
        try:
            return pool.submit(workers.run, job, folder).result().returncode
        except BaseException:
            for number in STOP_SIGNALS:  # a second one changes nothing: the job is saving
                signal.signal(number, signal.SIG_IGN)
            workers.terminate()
            raise


def failure(job: Job, folder: Path) -> str:
    """Returns why a job failed: the last line of its output; '' if there is none."""
    return _last_line(job.log_path(folder))


def check_jobs(jobs: Sequence[Job], folder: Path) -> None:
    """Checks that the jobs can share a folder, and makes it.

    Raises:
      UserError: if two jobs have one name, or the folder cannot be used.
    """
    names = [job.name for job in jobs]
    if repeated := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"two runs have the name {repeated}; give each seed and each value once")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--workdir {folder} is no folder for runs ({error.strerror}); choose another") from None


def plan(
    jobs: Sequence[Job], folder: Path, max_parallel: int, flops_per_second: float | None = None, start: float = 30.0
) -> str:
    """Formats what would run as text: the state of each job, and an estimate of its time.

    The time of a job is `start` plus its floating-point operations at the rate of the finished jobs, or at
    `flops_per_second` if there are none. The estimate ignores that parallel jobs slow each other down.

    Args:
      jobs: as `run` takes them.
      folder: likewise.
      max_parallel: likewise.
      flops_per_second: of this machine in training; None if unknown.
      start: seconds from the start of a job to its first step.
    """
    summaries = {job.name: summary for job in jobs if (summary := read_result(job, folder))}
    rate = flops_per_second
    if summaries:
        rate = sum(s["training_flops"] for s in summaries.values()) / sum(s["seconds"] for s in summaries.values())
    rows, total = [("run", "state", "time")], 0.0
    for job in jobs:
        if job.name in summaries:
            rows.append((job.name, "done", ""))
            continue
        state = "resumes" if Workdir(folder / job.name).checkpoints.exists() else "to do"
        seconds = start + job.flops / rate if job.flops and rate else None
        total += seconds or 0.0
        rows.append((job.name, state, "?" if seconds is None else format_duration(seconds)))
    remaining = f"{len(jobs) - len(summaries)} of {len(jobs)} runs"
    if not rate or any(job.flops is None for job in jobs):
        return f"{align_columns(rows)}\n{remaining}"
    duration = f"about {format_duration(total / max_parallel)} with {max_parallel} at a time"
    speed = f"{rate / 1e9:,.0f} GFLOP/s, {'as those done' if summaries else 'assumed'}"
    return f"{align_columns(rows)}\n{remaining}, {duration} ({speed})"


def format_duration(seconds: float) -> str:
    """Formats a rough duration in its largest unit.

    >>> tuple(format_duration(seconds) for seconds in (45, 720, 12600, 181440))
    ('45 s', '12 min', '3.5 h', '2.1 days')
    """
    for unit, size in (("days", 86400.0), ("h", 3600.0)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


def _take_ready(pending: list[Job], finished: set[str], limit: int) -> list[Job]:
    """Removes from `pending`, and returns, the first jobs whose dependencies have finished: at most `limit`."""
    ready = [job for job in pending if finished.issuperset(job.depends_on)][:limit]
    for job in ready:
        pending.remove(job)
    return ready


def _take_unreachable(pending: list[Job], failed: Mapping[str, str], *, idle: bool) -> dict[str, str]:
    """Removes from `pending` the jobs that can never start, and returns the reason by name.

    These are the jobs that depend on a failed one and, where `idle` says that none is running, all others: they depend
    on each other, or on jobs that are not in the list.
    """
    reasons = {}
    for job in [*pending]:
        lost = [name for name in job.depends_on if name in failed or name in reasons]
        if lost or idle:
            pending.remove(job)
            reasons[job.name] = (
                f"it needs {lost[0]}, which failed"
                if lost
                else f"it needs {', '.join(job.depends_on)}, which never ran"
            )
    return reasons


@contextlib.contextmanager
def _stop_signals_as_interrupt() -> Iterator[None]:
    """Turns stop signals into `StopRequested` within the context, unless they are ignored."""
    if threading.current_thread() is not threading.main_thread():  # only there Python allows signal handlers
        yield
        return
    numbers = [number for number in STOP_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    previous = {number: signal.signal(number, raise_stop_requested) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _kept_result(job: Job, workdir: Workdir, summary: Mapping[str, Any]) -> dict[str, Any]:
    """Returns all that the repository keeps of a finished run: nothing of it names a folder of this machine."""
    config = jax.tree.map(lambda x: _without_folders(x) if isinstance(x, str) else x, read_json(workdir.config))
    config["data"]["dir"] = ""
    return {
        "config": job.config,
        "flags": _fixed_flags(job.flags),
        "summary": summary,
        "epochs": evaluation_rows(read_metrics(workdir.metrics)),
        "parsed_config": config,
    }


def _fixed_flags(flags: Sequence[str]) -> list[str]:
    """Returns the flags that must be the same when a run is resumed; checkpoints without this machine's folders."""
    overridable = tuple(f"--config.{name}" for name in OVERRIDABLE_ON_RESUME)
    return [_without_folders(flag) for flag in flags if not flag.startswith(overridable)]


def _without_folders(text: str) -> str:
    """Removes the folders before the last one from each 'FOLDER:NETWORK@VERSION' in a text."""
    return re.sub(r"[^\s'\"=(,]*/(?=[^/]*@)", "", text)


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1].removeprefix("switokd_jax: ") if lines else ""
