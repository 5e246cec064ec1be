"""Starts two trainings in one workdir at the same moment, again and again: exactly one must train.

python experiments/faults/double_starts.py --starts=10

Exit status 1 if both or none train, if the other does not name the first, or if a line of metrics.jsonl is written
twice.
"""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2])]

from experiments.faults import storm
from switokd_jax.workdir.layout import Workdir
from switokd_jax.workdir.metric_writers import read_metrics

FLAGS = (*storm.FLAGS, "--config.epochs=1")


def start_twice(workdir: Path, pause: float) -> list[str]:
    """Starts two processes with a pause between them; returns the faults."""
    command = [sys.executable, "-m", "switokd_jax.main", f"--workdir={workdir}", *FLAGS]
    processes = []
    for _ in range(2):
        processes.append(
            subprocess.Popen(command, cwd=storm.ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        )
        time.sleep(pause)
    ends = [(process.pid, *process.communicate(timeout=storm.TIMEOUT_S), process.returncode) for process in processes]
    trained = [pid for pid, _, _, status in ends if status == 0]
    if len(trained) != 1:
        return [f"{len(trained)} of two trained: {[err[-300:] for _, _, err, _ in ends]}"]
    faults = [
        f"the other says: {err[-500:]}"
        for _, _, err, status in ends
        if status and (status != 1 or f"is in use by process {trained[0]} on" not in err)
    ]
    steps = [(row["split"], row["step"]) for row in read_metrics(Workdir(workdir).metrics)]
    return faults + ["a line of metrics.jsonl is there twice"] * (len(steps) != len({*steps}))


def run_experiment(folder: Path, count: int, rng: random.Random) -> list[str]:
    """Starts so many pairs; returns the faults, one line each."""
    faults = []
    for i in range(count):
        pause = rng.choice((0.0, rng.uniform(0.0, 3.0)))
        found = start_twice(folder / str(i), pause)
        print(f"{i + 1:3} {pause:.2f} s apart: {'; '.join(found) or 'one of two trained'}", flush=True)
        faults += found
    return faults


if __name__ == "__main__":
    storm.prove(__doc__ or "", "starts", run_experiment)
