"""Kills one run again and again until it is done, and compares it with an undisturbed run.

python experiments/faults/storm.py --kills=30

A quarter of the kills come while the run starts or resumes, a quarter some time after a save, and half are aimed
within a save: a hit is proved by the unfinished folder that the dead process leaves. Prints each kill. Exit status 1
if fewer than a third were within a save, if a save was lost, if a wait took longer than `TIMEOUT_S`, or if the killed
run ends with a difference: in parameters, statistics, optimizer state, counters (bit for bit), the rows of
metrics.jsonl, the checkpoints that are kept, or the summary (except for its times).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from switokd_jax.workdir import restore
from switokd_jax.workdir.checkpointer import TMP_MARKER
from switokd_jax.workdir.layout import Workdir

ROOT = Path(__file__).parents[2]
SAVES_PER_KILL = 2  # the run saves so often; a kill waits for one or two of its next saves
TIMEOUT_S = 300.0
MOMENTS = ("start", "within", "after", "within")
FLAGS = (
    "--config=configs/digits.py",
    "--config.networks.teacher.model=resnet8",
    "--config.networks.student.model=resnet8",
    "--config.log.tensorboard=False",
    "--config.log.every=5",
)


def start(workdir: Path, flags: Sequence[str], environment: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
    """Starts or resumes the run: the command is always the same."""
    command = [sys.executable, "-m", "switokd_jax.main", f"--workdir={workdir}", *flags]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)


def newest_save(workdir: Path) -> int:
    """Returns the step of the newest finished train state; 0 if there is none."""
    folder = Workdir(workdir).latest_checkpoints
    return max((int(path.name) for path in folder.glob("*") if path.name.isdigit()), default=0)


def unfinished(workdir: Path) -> set[tuple[str, int]]:
    """Returns the unfinished saves: names and inodes, because the next save of a step takes the same name."""
    partial = set()
    for pattern in (f"latest/*{TMP_MARKER}*", f"best/*/*{TMP_MARKER}*"):
        for path in Workdir(workdir).checkpoints.glob(pattern):
            with contextlib.suppress(FileNotFoundError):  # finished in the meantime
                partial.add((path.name, path.stat().st_ino))
    return partial


def wait(
    process: subprocess.Popen[bytes],
    until: Callable[[], bool],
    timeout: float = TIMEOUT_S,
    end: signal.Signals = signal.SIGKILL,
) -> None:
    """Waits until a condition holds or the process has ended.

    Args:
      process: a run.
      until: the condition.
      timeout: seconds.
      end: signal that ends the process after the timeout.

    Raises:
      TimeoutError: after the timeout.
    """
    begin = time.monotonic()
    while process.poll() is None and not until():
        if time.monotonic() - begin > timeout:
            process.send_signal(end)
            process.wait()
            raise TimeoutError(f"nothing happened for {timeout:.0f} s")
        time.sleep(0.001)


def kill(process: subprocess.Popen[bytes], workdir: Path, moment: str, rng: random.Random) -> list[str] | None:
    """Kills a run at a random time within a moment of `MOMENTS`.

    Returns:
      The names of the saves that it interrupted; None if the process had ended before.

    Raises:
      TimeoutError: after `TIMEOUT_S`.
    """
    before, partial = newest_save(workdir), unfinished(workdir)
    if moment == "start":
        deadline = time.monotonic() + rng.uniform(0.0, 10.0)  # or at the first save, because short runs end soon
        wait(process, lambda: time.monotonic() > deadline or newest_save(workdir) > before)
    elif moment == "after":
        wait(process, lambda: newest_save(workdir) > before)
        time.sleep(rng.uniform(0.0, 0.6))
    else:
        wait(process, lambda: bool(unfinished(workdir) - partial))
        time.sleep(rng.uniform(0.0, 0.01))
    if process.poll() is not None:
        return None
    process.send_signal(signal.SIGKILL)
    process.wait()
    return sorted(name for name, _ in unfinished(workdir) - partial)


def differences(one: Path, other: Path) -> list[str]:
    """Lists the differences between two finished runs of one config, one line each."""
    lines = []
    runs = [Workdir(one), Workdir(other)]
    summaries = [json.loads(run.summary.read_text()) for run in runs]
    names = [*summaries[0]["networks"]]
    if runs[0].metrics.read_text() != runs[1].metrics.read_text():
        lines.append(runs[0].metrics.name)
    steps = [_steps(run.latest_checkpoints) for run in runs]
    if steps[0] != steps[1]:
        lines.append(f"latest checkpoints: {steps[0]} and {steps[1]}")
    lines += bits("latest", *(restore.load_state(run) for run in (one, other)))
    for name in names:
        steps = [_steps(run.best_checkpoints(name)) for run in runs]
        if steps[0] != steps[1]:
            lines.append(f"best checkpoints of {name}: {steps[0]} and {steps[1]}")
        lines += bits(f"best {name}", *(restore.load_variables(run, name) for run in (one, other)))
    for summary in summaries:
        del summary["seconds"], summary["examples_per_second"]
    if summaries[0] != summaries[1]:
        lines.append(runs[0].summary.name)
    return lines + [f"left behind: {path}" for path in other.rglob("*tmp*")]


def _steps(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def bits(title: str, one: Any, other: Any) -> list[str]:
    """Lists the paths of the arrays of two trees that differ in any bit."""
    leaves = [jax.tree_util.tree_leaves_with_path(tree) for tree in (one, other)]
    if [path for path, _ in leaves[0]] != [path for path, _ in leaves[1]]:
        return [f"{title}: other arrays"]
    pairs = zip(*leaves, strict=True)
    return [
        f"{title}{jax.tree_util.keystr(path)}"
        for (path, a), (_, b) in pairs
        if np.asarray(a).dtype != np.asarray(b).dtype or np.asarray(a).tobytes() != np.asarray(b).tobytes()
    ]


def storm(folder: Path, kills: int, rng: random.Random, environment: Mapping[str, str] | None = None) -> list[str]:
    """Trains one run undisturbed and one with so many kills; lists the faults of the latter, one line each.

    Raises:
      TimeoutError: if a run makes no progress.
    """
    flags = (*FLAGS, f"--config.epochs={1 + kills * SAVES_PER_KILL / 4}", "--config.checkpoint.every=0.25")
    alone, killed = folder / "alone", folder / "killed"
    if start(alone, flags, environment).wait(10 * TIMEOUT_S):
        return ["the undisturbed run failed"]
    moments = [MOMENTS[i % len(MOMENTS)] for i in range(kills)]
    rng.shuffle(moments)
    faults: list[str] = []
    within = newest = 0
    for i, moment in enumerate(moments):
        interrupted = kill(start(killed, flags, environment), killed, moment, rng)
        if interrupted is None:
            return [*faults, f"the run was over before kill {i + 1}"]
        before, newest = newest, newest_save(killed)
        within += bool(interrupted)
        print(
            f"kill {i + 1} ({moment}): newest save {newest}, {', '.join(interrupted) or 'no save'} interrupted",
            flush=True,
        )
        if newest < before:
            faults.append(f"save {before} was lost by kill {i + 1}")
    if within < kills // 3:
        faults.append(f"{within} kills within a save, not {kills // 3}")
    if start(killed, flags, environment).wait(10 * TIMEOUT_S):
        return [*faults, "the killed run failed"]
    print(f"{within} of {kills} kills were within a save")
    return faults + differences(alone, killed)


def prove(doc: str, count: str, experiment: Callable[[Path, int, random.Random], list[str]]) -> None:
    """Runs the command line of an experiment that disturbs a run so many times at random moments.

    Args:
      doc: text for --help.
      count: name of the flag for the number of disturbances, such as 'kills'.
      experiment: takes a new folder, the count and a random generator; returns the faults, one line each.

    Raises:
      SystemExit: if there are faults.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(f"--{count}", type=int, default=6)
    parser.add_argument("--seed", type=int, default=None, help="of the moments; drawn and printed by default")
    options = vars(parser.parse_args())
    seed = random.randrange(10**6) if options["seed"] is None else options["seed"]
    folder = Path(tempfile.mkdtemp(prefix=count))
    print(f"seed {seed}, folder {folder}", flush=True)
    if faults := experiment(folder, options[count], random.Random(seed)):
        sys.exit("\n".join(faults))
    print(f"no fault after {options[count]} {count}")
    shutil.rmtree(folder)


if __name__ == "__main__":
    prove(__doc__ or "", "kills", storm)
