"""Seconds from the start of `switokd_jax.main` to its first row of metrics, with an empty and a full compilation cache.

python experiments/speed/start.py --times=3 -- --config=configs/cifar100_wrn16_2_mobilenetv2.py --config.data.dir=...
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]


def seconds_to_first_step(flags: list[str], cache: Path, workdir: Path) -> float:
    """Starts a run, waits for its first row of metrics, and kills it."""
    command = [sys.executable, "-m", "switokd_jax.main", f"--workdir={workdir}", *flags]
    command += ["--config.log.every=1", "--config.log.progress=False"]
    begin = time.monotonic()
    with subprocess.Popen(command, cwd=ROOT, env={**os.environ, "XDG_CACHE_HOME": str(cache)}) as process:
        metrics = workdir / "metrics.jsonl"
        while not (metrics.exists() and metrics.stat().st_size):
            if process.poll() is not None:
                sys.exit(f"the run ended with status {process.returncode} before its first step")
            time.sleep(0.02)
        seconds = time.monotonic() - begin
        process.kill()
    return seconds


def main() -> None:
    """Reads the flags, measures, and prints both times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=3, help="number of starts with the full cache")
    parser.add_argument("flags", nargs="+", help="of switokd_jax.main, after --")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        first, *warm = (
            seconds_to_first_step(args.flags, root / "cache", root / str(number)) for number in range(1 + args.times)
        )
    print(f"start to first step: {first:.1f} s with an empty cache, then {statistics.median(warm):.1f} s")
    print(f"(median of {', '.join(f'{seconds:.1f}' for seconds in warm)})")


if __name__ == "__main__":
    main()
