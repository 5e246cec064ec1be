"""Kills one run at random moments until it is done, and compares it with a run that was left alone.

python experiments/faults/storm.py --kills=5

Exit status 1 if anything differs: parameters, statistics, optimizer state, counters (bit for bit), the
lines of metrics.jsonl, the saves that are left, or the summary (but for its times).
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from switokd_jax import saved

ROOT = Path(__file__).parents[2]
NETWORKS = ("teacher", "student")
FLAGS = (
    "--config=configs/digits.py",
    *(f"--config.networks.{name}.model=resnet8" for name in NETWORKS),
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


def kill_after_a_save(process: subprocess.Popen[bytes], workdir: Path, delay: float) -> bool:
    """SIGKILL so many seconds after the process has finished a save; False if it was done by then."""
    before = newest_save(workdir)
    while process.poll() is None and newest_save(workdir) <= before:
        time.sleep(0.01)
    time.sleep(delay)
    if process.poll() is not None:
        return False
    process.send_signal(signal.SIGKILL)
    process.wait()
    return True


def differences(one: Path, other: Path) -> list[str]:
    """What is not the same in two finished runs, a line each."""
    found = []
    if (one / "metrics.jsonl").read_text() != (other / "metrics.jsonl").read_text():
        found.append("metrics.jsonl")
    for which in ("latest", *(f"best/{name}" for name in NETWORKS)):
        left = [sorted(path.name for path in (run / "checkpoints" / which).iterdir()) for run in (one, other)]
        if left[0] != left[1]:
            found.append(f"saves in {which}: {left[0]} and {left[1]}")
    found += _bits("latest", *(saved.read_state(run) for run in (one, other)))
    for name in NETWORKS:
        found += _bits(f"best {name}", *(saved.read_network(f"{run}:{name}@best") for run in (one, other)))
    summaries = [json.loads((run / "summary.json").read_text()) for run in (one, other)]
    for summary in summaries:
        del summary["seconds"], summary["examples_per_second"]
    if summaries[0] != summaries[1]:
        found.append("summary.json")
    return found + [f"left behind: {path}" for path in other.rglob("*tmp*")]


def _bits(title: str, one: Any, other: Any) -> list[str]:
    leaves = [jax.tree_util.tree_leaves_with_path(tree) for tree in (one, other)]
    if [path for path, _ in leaves[0]] != [path for path, _ in leaves[1]]:
        return [f"{title}: other arrays"]
    pairs = zip(*leaves, strict=True)
    return [
        f"{title}{jax.tree_util.keystr(path)}"
        for (path, a), (_, b) in pairs
        if np.asarray(a).dtype != np.asarray(b).dtype or np.asarray(a).tobytes() != np.asarray(b).tobytes()
    ]


def main() -> None:
    """Runs the storm."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=None, help="of the moments; drawn and printed unless given")
    options = parser.parse_args()
    seed = random.randrange(10**6) if options.seed is None else options.seed
    moments = random.Random(seed)
    flags = (f"--config.epochs={4 + options.kills}", "--config.checkpoint.every=0.25")
    folder = Path(tempfile.mkdtemp(prefix="storm"))
    print(f"seed {seed}, folder {folder}", flush=True)
    if start(folder / "alone", flags).wait():
        sys.exit("the undisturbed run failed")
    killed = folder / "killed"
    for kill in range(options.kills):
        if not kill_after_a_save(start(killed, flags), killed, moments.uniform(0.0, 0.6)):
            sys.exit(f"the run was over before kill {kill + 1}: give it more epochs")
        print(f"kill {kill + 1}: the newest save is step {newest_save(killed)}", flush=True)
    if start(killed, flags).wait():
        sys.exit("the killed run failed")
    if found := differences(folder / "alone", killed):
        sys.exit("\n".join(["the killed run differs:", *found]))
    print(f"the same after {options.kills} kills, bit for bit")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
