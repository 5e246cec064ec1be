"""Writes docs/short_runs.md from the results that the repository keeps, so that no number in it is typed by hand.

python experiments/results_page.py            # after new results in results/
python experiments/results_page.py --check    # exit status 1 if the page is not that of the results
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1])]

from experiments.grids import RESULTS
from switokd_jax.analysis.tables import MeanStd
from switokd_jax.errors import UserError
from switokd_jax.files import read_json

PAGE = Path(__file__).parents[1] / "docs" / "short_runs.md"
HEAD = """# CIFAR-100 in ten epochs

<!-- Written by experiments/results_page.py from results/cifar100_short; edit the script. -->

resnet14 teaches resnet8 on all 50,000 training images, ten epochs in batches of 128, one cosine for all
(`configs/cifar100_short.py`); tested on the 10,000 test images after the last epoch. Each method has its published
defaults; nothing is tuned for a method. Each run is one of

    python experiments/table_cifar.py --settings cifar100_short

which skips those whose result is in `results/cifar100_short`. The file of a run has its config, versions, data
fingerprint and curves.

Mean and standard deviation over seeds. Differences are between runs of one seed: their mean, its standard error, and
the number of seeds. TFLOP counts what training really spent, without the training of a frozen teacher.
"""


@dataclasses.dataclass(frozen=True)
class KeptRun:
    """A finished run, as the repository keeps it.

    Attributes:
      arm: name of the way to train.
      seed: of the run.
      summary: its summary.json.
      epochs: the rows of `metric_writers.evaluation_rows`.
    """

    arm: str
    seed: int
    summary: dict[str, Any]
    epochs: list[dict[str, float]]

    def top1(self, network: str) -> float:
        """Test top-1 of a network after the last epoch, percent."""
        top1: float = self.summary["networks"][network]["final_top1"]
        return top1


def read_runs(folder: Path) -> list[KeptRun]:
    """Reads SETTING_ARM_seedN.json of a folder named SETTING, ordered by arm and seed.

    Raises:
      UserError: if there are none.
    """
    runs = []
    for path in folder.glob(f"{folder.name}_*_seed*.json"):
        arm, _, seed = path.stem.removeprefix(f"{folder.name}_").rpartition("_seed")
        result = read_json(path)
        runs.append(KeptRun(arm, int(seed), result["summary"], result["epochs"]))
    if not runs:
        raise UserError(f"{folder} holds no results; train some first")
    return sorted(runs, key=lambda run: (run.arm, run.seed))


def paired_difference(runs: Sequence[KeptRun], arm: str, other: str, network: str) -> str:
    """Formats the mean of arm - other over the seeds that both have, its standard error, and their number."""
    top1 = {(run.arm, run.seed): run.top1(network) for run in runs}
    seeds = [seed for name, seed in top1 if name == arm and (other, seed) in top1]
    differences = [top1[arm, seed] - top1[other, seed] for seed in seeds]
    if not differences:
        return "-"
    of_seeds = MeanStd(tuple(differences))
    error = "" if of_seeds.std is None else f" ± {of_seeds.std / math.sqrt(len(seeds)):.2f}"
    return f"{of_seeds.mean:+.2f}{error} ({len(seeds)})"


def page(runs: Sequence[KeptRun]) -> str:
    """Returns the page as Markdown."""
    arms = [*dict.fromkeys(run.arm for run in sorted(runs, key=lambda run: run.arm != "vanilla"))]
    rows = []
    for arm in arms:
        of_arm = [run for run in runs if run.arm == arm]
        expert = [100.0 * pair["expert_fraction"] for run in of_arm for pair in run.summary["switch"].values()]
        cells = (
            arm,
            ", ".join(str(run.seed) for run in of_arm),
            *(MeanStd(tuple(run.top1(network) for run in of_arm)).text() for network in ("student", "teacher")),
            *(paired_difference(runs, arm, other, "student") if arm != other else "-" for other in ("vanilla", "dml")),
            MeanStd(tuple(expert)).text(),
            MeanStd(tuple(run.summary["training_flops"] / 1e12 for run in of_arm)).text(),
        )
        rows.append(f"| {' | '.join(cells)} |")
    columns = ("method", "seeds", "student %", "teacher %", "student - vanilla", "student - DML", "expert %", "TFLOP")
    curves = [f"| {arm} | {' | '.join(_curve(runs, arm))} |" for arm in arms]
    epochs = [f"{row['epoch']:g}" for row in runs[0].epochs]
    return "\n".join(
        [
            HEAD,
            f"| {' | '.join(columns)} |",
            f"|{'---|' * len(columns)}",
            *rows,
            "",
            "## The student by epoch",
            "",
            "Test top-1 in percent, the mean over seeds:",
            "",
            f"| method | {' | '.join(epochs)} |",
            f"|{'---|' * (1 + len(epochs))}",
            *curves,
            "",
        ]
    )


def _curve(runs: Sequence[KeptRun], arm: str) -> list[str]:
    """Formats the mean test top-1 of the student after each epoch."""
    curves = [[row["test/student/top1"] for row in run.epochs] for run in runs if run.arm == arm]
    return [f"{statistics.fmean(values):.1f}" for values in zip(*curves, strict=True)]


def main() -> int:
    """Reads the flags; writes the page or compares it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit status 1 if the page is not up to date"
    )
    args = parser.parse_args()
    text = page(read_runs(RESULTS / "cifar100_short"))
    if args.check:
        return int(text != PAGE.read_text())
    PAGE.write_text(text)
    print(f"wrote {PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
