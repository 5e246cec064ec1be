"""Throughput of a whole run beside its bare steps: what logging, fetching and feeding cost.

python experiments/speed/live.py --rounds=5

Both take the same steps of configs/digits.py from the same start, so they are in the same modes; they take turns. A run
writes metrics and TensorBoard's events and prints its table, as `switokd_jax.main` does.
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
from switokd_jax import compilation_cache
from switokd_jax import config as configs
from switokd_jax.cli import config_module
from switokd_jax.data.sampling import stack_batches
from switokd_jax.train import init_state, loop
from switokd_jax.train.run_spec import make_train_step


def bare(config: Any) -> float:
    """Images per second of the steps of a run, and of nothing else."""
    dataset, run = loop.prepare(configs.parse(config))
    log_every = run.config.log.every
    loader = loop.open_loader(run, dataset, dataset.train)
    step = run.distribution.compile(make_train_step(run), has_state=True)
    stacks = stack_batches(
        loader.train_batches(0, run.total_steps), run.max_steps_per_call, 0, lambda step: step % log_every == 0
    )
    calls = [*run.distribution.prefetch_to_device(stacks)]
    state = run.distribution.device_put(init_state.init_state(run))
    for batches in {batches.size: batches for batches in calls}.values():
        step.executable(state, loader.device_data, batches)
    begin = time.perf_counter()
    for batches in calls:
        state, metrics = step.call(state, loader.device_data, batches)
    jax.block_until_ready((state, metrics))
    seconds = time.perf_counter() - begin
    return sum(batches.size * batches.count for batches in calls) / seconds


def live(config: Any) -> float:
    """Images per second of a run, as its summary has it."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        rate: float = loop.train_and_evaluate(config, Path(folder) / "run")["examples_per_second"]
    return rate


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=float, default=4.0)
    options = parser.parse_args()
    compilation_cache.enable()
    config = config_module(ROOT / "configs" / "digits.py").get_config()
    config.epochs = config.eval_every = config.checkpoint.every = options.epochs
    seen = taking_turns({"bare steps": lambda: bare(config), "a whole run": lambda: live(config)}, options.rounds)
    for name, rates in seen.items():
        print(f"{name:12} {statistics.median(rates):6.0f} images/s   ({', '.join(f'{rate:.0f}' for rate in rates)})")
    print(f"ratio        {statistics.median(seen['a whole run']) / statistics.median(seen['bare steps']):6.3f}")


if __name__ == "__main__":
    main()
