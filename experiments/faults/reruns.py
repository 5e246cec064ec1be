"""Starts one run again and again, each time in a new folder, and compares the bits that the starts end with.

python experiments/faults/reruns.py --times=3 -- --config=configs/digits.py --config.epochs=2

Does so with config.deterministic off and on, and prints how many starts differ from the first one and how fast they
are. Exit status 1 if starts differ that are said to be the same.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT)]

from experiments.faults.storm import differences


def finish(folder: Path, flags: Sequence[str], times: int) -> list[Path]:
    """The workdirs of so many starts, one after another.

    Raises:
      CalledProcessError: if one fails.
    """
    workdirs = [folder / str(i) for i in range(times)]
    for workdir in workdirs:
        command = [sys.executable, "-m", "switokd_jax.main", *flags, f"--workdir={workdir}"]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return workdirs


def compare(workdirs: Sequence[Path]) -> tuple[int, float]:
    """How many starts differ from the first, and the median of their images/s."""
    rates = [json.loads((one / "summary.json").read_text())["examples_per_second"] for one in workdirs]
    return sum(bool(differences(workdirs[0], other)) for other in workdirs[1:]), statistics.median(rates)


def main() -> None:
    """Runs and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("flags", nargs="+", help="of switokd_jax.main, after --")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="reruns"))
    for way in (False, True):
        flags = [*options.flags, f"--config.deterministic={way}"]
        differ, rate = compare(finish(folder / str(way), flags, options.times))
        print(f"deterministic={way}: {differ} of {options.times - 1} differ, {rate:.0f} images/s", flush=True)
    shutil.rmtree(folder)
    if differ:
        sys.exit(1)


if __name__ == "__main__":
    main()
