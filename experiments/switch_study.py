"""When teachers pause: gap, threshold and distances of SwitOKD over a long run on digits, and what decides.

python experiments/switch_study.py --seeds 0 --jobs=2     # half an hour on two cores
python experiments/switch_study.py --smoke --seeds 0      # two epochs

It writes docs/when_teachers_pause.md. The arms are temperatures 1 and 2, each with and without the second condition
of the public code, that the teacher is closer to the labels than the student (`switokd.require_better_teacher`). The
results are kept in results/switch_study, with quantiles over the steps of each epoch.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1])]

import numpy as np

from experiments.grids import RESULTS, Arm, Setting
from experiments.study import Study, main
from switokd_jax.analysis import runs
from switokd_jax.files import read_json, write_json
from switokd_jax.workdir.metric_writers import MetricsRow

PAGE = Path(__file__).parents[1] / "docs" / "when_teachers_pause.md"
ARMS = {
    f"temperature_{tau}{suffix}": Arm(("method=switokd", f"switokd.temperature={tau}", *flags))
    for suffix, flags in (("", ()), ("_gap_alone", ("switokd.require_better_teacher=False",)))
    for tau in (1, 2)
}
PAIR = "teacher->student"
QUANTILES = (5, 25, 50, 75, 95)  # percent
METRICS = ("gap", "threshold", "student_distance", "teacher_distance")
SHOWN_EPOCHS = (1, 2, 3, 5, 10, 20, 30, 40, 50, 60)
HEAD = """# When teachers pause

<!-- Written by experiments/switch_study.py from results/switch_study; edit the script. -->

SwitOKD pauses a teacher in a step if two conditions hold: the gap G exceeds the threshold δ = d_s - ε d_t, and the
teacher is closer to the labels, d_t < d_s. The second stands in the public code, not in the paper's text, and is the
default here (`switokd.require_better_teacher`). Which of the two decides? The tables have the steps of 60 epochs on
digits (wrn_16_2 teaches wrn_10_1, one seed): medians with 5 and 95 % quantiles, and shares of steps. They are made by

    python experiments/switch_study.py --seeds 0 --jobs=2

**Unless the networks disagree, the threshold decides, and forbids a pause.** Where both are equally far from the
labels, d_s = d_t = d, ε is e^(-1/2) and δ = 0.39 d. New networks predict nearly uniformly: d is close to 2 (1 - 1 /
classes), and G close to 0, far below δ. On digits that is over after two epochs. With 100 classes it lasts: in ten
epochs of CIFAR-100 G is half of δ in the first and never more than three quarters of it in the mean of an epoch, and
SwitOKD is DML there but for a few steps of the first epoch ([short runs](short_runs.md)). In the run of 210 epochs on
a card ([measured](measured.md)), 28 % of the steps up to epoch 100 and 14 % of those up to epoch 200 were expert
steps: that is the same number of steps, so none of the last hundred epochs was one. The distances of that run were
not kept.

**Once they disagree, the second condition decides.** On digits, networks that are wrong on different images soon
differ by more than 0.39 of their distance to the labels, and G exceeds δ in nearly every step. From then on a teacher
pauses whenever it happens to be the better one on the batch: between networks that are about as good, in half of the
steps. While it is paused the student overtakes it on the training images, and it may learn again.

**Without the second condition a teacher does not come back.** It pauses at the first large gaps, in the second epoch.
The student goes on and overtakes it. δ falls with the student's distance, while G stays: it is now the distance to a
teacher that is left behind. So every later step is an expert step, and the student is held back by a teacher of 91 %.

**A temperature of 2 switches the switch off.** Softened distributions stay far from the labels and close to each
other: δ is above G in all but a few steps, and no step of 60 epochs was an expert step. The public code, and the
default here, is temperature 1.

So the share of expert steps says little about the size of the gap. It says how often both networks disagree by more
than the threshold while the teacher is ahead on the batch at hand.
"""


def quantiles(rows: Sequence[MetricsRow]) -> dict[str, Any]:
    """Summarizes the steps of each epoch.

    Returns:
      'epochs': their numbers; by metric its quantiles in each epoch; and for each epoch the shares in percent of steps
      with G above δ ('over_threshold'), with d_t < d_s ('better_teacher') and in expert mode ('expert').
    """
    by_epoch: dict[int, list[MetricsRow]] = {}
    for row in rows:
        by_epoch.setdefault(math.ceil(row["epoch"] - 1e-6), []).append(row)
    result: dict[str, Any] = {"epochs": [*by_epoch], **{name: [] for name in METRICS}}
    shares: dict[str, list[float]] = {"over_threshold": [], "better_teacher": [], "expert": []}
    for steps in by_epoch.values():
        values = {name: np.asarray([float(step[f"{PAIR}/{name}"]) for step in steps]) for name in (*METRICS, "expert")}
        for name in METRICS:
            result[name].append([round(float(value), 4) for value in np.percentile(values[name], QUANTILES)])
        for name, share in (
            ("over_threshold", values["gap"] > values["threshold"]),
            ("better_teacher", values["teacher_distance"] < values["student_distance"]),
            ("expert", values["expert"]),
        ):
            shares[name].append(round(100.0 * float(np.mean(share)), 1))
    return result | shares


def finish(folder: Path) -> list[Path]:
    """Keeps the quantiles of the full runs in a folder, and writes the page; nothing for other runs."""
    kept = RESULTS / "switch_study"
    (kept / "quantiles").mkdir(parents=True, exist_ok=True)
    for run in runs.find_runs([folder]):
        if (kept / f"{run.folder.name}.json").exists():
            write_json(kept / "quantiles" / f"{run.folder.name}.json", quantiles(run.rows("train")))
    if not any((kept / "quantiles").glob("*.json")):
        return []
    PAGE.write_text(page(kept))
    return [PAGE]


def page(kept: Path) -> str:
    """Returns docs/when_teachers_pause.md from a folder of results."""
    parts = [HEAD]
    for arm in ARMS:
        found = sorted((kept / "quantiles").glob(f"switch_study_{arm}_seed*.json"))
        if not found:
            continue
        summaries = [read_json(kept / path.name)["summary"] for path in found]
        top1 = ", ".join(
            f"{name} {np.mean([summary['networks'][name]['final_top1'] for summary in summaries]):.2f} %"
            for name in ("student", "teacher")
        )
        parts += [
            f"## {_title(arm)}\n",
            f"Final test top-1: {top1}.\n",
            _table(read_json(found[0])),
        ]
    return "\n".join(parts)


def _title(arm: str) -> str:
    temperature = f"Temperature {arm.split('_')[1]}"
    return f"{temperature}, the gap alone decides" if arm.endswith("gap_alone") else temperature


def _table(found: Mapping[str, Any]) -> str:
    """Medians of an epoch's steps, with their 5 and 95 % quantiles, and shares of steps; of the first seed."""
    columns = ("epoch", "G", "δ", "d_s", "d_t", "G > δ %", "d_t < d_s %", "expert %")
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    for i, epoch in enumerate(found["epochs"]):
        if epoch in SHOWN_EPOCHS:
            spans = [f"{v[2]:.2f} ({v[0]:.2f} - {v[-1]:.2f})" for v in (found[name][i] for name in METRICS)]
            shares = [f"{found[name][i]:.0f}" for name in ("over_threshold", "better_teacher", "expert")]
            lines.append(f"| {' | '.join([str(epoch), *spans, *shares])} |")
    return "\n".join([*lines, ""])


STUDY = Study(
    title="When teachers pause",
    full=(Setting(name="switch_study", config="configs/digits.py", arms=ARMS, epochs=60, keeps_results=True),),
    smoke=(Setting(name="digits", config="configs/digits.py", arms=ARMS, epochs=2),),
    finish=finish,
)

if __name__ == "__main__":
    main(STUDY, __doc__)
