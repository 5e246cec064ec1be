"""Kills one run again and again until it is done, and compares it with a run that was left alone.

python experiments/faults/storm.py --kills=30

A quarter of the kills come while the run starts or goes on from its last save, a quarter some time after a save, and
half are aimed within one: what proves that they hit is the unfinished folder that the dead process leaves. Prints each
kill. Exit status 1 if fewer than a third were within a save, if a save was lost, if a wait took longer than `PATIENCE`,
or if the run that was killed ends with anything else: parameters, statistics, optimizer state, counters (bit for bit),
the lines of metrics.jsonl, the saves that are left, or the summary (but for its times).
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
from switokd_jax.workdir.checkpointer import UNFINISHED

ROOT = Path(__file__).parents[2]
SAVES_PER_KILL = 2  # that the run has; of those to come a kill waits for one or two
PATIENCE = 300.0  # seconds
MOMENTS = ("start", "within", "after", "within")
FLAGS = (
    "--config=configs/digits.py",
    "--config.networks.teacher.model=resnet8",
    "--config.networks.student.model=resnet8",
    "--config.log.tensorboard=False",
    "--config.log.every=5",
)


def start(workdir: Path, flags: Sequence[str], environment: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
    """The command of the run: the same for its first start and for every other one."""
    command = [sys.executable, "-m", "switokd_jax.main", f"--workdir={workdir}", *FLAGS, *flags]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)


def newest_save(workdir: Path) -> int:
    """The step of the newest finished save, 0 without one."""
    folder = workdir / "checkpoints" / "latest"
    return max((int(path.name) for path in folder.glob("*") if path.name.isdigit()), default=0)


def unfinished(workdir: Path) -> set[tuple[str, int]]:
    """Saves under way, or left so by a process that is dead: names and inodes, as the next one takes the same name."""
    found = set()
    for pattern in (f"latest/*{UNFINISHED}*", f"best/*/*{UNFINISHED}*"):
        for path in (workdir / "checkpoints").glob(pattern):
            with contextlib.suppress(FileNotFoundError):  # it is done by now
                found.add((path.name, path.stat().st_ino))
    return found


def wait(
    process: subprocess.Popen[bytes],
    until: Callable[[], bool],
    patience: float = PATIENCE,
    end: signal.Signals = signal.SIGKILL,
) -> None:
    """Until something is so or the process has ended.

    Raises:
      TimeoutError: after `patience` seconds; the process has been ended by this signal.
    """
    begin = time.monotonic()
    while process.poll() is None and not until():
        if time.monotonic() - begin > patience:
            process.send_signal(end)
            process.wait()
            raise TimeoutError(f"nothing happened for {patience:.0f} s")
        time.sleep(0.001)


def kill(process: subprocess.Popen[bytes], workdir: Path, moment: str, chance: random.Random) -> list[str] | None:
    """SIGKILL at a moment of `MOMENTS`, random within it.

    Returns:
      The saves that it broke off; None if the process was done before it.

    Raises:
      TimeoutError: after `PATIENCE`.
    """
    before, left = newest_save(workdir), unfinished(workdir)
    if moment == "start":
        late = time.monotonic() + chance.uniform(0.0, 10.0)  # but a run that saves is under way: short ones end soon
        wait(process, lambda: time.monotonic() > late or newest_save(workdir) > before)
    elif moment == "after":
        wait(process, lambda: newest_save(workdir) > before)
        time.sleep(chance.uniform(0.0, 0.6))
    else:
        wait(process, lambda: bool(unfinished(workdir) - left))
        time.sleep(chance.uniform(0.0, 0.01))
    if process.poll() is not None:
        return None
    process.send_signal(signal.SIGKILL)
    process.wait()
    return sorted(name for name, _ in unfinished(workdir) - left)


def differences(one: Path, other: Path) -> list[str]:
    """What is not the same in two finished runs of one config, a line each."""
    found = []
    summaries = [json.loads((run / "summary.json").read_text()) for run in (one, other)]
    names = [*summaries[0]["networks"]]
    if (one / "metrics.jsonl").read_text() != (other / "metrics.jsonl").read_text():
        found.append("metrics.jsonl")
    for which in ("latest", *(f"best/{name}" for name in names)):
        left = [sorted(path.name for path in (run / "checkpoints" / which).iterdir()) for run in (one, other)]
        if left[0] != left[1]:
            found.append(f"saves in {which}: {left[0]} and {left[1]}")
    found += bits("latest", *(restore.load_state(run) for run in (one, other)))
    for name in names:
        found += bits(f"best {name}", *(restore.load_variables(f"{run}:{name}@best") for run in (one, other)))
    for summary in summaries:
        del summary["seconds"], summary["examples_per_second"]
    if summaries[0] != summaries[1]:
        found.append("summary.json")
    return found + [f"left behind: {path}" for path in other.rglob("*tmp*")]


def bits(title: str, one: Any, other: Any) -> list[str]:
    """The arrays of two trees that differ in a bit, by path."""
    leaves = [jax.tree_util.tree_leaves_with_path(tree) for tree in (one, other)]
    if [path for path, _ in leaves[0]] != [path for path, _ in leaves[1]]:
        return [f"{title}: other arrays"]
    pairs = zip(*leaves, strict=True)
    return [
        f"{title}{jax.tree_util.keystr(path)}"
        for (path, a), (_, b) in pairs
        if np.asarray(a).dtype != np.asarray(b).dtype or np.asarray(a).tobytes() != np.asarray(b).tobytes()
    ]


def storm(folder: Path, kills: int, chance: random.Random, environment: Mapping[str, str] | None = None) -> list[str]:
    """Runs one run alone and one through so many kills; what is wrong with the latter, a line each.

    Raises:
      TimeoutError: if a run does not go on.
    """
    flags = (f"--config.epochs={1 + kills * SAVES_PER_KILL / 4}", "--config.checkpoint.every=0.25")
    alone, killed = folder / "alone", folder / "killed"
    if start(alone, flags, environment).wait(10 * PATIENCE):
        return ["the undisturbed run failed"]
    moments = [MOMENTS[i % len(MOMENTS)] for i in range(kills)]
    chance.shuffle(moments)
    found: list[str] = []
    within = newest = 0
    for i, moment in enumerate(moments):
        broken = kill(start(killed, flags, environment), killed, moment, chance)
        if broken is None:
            return [*found, f"the run was over before kill {i + 1}"]
        before, newest = newest, newest_save(killed)
        within += bool(broken)
        print(f"kill {i + 1} ({moment}): newest save {newest}, {', '.join(broken) or 'no save'} broken off", flush=True)
        if newest < before:
            found.append(f"save {before} was lost by kill {i + 1}")
    if within < kills // 3:
        found.append(f"{within} kills within a save, not {kills // 3}")
    if start(killed, flags, environment).wait(10 * PATIENCE):
        return [*found, "the killed run failed"]
    print(f"{within} of {kills} kills were within a save")
    return found + differences(alone, killed)


def prove(doc: str, count: str, carry_out: Callable[[Path, int, random.Random], list[str]]) -> None:
    """The command around a proof of something that happens so many times at random moments.

    Args:
      doc: what it is, for --help.
      count: what is counted, 'kills' say: the name of the flag.
      carry_out: takes a new folder, the count and a source of chance; answers with what is wrong, a line each.

    Raises:
      SystemExit: if something is wrong.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(f"--{count}", type=int, default=6)
    parser.add_argument("--seed", type=int, default=None, help="of the moments; drawn and printed unless given")
    options = vars(parser.parse_args())
    seed = random.randrange(10**6) if options["seed"] is None else options["seed"]
    folder = Path(tempfile.mkdtemp(prefix=count))
    print(f"seed {seed}, folder {folder}", flush=True)
    if found := carry_out(folder, options[count], random.Random(seed)):
        sys.exit("\n".join(found))
    print(f"the same after {options[count]} {count}, bit for bit")
    shutil.rmtree(folder)


if __name__ == "__main__":
    prove(__doc__ or "", "kills", storm)
