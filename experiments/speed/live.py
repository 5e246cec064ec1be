"""Throughput of a complete run beside its bare steps: the cost of logging, fetching metrics and loading data.

python experiments/speed/live.py --rounds=5

Both take the same steps of configs/digits.py from the same initial state, and so switch alike; they alternate. A
complete run writes metrics and TensorBoard events and prints its table, as `switokd_jax.main` does.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT)]

from experiments.speed.turns import taking_turns
from switokd_jax import config as configs
from switokd_jax.cli import config_module, use_compilation_cache
from switokd_jax.train import init_state, loop


def bare(config: Any) -> float:
    """Measures the images per second of the train steps of a run alone."""
    dataset, run = loop.prepare(configs.parse(config))
    with tempfile.TemporaryDirectory() as folder:
        session = loop.open_session(run, dataset, Path(folder))
        stacks = [*session.training(session.train.train_batches(0, run.total_steps), 0)]
        state = run.distribution.device_put(init_state.initial(run))
        for batches in {batches.size: batches for batches in stacks}.values():
            session.step.executable(state, session.train.data, batches)
        begin = time.perf_counter()
        for batches in stacks:
            state, metrics = session.step.call(state, session.train.data, batches)
        jax.block_until_ready((state, metrics))
        seconds = time.perf_counter() - begin
        session.checkpoints.close()
        session.writer.close()
    return sum(batches.size * batches.count for batches in stacks) / seconds


def live(config: Any) -> float:
    """Measures the images per second of a complete run: `examples_per_second` of its summary."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        rate: float = loop.train_and_evaluate(config, Path(folder) / "run")["examples_per_second"]
    return rate


def main() -> None:
    """Reads the flags, measures, and prints the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=float, default=4.0)
    args = parser.parse_args()
    use_compilation_cache()
    config = config_module(ROOT / "configs" / "digits.py").get_config()
    config.epochs = config.eval_every = config.checkpoint.every = args.epochs
    results = taking_turns({"bare steps": lambda: bare(config), "complete run": lambda: live(config)}, args.rounds)
    for name, rates in results.items():
        print(f"{name:12} {statistics.median(rates):6.0f} images/s   ({', '.join(f'{rate:.0f}' for rate in rates)})")
    print(f"ratio        {statistics.median(results['complete run']) / statistics.median(results['bare steps']):6.3f}")


if __name__ == "__main__":
    main()
