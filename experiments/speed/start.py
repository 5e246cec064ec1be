"""Seconds from starting `switokd_jax.main` to the end of its first step: with an empty compilation cache, then again.

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
    """Starts a run, waits for its first line of metrics and ends it."""
    command = [sys.executable, "-m", "switokd_jax.main", f"--workdir={workdir}", *flags]
    command += ["--config.log.every=1", "--config.log.progress=False"]
    begin = time.monotonic()
    with subprocess.Popen(command, cwd=ROOT, env={**os.environ, "XDG_CACHE_HOME": str(cache)}) as process:
        metrics = workdir / "metrics.jsonl"
        while not (metrics.exists() and metrics.stat().st_size):
            if process.poll() is not None:
                sys.exit(f"the run ended with status {process.returncode} before its first step")
            time.sleep(0.02)
        taken = time.monotonic() - begin
        process.kill()
    return taken


def main() -> None:
    """Prints both times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=3, help="of the second start")
    parser.add_argument("flags", nargs="+", help="of switokd_jax.main, after --")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        first, *again = (
            seconds_to_first_step(options.flags, root / "cache", root / str(number))
            for number in range(1 + options.times)
        )
    print(f"start to first step: {first:.1f} s with an empty cache, then {statistics.median(again):.1f} s")
    print(f"(median of {', '.join(f'{seconds:.1f}' for seconds in again)})")


if __name__ == "__main__":
    main()
