"""Sends signals to the whole process group of runs at random moments, start-up included.

python experiments/faults/group_signals.py --signals=40

In turn a run with its data in memory, a stream with two worker processes, a run of two processes and a sweep get
SIGTERM, SIGINT or SIGHUP, as a terminal, Slurm and systemd send them. Each must end within `LIMIT_S`: with the status
that docs/training.md promises, with every step saved that it says is saved, and without leaving a process behind.
Exit status 1 if one does not.
"""

from __future__ import annotations

import dataclasses
import os
import random
import re
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

from PIL import Image

sys.path[:0] = [str(Path(__file__).parents[2])]

from experiments.faults import storm

ROOT = storm.ROOT
LIMIT_S = 30.0
MARK = "GROUP_SIGNALS_MARK"  # environment variable by which the processes of a run are found
STATUS = {signal.SIGTERM: 75, signal.SIGHUP: 75, signal.SIGINT: 130}
DATA_IMAGES = 96
FLAGS = (*storm.FLAGS, "--config.batch_size=32", "--config.epochs=400", "--config.checkpoint.every=2")
TWO_PROCESSES = ("experiments/launch/launch_local.py", "--num_processes=2", "--")
SWEEP = ("-m", "switokd_jax.sweep", "--config=configs/digits.py", "--seeds", "0", "1", "--jobs=2")


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of run.

    Attributes:
      command: arguments of Python; `{workdir}` and `{data}` are replaced.
      saves: where the run's own folder is below the workdir; '' for the workdir, None if there are several.
      statuses: what it may end with, by signal.
    """

    command: tuple[str, ...]
    saves: str | None
    statuses: dict[signal.Signals, tuple[int, ...]]


ONE: dict[signal.Signals, tuple[int, ...]] = {number: (status,) for number, status in STATUS.items()}
STREAM = (
    *("--config.data.name=folder", "--config.data.dir={data}", "--config.data.pipeline=stream"),
    *("--config.data.workers=2", "--config.eval_every=1"),
)
KINDS = {
    "resident": Kind(("-m", "switokd_jax.main", *FLAGS, "--workdir={workdir}"), "", ONE),
    "stream": Kind(("-m", "switokd_jax.main", *FLAGS, *STREAM, "--workdir={workdir}"), "", ONE),
    "two processes": Kind((*TWO_PROCESSES, *FLAGS, "--workdir={workdir}"), "", dict.fromkeys(STATUS, (75, 130))),
    "sweep": Kind((*SWEEP, "--workdir={workdir}", "--", *FLAGS[1:]), None, ONE),
}


def make_images(folder: Path) -> None:
    """Writes a data set of small pictures in two classes."""
    for i in range(DATA_IMAGES):
        path = folder / ("test" if i % 4 == 3 else "train") / "ab"[i // 4 % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (i, 255 - i, 7 * i % 256)).save(path)


def processes_of(mark: str) -> list[int]:
    """Returns the processes whose environment has the mark; none of them is a zombie."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            has_mark = f"{MARK}={mark}".encode() in (folder / "environ").read_bytes()
            state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:  # it has ended, or is not ours
            continue
        if has_mark and state != "Z":
            found.append(int(folder.name))
    return found


def disturb(kind: Kind, workdir: Path, data: Path, number: signal.Signals, delay: float) -> tuple[str, list[str]]:
    """Starts a run in a process group of its own and sends the group a signal.

    Returns:
      What happened, and the faults.
    """
    mark = uuid.uuid4().hex
    command = [part.format(workdir=workdir, data=data) for part in kind.command]
    process = subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        env={**os.environ, MARK: mark},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    time.sleep(delay)
    os.killpg(process.pid, number)
    begin, faults = time.monotonic(), list[str]()
    try:
        _, err = process.communicate(timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        for each in processes_of(mark):
            os.kill(each, signal.SIGKILL)
        _, err = process.communicate()
        return "hangs", [f"no end within {LIMIT_S:.0f} s", err[-500:]]
    seconds = time.monotonic() - begin
    if process.returncode not in kind.statuses[number]:
        faults.append(f"status {process.returncode}, not {kind.statuses[number]}: {err[-1000:]}")
    if "Traceback" in err:
        faults.append(err[-1000:])
    if kind.saves is not None and (promised := re.search(r"stopped by \w+ after step (\d+)", err)):
        saved = storm.newest_save(workdir / kind.saves)
        if saved != int(promised[1]):
            faults.append(f"it says that step {promised[1]} is saved, and the newest save is {saved}")
    limit = time.monotonic() + 5.0
    while (left := processes_of(mark)) and time.monotonic() < limit:
        time.sleep(0.1)
    if left:
        faults.append(f"{len(left)} processes are left")
        for each in left:
            os.kill(each, signal.SIGKILL)
    steps = re.findall(r"after step (\d+)", err)
    moment = f"at step {steps[0]}" if steps else "before the first step"
    return f"{moment}, status {process.returncode} after {seconds:.1f} s", faults


def run_experiment(folder: Path, count: int, rng: random.Random) -> list[str]:
    """Disturbs so many runs; returns the faults, one line each."""
    make_images(folder / "data")
    faults = []
    for i in range(count):
        name = [*KINDS][i % len(KINDS)]
        number = rng.choice([*STATUS])
        delay = rng.uniform(0.2, 25.0)
        # Every second run of a kind resumes the one before.
        workdir = folder / f"{name.replace(' ', '_')}_{i // len(KINDS) // 2}"
        happened, found = disturb(KINDS[name], workdir, folder / "data", number, delay)
        print(f"{i + 1:3} {name:14} {number.name:8} after {delay:4.1f} s: {happened}", flush=True)
        for fault in found:
            print(f"    {fault}", flush=True)
        faults += [f"{name}, {number.name} after {delay:.1f} s: {fault}" for fault in found]
    return faults


if __name__ == "__main__":
    storm.prove(__doc__ or "", "signals", run_experiment)
