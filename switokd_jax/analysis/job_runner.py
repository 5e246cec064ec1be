"""Many runs, each by the command that a user types: so many at a time, what is done is skipped, what was cut short
goes on, and what fails does not keep the others from running."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from switokd_jax.analysis.tables import aligned
from switokd_jax.errors import UserError
from switokd_jax.files import write_json
from switokd_jax.workdir.layout import Workdir
from switokd_jax.workdir.resume import OVERRIDABLE_ON_RESUME

Say = Callable[[str], None]
PAUSE = 0.2  # seconds between two looks at the running processes


@dataclasses.dataclass(frozen=True)
class Job:
    """One run.

    Attributes:
      name: its folder in the grid's.
      config: the config file.
      flags: what it differs in, as on a command line.
      depends_on: names of the jobs whose results it reads; it starts once they are done.
      flops: of its training, or None where nobody counted them.
    """

    name: str
    config: str
    flags: tuple[str, ...] = ()
    depends_on: tuple[str, ...] = ()
    flops: float | None = None

    def command(self, folder: Path) -> list[str]:
        """What a user would type, with the workdir inside `folder`."""
        main = [sys.executable, "-m", "switokd_jax.main"]
        return [*main, f"--config={self.config}", f"--workdir={(folder / self.name).resolve()}", *self.flags]


@dataclasses.dataclass
class _Running:
    job: Job
    process: subprocess.Popen[bytes]
    since: float
    slot: int


def result(job: Job, folder: Path) -> dict[str, Any] | None:
    """The summary of a job that is done: FOLDER/results/NAME.json has it, with the config file and flags.

    Raises:
      ConfigError: if the folder has a result of that name from other flags.
    """
    path = _result(job, folder)
    if not path.exists():
        return None
    found = json.loads(path.read_text())
    if (found["config"], _fixed(found["flags"])) != (job.config, _fixed(job.flags)):
        raise UserError(
            f"{path} is of a run with {' '.join([found['config'], *found['flags']])}, not "
            f"{' '.join([job.config, *job.flags])}; choose another --workdir"
        )
    made: dict[str, Any] = found["summary"]
    return made


def run(jobs: Sequence[Job], folder: Path, max_parallel: int = 1, say: Say = print) -> dict[str, str]:
    """Runs all jobs that are not done.

    What a job prints goes to FOLDER/logs/NAME.txt. Ctrl-C and SIGTERM are handed to the running jobs, which save.

    Args:
      jobs: in the order in which they start, but for what they wait for.
      folder: of the grid.
      max_parallel: how many run side by side; on Linux each gets its share of the cores, on a GPU of its memory.
      say: takes a line of progress.

    Returns:
      By name of a job that is not done, why: empty if all are.

    Raises:
      KeyboardInterrupt: after the running jobs have ended.
    """
    waiting = [job for job in jobs if result(job, folder) is None]
    done, failed = {job.name for job in jobs} - {job.name for job in waiting}, dict[str, str]()
    running: list[_Running] = []
    if done:
        say(f"{len(done)} of {len(jobs)} runs are done")
    with _terminable():
        try:
            while waiting or running:
                _start(waiting, running, done, failed, folder, max_parallel)
                time.sleep(PAUSE)
                for each in [each for each in running if each.process.poll() is not None]:
                    running.remove(each)
                    name, status = each.job.name, each.process.returncode
                    if status == 0:
                        scores = _note(each.job, folder)
                        done.add(name)
                        say(f"[{len(done)}/{len(jobs)}] {name}: {scores}, {time.monotonic() - each.since:.0f} s")
                    else:
                        failed[name] = _last_line(_log(each.job, folder)) or f"status {status}"
                        say(f"{name} failed: {failed[name]}")
        except KeyboardInterrupt:
            say("waiting for the running jobs to save")
            _end(running)
            raise
    return failed


def plan(
    jobs: Sequence[Job], folder: Path, max_parallel: int, flops_per_second: float | None = None, start: float = 30.0
) -> str:
    """What would run, as text: each job's state and its time.

    The time of a job is `start` seconds and its floating-point operations at the rate of the jobs that are done, or
    else at `flops_per_second`. That jobs side by side slow each other down is not in it.
    """
    made = {job.name: result(job, folder) for job in jobs}
    done = [each for each in made.values() if each]
    rate = sum(of["training_flops"] for of in done) / sum(of["seconds"] for of in done) if done else flops_per_second
    rows, total = [("run", "state", "time")], 0.0
    for job in jobs:
        state = "goes on" if Workdir(folder / job.name).checkpoints.exists() else "to do"
        seconds = start + job.flops / rate if job.flops and rate else None
        if made[job.name]:
            state, seconds = "done", 0.0
        total += seconds or 0.0
        rows.append((job.name, state, "?" if seconds is None else "" if state == "done" else duration(seconds)))
    left = f"{len(jobs) - len(done)} of {len(jobs)} runs"
    if not rate or any(job.flops is None for job in jobs):
        return f"{aligned(rows)}\n{left}"
    speed = f"{rate / 1e9:,.0f} GFLOP/s, {'as those done' if done else 'assumed'}"
    return f"{aligned(rows)}\n{left}, about {duration(total / max_parallel)} with {max_parallel} at a time ({speed})"


def duration(seconds: float) -> str:
    """'45 s', '12 min', '3.5 h', '2.1 days'."""
    for unit, size in (("days", 86400.0), ("h", 3600.0)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


def _start(
    waiting: list[Job], running: list[_Running], done: set[str], failed: dict[str, str], folder: Path, max_parallel: int
) -> None:
    """Starts what may start; a job that waits for one that failed fails."""
    for job in [*waiting]:
        if lost := [name for name in job.depends_on if name in failed]:
            waiting.remove(job)
            failed[job.name] = f"it needs {lost[0]}, which failed"
        elif len(running) < max_parallel and done.issuperset(job.depends_on):
            waiting.remove(job)
            slot = next(i for i in range(max_parallel) if i not in {each.slot for each in running})
            running.append(_Running(job, _spawn(job, folder, slot, max_parallel), time.monotonic(), slot))


def _spawn(job: Job, folder: Path, slot: int, max_parallel: int) -> subprocess.Popen[bytes]:
    log = _log(job, folder)
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = dict(os.environ)
    if max_parallel > 1:
        environment.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", f"{0.9 / max_parallel:.3f}")
    with log.open("ab") as out:
        # A session of its own: Ctrl-C reaches it through us, once.
        process = subprocess.Popen(
            job.command(folder), stdout=out, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
    if hasattr(os, "sched_setaffinity") and max_parallel > 1:
        cores = sorted(os.sched_getaffinity(0))
        if len(cores) >= max_parallel:  # XLA takes a thread for each core that it sees
            os.sched_setaffinity(process.pid, cores[slot::max_parallel])
    return process


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM is a Ctrl-C while the context lasts."""
    if threading.current_thread() is not threading.main_thread():  # where Python takes no handlers
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _end(running: Sequence[_Running]) -> None:
    for each in running:
        if each.process.poll() is None:
            each.process.send_signal(signal.SIGTERM)
    for each in running:
        each.process.wait()


def _note(job: Job, folder: Path) -> str:
    """Writes the result of a job that has ended; the scores for people."""
    made = json.loads(Workdir(folder / job.name).summary.read_text())
    path = _result(job, folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"config": job.config, "flags": [*job.flags], "summary": made})
    return ", ".join(f"{name} {of['final_top1']:.2f} %" for name, of in made["networks"].items())


def _fixed(flags: Sequence[str]) -> list[str]:
    """The flags that may not change between two starts."""
    free = tuple(f"--config.{name}" for name in OVERRIDABLE_ON_RESUME)
    return [each for each in flags if not each.startswith(free)]


def _result(job: Job, folder: Path) -> Path:
    return folder / "results" / f"{job.name}.json"


def _log(job: Job, folder: Path) -> Path:
    return folder / "logs" / f"{job.name}.txt"


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1].removeprefix("switokd_jax: ") if lines else ""
