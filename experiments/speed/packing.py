"""Several small runs on one device at once: total images/s of threads of one process, of processes, and under vmap.

python experiments/speed/packing.py --counts 1 2 3 4 -- --config=configs/cifar100_short.py --config.data.dir=DIR
python experiments/speed/packing.py --counts 1 2 --steps=8 --rounds=1 -- --config=configs/digits.py   # tiny

Threads and processes are those of `switokd_jax.sweep`: seeds of one config, all at the same time. Their rates are added
up; each is that of its own summary, without start and compilation. A run beside none is the reference. Under vmap one
program holds the states of all runs. There the decision of each run becomes a select: every teacher computes its update
and drops it when it pauses, and convolutions become grouped ones.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT)]

from experiments.speed.our_step import BATCH, LEARNING_EPOCHS, Timed, inputs, make_run_spec, our_config, our_timer
from experiments.speed.turns import taking_turns
from switokd_jax.data import sampling
from switokd_jax.files import read_json, write_json
from switokd_jax.parallel.collectives import Collectives
from switokd_jax.state import TrainState
from switokd_jax.train.run_spec import make_train_step

WAYS = ("threads", "processes")
TEACHER, STUDENT = "resnet14", "resnet8"  # of the pair under vmap


def rate_of_runs(way: str, count: int, flags: Sequence[str]) -> float:
    """Trains so many runs at once through `switokd_jax.sweep`; returns the sum of their images/s."""
    config, *rest = sorted(flags, key=lambda flag: not flag.startswith("--config="))
    share = f"{0.9 / count if way == 'processes' else 0.9:.2f}"  # of a GPU's memory
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "switokd_jax.sweep", config, f"--workdir={folder}", f"--jobs={count}"]
        command += [f"--workers={way}", "--seeds", *map(str, range(count)), "--", *rest, "--config.log.progress=False"]
        environment = {**os.environ, "XLA_PYTHON_CLIENT_MEM_FRACTION": share}
        subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)
        summaries = sorted(Path(folder).glob("*/summary.json"))
        assert len(summaries) == count, summaries
        return float(sum(read_json(path)["examples_per_second"] for path in summaries))


def vmapped(count: int) -> Timed:
    """Compiles one step for the stacked states of so many runs; returns the function that times it."""
    run = make_run_spec(our_config((TEACHER,), (STUDENT,), "float32"))
    state, data, batches = inputs(run)
    step = make_train_step(run)
    batch = jax.tree.map(lambda x: x[0], batches.examples)

    def step_of_one(state: TrainState, data: Any, batch: sampling.Batch) -> Any:
        return step(Collectives(), state, data, batch)

    compiled = jax.jit(jax.vmap(step_of_one, (0, None, None)), donate_argnums=0)
    carry = {"states": jax.tree.map(lambda x: jnp.stack([x] * count), state)}

    def timed(paused: bool, steps: int) -> float:
        first_step = LEARNING_EPOCHS * run.steps_per_epoch if paused else 0
        states = dataclasses.replace(carry["states"], step=jnp.full(count, first_step, jnp.int32))
        jax.block_until_ready(states)
        begin = time.perf_counter()
        for _ in range(steps):
            states, metrics = compiled(states, data, batch)
        jax.block_until_ready((states, metrics))
        seconds = time.perf_counter() - begin
        carry["states"] = states
        return seconds

    return timed


def vmap_table(counts: Sequence[int], steps: int, rounds: int) -> dict[str, float]:
    """Times a pair's step under vmap and alone, in turns; returns the runs' images/s in total, by way and mode."""
    timers = {1: our_timer(our_config((TEACHER,), (STUDENT,), "float32"))[0]}
    timers |= {count: vmapped(count) for count in counts if count > 1}
    contenders = {
        f"vmap {count} {mode}" if count > 1 else f"alone {mode}": functools.partial(timed, paused, steps)
        for count, timed in timers.items()
        for mode, paused in (("learning", False), ("expert", True))
    }
    seconds = taking_turns(contenders, rounds)
    return {
        name: (int(name.split()[1]) if name.startswith("vmap") else 1)
        * BATCH
        * steps
        / statistics.median(seconds[name])
        for name in contenders
    }


def main() -> None:
    """Parses the flags, measures, prints and writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", nargs="+", type=int, default=[1, 2, 3, 4])
    parser.add_argument("--ways", nargs="+", choices=[*WAYS, "vmap"], default=[*WAYS, "vmap"])
    parser.add_argument("--steps", type=int, default=50, help="of a turn under vmap")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, default=Path("runs/packing.json"))
    parser.add_argument("flags", nargs="+", help="of switokd_jax.main, --config among them, after --")
    args = parser.parse_args()
    contenders = {
        f"{way} {count}": functools.partial(rate_of_runs, way, count, args.flags)
        for way in args.ways
        if way in WAYS
        for count in args.counts
    }
    rates = {name: statistics.median(found) for name, found in taking_turns(contenders, args.rounds).items()}
    if "vmap" in args.ways:
        rates |= vmap_table(args.counts, args.steps, args.rounds)
    for name, rate in rates.items():
        print(f"{name:<20}{rate:>10,.0f} images/s")
    args.json.parent.mkdir(parents=True, exist_ok=True)
    write_json(args.json, {"device": jax.devices()[0].device_kind, "images_per_second": rates})


if __name__ == "__main__":
    main()
