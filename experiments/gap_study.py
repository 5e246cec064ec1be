"""The paper's motivation: what becomes of the student and of the gap between the two as the teacher grows.

python experiments/gap_study.py --smoke --jobs=2
python experiments/gap_study.py --plan

DML is run as SwitOKD that is kept in learning mode: for a pair these are the same losses, and it logs the gap. Besides
the table this draws gap.png, student top-1 and the mean gap of the last epoch against the size of the teacher, and
writes its numbers as gap.md, gap.csv and gap.tex.
"""

from __future__ import annotations

import dataclasses
import re
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1])]

from matplotlib.figure import Figure

from experiments.grids import ONLINE, Arm, Setting
from experiments.study import Study, main
from switokd_jax.analysis import runs, tables
from switokd_jax.analysis.tables import MeanStd, Table
from switokd_jax.figures import style

ARMS = {
    "vanilla": ONLINE["vanilla"],
    "dml": Arm(("method=switokd", "switokd.mode=learning")),
    "switokd": Arm(("method=switokd",)),
}
ARMS_BESIDE = 1.04  # bars of one size of the teacher stand beside each other: its parameters times powers of this
SHOWN = {"top1": "student top-1 (%)", "gap": "gap G, last epoch"}


@dataclasses.dataclass(frozen=True)
class Point:
    """An arm with one teacher: the teacher's model and parameters, and a value for each seed."""

    arm: str
    teacher: str
    parameters: int
    top1: MeanStd
    gap: MeanStd


def finish(folder: Path) -> list[Path]:
    """Writes gap.png, and what it shows as gap.md, gap.csv and gap.tex, from the runs in a folder."""
    points = measured(folder)
    rows = tuple((point.arm, point.teacher, point.parameters, point.top1, point.gap) for point in points)
    head = ("arm", "teacher", "teacher's parameters", *SHOWN.values())
    table = Table("Student and gap as the teacher grows", head, rows, "Mean and standard deviation of the seeds.")
    return [draw(points, folder / "gap.png"), *tables.write(table, folder / "gap")]


def measured(folder: Path) -> list[Point]:
    """Every arm in the order of ARMS, its teachers by size. No gap is logged where nothing is distilled."""
    found: dict[tuple[str, int, str], list[tuple[float, float | None]]] = {}
    for run in runs.find_runs([folder]):
        arm = re.sub(r"_seed\d+$", "", run.folder.name).rpartition("_")[2]
        if arm not in ARMS:  # nothing of this study
            continue
        teacher, student = (run.summary["networks"][name] for name in ("teacher", "student"))
        last = [line for line in run.of_split("train") if line["epoch"] > run.summary["epochs"] - 1]
        gaps = [line[key] for line in last for key in line if key.endswith("/gap")]
        seen = (student["final_top1"], statistics.fmean(gaps) if gaps else None)
        found.setdefault((arm, teacher["parameters"], teacher["model"]), []).append(seen)
    return [
        Point(
            arm,
            model,
            parameters,
            MeanStd(tuple(top1 for top1, _ in seeds)),
            MeanStd(tuple(gap for _, gap in seeds if gap is not None), digits=3),
        )
        for (arm, parameters, model), seeds in sorted(found.items(), key=lambda item: ([*ARMS].index(item[0][0]), item))
    ]


def draw(points: Sequence[Point], path: Path) -> Path:
    """Draws student top-1 and gap against the teacher's size; a bar is a standard deviation of the seeds."""
    figure = Figure(figsize=(8.0, 3.0), layout="constrained")
    panels = figure.subplots(1, 2)
    colours = style.colours([*dict.fromkeys(point.arm for point in points)])
    for place, (arm, colour) in enumerate(colours.items()):
        beside = ARMS_BESIDE ** (place - (len(colours) - 1) / 2)
        for axes, value in zip(panels, SHOWN, strict=True):
            known = {point.parameters: getattr(point, value) for point in points if point.arm == arm}
            spreads = {size: each for size, each in known.items() if each.values}
            axes.errorbar(
                [size * beside for size in spreads],
                [each.mean for each in spreads.values()],
                [each.deviation or 0.0 for each in spreads.values()],
                color=colour,
                marker="o",
                markersize=4,
                capsize=2,
                label=arm,
            )
    for axes, label in zip(panels, SHOWN.values(), strict=True):
        style.tidy(axes, "parameters of the teacher", label)
        axes.set_xscale("log")
        axes.margins(x=0.05)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False, fontsize=8)
    return style.save(figure, path)


STUDY = Study(
    title="A growing teacher",
    full=tuple(
        Setting(
            name=f"cifar100_{teacher}",
            config="configs/cifar100_wrn16_2_mobilenetv2.py",
            arms=ARMS,
            flags=(f"networks.teacher.model={teacher}",),
        )
        for teacher in ("wrn_16_1", "wrn_16_2", "wrn_16_4", "wrn_16_8")
    ),
    smoke=tuple(
        Setting(
            name=f"digits_{teacher}",
            config="configs/digits.py",
            arms=ARMS,
            flags=(f"networks.teacher.model={teacher}",),
            epochs=5,
        )
        for teacher in ("wrn_10_1", "wrn_10_2", "wrn_10_4")
    ),
    finish=finish,
)

if __name__ == "__main__":
    main(STUDY, __doc__)
