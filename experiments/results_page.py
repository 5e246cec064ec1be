"""Writes the tables of the docs and of the README from the results that the repository keeps: none is typed by hand.

python experiments/results_page.py            # after new results in results/
python experiments/results_page.py --check    # exit status 1 if a table is not that of the results

docs/short_runs.md is written whole; in README.md, what stands between the two comments that name this script.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import re
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1])]

from scipy import stats

from experiments.grids import RESULTS
from switokd_jax import sweep
from switokd_jax.analysis.tables import MeanStd
from switokd_jax.errors import UserError
from switokd_jax.files import read_json

ROOT = Path(__file__).parents[1]
PAGE, README = ROOT / "docs" / "short_runs.md", ROOT / "README.md"
SHORT, GAP = "cifar100_short", ("resnet32", "wrn_16_2")
BEGIN, END = "<!-- experiments/results_page.py writes this table -->", "<!-- end of the table -->"
HEAD = """# CIFAR-100 in ten epochs

<!-- Written by experiments/results_page.py from results/; edit the script. -->

resnet14 teaches resnet8 on all 50,000 training images, ten epochs in batches of 128, one cosine for all
(`configs/cifar100_short.py`); tested on the 10,000 test images after the last epoch. Each method has its published
defaults; nothing is tuned for a method. Each run is one of

    python experiments/table_cifar.py --settings cifar100_short

which skips those whose result is in `results/cifar100_short`. The file of a run has its config, versions, data
fingerprint and curves.

Mean and standard deviation over seeds. Differences are between runs of one seed: their mean, its standard error, the
number of seeds and, from three seeds on, the p-value of the paired t-test. TFLOP counts what training really spent,
without the training of a frozen teacher; 'saved' is the part of it that the pauses of a teacher avoided.
"""
GAP_HEAD = """
## A growing teacher

resnet8 under larger teachers, with the same recipe:

    python experiments/gap_study.py --settings gap_short_resnet14 gap_short_resnet32 gap_short_wrn_16_2

DML is SwitOKD that always stays in learning mode, so that its gap is logged; 'gap' is the mean of the last epoch.
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
    """Reads SETTING_ARM_seedN.json of a folder named SETTING, ordered by arm and seed; none if there is no folder."""
    runs = []
    for path in folder.glob(f"{folder.name}_*_seed*.json"):
        arm, _, seed = path.stem.removeprefix(f"{folder.name}_").rpartition("_seed")
        result = read_json(path)
        runs.append(KeptRun(arm, int(seed), result["summary"], result["epochs"]))
    return sorted(runs, key=lambda run: (run.arm != "vanilla", run.arm, run.seed))


def paired_difference(runs: Sequence[KeptRun], arm: str, other: str, network: str = "student") -> str:
    """Formats arm - other over the seeds that both have: mean, standard error, number of seeds, p-value."""
    top1 = {(run.arm, run.seed): run.top1(network) for run in runs}
    seeds = [seed for name, seed in top1 if name == arm and (other, seed) in top1]
    differences = [top1[arm, seed] - top1[other, seed] for seed in seeds]
    if not differences or arm == other:
        return "-"
    of_seeds = MeanStd(tuple(differences))
    error = "" if of_seeds.std is None else f" ± {of_seeds.std / math.sqrt(len(seeds)):.2f}"
    p_value = f", p {stats.ttest_1samp(differences, 0.0).pvalue:.2g}" if len(seeds) > 2 and of_seeds.std else ""
    return f"{of_seeds.mean:+.2f}{error} ({len(seeds)}{p_value})"


def page(runs: Sequence[KeptRun], by_teacher: dict[str, Sequence[KeptRun]]) -> str:
    """Returns docs/short_runs.md.

    Args:
      runs: of the comparison of methods.
      by_teacher: runs with larger teachers, by the teacher's model; those without runs are left out.
    """
    columns = ("method", "seeds", "student %", "teacher %", "student - vanilla", "student - DML", "expert %")
    rows = [(*_scores(of_arm, runs), *_costs(of_arm)) for of_arm in _by_arm(runs)]
    lowest = min(run.top1("student") for run in runs)
    parts = [
        HEAD,
        _markdown((*columns, "TFLOP", "saved %"), rows),
        f"\nThe weakest student of all runs has {lowest:.2f} %.",
        "\n## The student by epoch\n\nTest top-1 in percent, the mean over seeds:\n",
        _epoch_table(runs, {"": "test/student/top1"}, digits=1),
    ]
    switching = [run for run in runs if run.summary["switch"]]
    if switching:
        names = {"expert": "expert steps", "gap": "G", "threshold": "δ", "student_distance": "d_s"}
        metrics = {f" {label}": f"train/teacher->student/{key}" for key, label in names.items()}
        metrics[" d_t"] = "train/teacher->student/teacher_distance"
        parts += [
            "\n## The switch by epoch\n\nMeans over the steps of the epoch and over seeds; of expert steps, their "
            "share:\n",
            _epoch_table(switching, metrics, digits=3),
        ]
    if any(by_teacher.values()):
        head = ("teacher", *columns[:-1], "gap", columns[-1])
        gap_rows = [
            (teacher, *_gap_cells(of_arm, of_teacher))
            for teacher, of_teacher in by_teacher.items()
            for of_arm in _by_arm(of_teacher)
        ]
        parts += [GAP_HEAD, _markdown((*head, "TFLOP", "saved %"), gap_rows)]
    return "\n".join([*parts, ""])


def readme_table(runs: Sequence[KeptRun]) -> str:
    """Returns the table of the README."""
    columns = ("method", "seeds", "student %", "teacher %", "student - vanilla", "student - DML", "expert %")
    return _markdown(columns, [_scores(of_arm, runs) for of_arm in _by_arm(runs)])


def replace_table(text: str, table: str) -> str:
    """Returns a text with another table between the comments `BEGIN` and `END`.

    Raises:
      UserError: if it lacks them.
    """
    replaced, count = re.subn(
        f"(?<={re.escape(BEGIN)}\n).*?(?={re.escape(END)})", lambda _: f"\n{table}\n\n", text, flags=re.DOTALL
    )
    if count != 1:
        raise UserError(f"README.md needs the line {BEGIN!r} once, and after it {END!r}")
    return replaced


def _by_arm(runs: Sequence[KeptRun]) -> list[list[KeptRun]]:
    return [[run for run in runs if run.arm == arm] for arm in dict.fromkeys(run.arm for run in runs)]


def _scores(of_arm: Sequence[KeptRun], runs: Sequence[KeptRun]) -> tuple[str, ...]:
    """The cells of an arm, which is compared with others among `runs`."""
    arm = of_arm[0].arm
    return (
        arm,
        ", ".join(str(run.seed) for run in of_arm),
        *(_mean_std(run.top1(network) for run in of_arm) for network in ("student", "teacher")),
        *(paired_difference(runs, arm, other) for other in ("vanilla", "dml")),
        _text(sweep.expert_share([run.summary for run in of_arm])),
    )


def _costs(of_arm: Sequence[KeptRun]) -> tuple[str, ...]:
    summaries = [run.summary for run in of_arm]
    flops = _mean_std(summary["training_flops"] / 1e12 for summary in summaries)
    return flops, _text(sweep.saved_share(summaries))


def _gap_cells(of_arm: Sequence[KeptRun], runs: Sequence[KeptRun]) -> tuple[str, ...]:
    gaps = [run.epochs[-1].get("train/teacher->student/gap") for run in of_arm]
    *scores, expert = _scores(of_arm, runs)
    return (*scores, MeanStd(tuple(gap for gap in gaps if gap is not None), digits=3).text(), expert, *_costs(of_arm))


def _epoch_table(runs: Sequence[KeptRun], metrics: dict[str, str], digits: int) -> str:
    """A row for each arm and metric, which are named by label, and a column for each epoch."""
    epochs = [f"{row['epoch']:g}" for row in runs[0].epochs]
    rows = []
    for of_arm in _by_arm(runs):
        for label, metric in metrics.items():
            curves = [[row[metric] for row in run.epochs] for run in of_arm]
            means = [statistics.fmean(values) for values in zip(*curves, strict=True)]
            rows.append((f"{of_arm[0].arm}{label}", *(f"{mean:.{digits}f}" for mean in means)))
    return _markdown(("method", *epochs), rows)


def _markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}", *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join(lines)


def _mean_std(values: Any) -> str:
    return MeanStd(tuple(values)).text()


def _text(cell: Any) -> str:
    return "-" if cell is None else cell.text()


def main() -> int:
    """Reads the flags; writes the tables or compares them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit status 1 if a table is not up to date"
    )
    args = parser.parse_args()
    runs = read_runs(RESULTS / SHORT)
    if not runs:
        raise UserError(f"{RESULTS / SHORT} holds no results; train some first")
    dml = read_runs(RESULTS / "gap_short_resnet14")
    shared = [run for run in runs if run.arm in ("vanilla", "switokd", "kd")]
    by_teacher: dict[str, Sequence[KeptRun]] = {"resnet14": sorted([*shared, *dml], key=lambda run: run.arm)}
    larger = {teacher: read_runs(RESULTS / f"gap_short_{teacher}") for teacher in GAP}
    texts = {
        PAGE: page(runs, by_teacher | larger if dml or any(larger.values()) else {}),
        README: replace_table(README.read_text(), readme_table(runs)),
    }
    if args.check:
        return int(any(not path.exists() or path.read_text() != text for path, text in texts.items()))
    for path, text in texts.items():
        path.write_text(text)
        print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
