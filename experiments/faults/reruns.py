"""Starts one run again and again, each time in a new folder, and compares the bits that the starts end with.

python experiments/faults/reruns.py --times=3 -- --config=configs/digits.py --config.epochs=2

Does so with config.deterministic off and on, and prints how many starts differ from the first one and their speed. Exit
status 1 if starts with config.deterministic on differ.
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
from switokd_jax.workdir.layout import Workdir


def finish(folder: Path, flags: Sequence[str], times: int) -> list[Path]:
    """Trains so many runs, one after another, and returns their workdirs.

    Raises:
      CalledProcessError: if one fails.
    """
    workdirs = [folder / str(i) for i in range(times)]
    for workdir in workdirs:
        command = [sys.executable, "-m", "switokd_jax.main", *flags, f"--workdir={workdir}"]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return workdirs


def compare(workdirs: Sequence[Path]) -> tuple[int, float]:
    """Returns how many runs differ from the first, and the median of their images/s."""
    rates = [json.loads(Workdir(workdir).summary.read_text())["examples_per_second"] for workdir in workdirs]
    return sum(bool(differences(workdirs[0], other)) for other in workdirs[1:]), statistics.median(rates)


def main() -> None:
    """Parses the flags, trains and prints the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("flags", nargs="+", help="of switokd_jax.main, after --")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="reruns"))
    for deterministic in (False, True):
        flags = [*options.flags, f"--config.deterministic={deterministic}"]
        num_different, rate = compare(finish(folder / str(deterministic), flags, options.times))
        print(f"{deterministic=}: {num_different} of {options.times - 1} differ, {rate:.0f} images/s", flush=True)
    shutil.rmtree(folder)
    if num_different:
        sys.exit(1)


if __name__ == "__main__":
    main()
