"""The paper's motivation: student accuracy and distillation gap as the teacher grows.

python experiments/gap_study.py --smoke --jobs=2
python experiments/gap_study.py --plan
python experiments/gap_study.py --settings gap_short_resnet32 gap_short_wrn_16_2   # ten epochs, kept in results/

The paper's figure 1 has resnet20 under wrn_16_2 to wrn_16_8 on CIFAR-100. Its recipe for resnet20 there is not
published: the rate is 0.1, as the SwitOKD code has it for narrow residual networks on CIFAR-10. The settings
gap_short_TEACHER have resnet8 under larger teachers with the recipe of configs/cifar100_short.py, whose rate was chosen
for resnet14 and resnet8; of resnet14 only DML's runs are here, the others are in results/cifar100_short.

DML runs as SwitOKD that always stays in learning mode: for a pair the losses are the same, and the gap is logged.
Besides the table this draws gap.png, the student's top-1 and the mean gap of the last epoch against the size of the
teacher, and writes these numbers to gap.md, gap.csv and gap.tex.
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

from experiments.grids import OFFLINE, ONLINE, Arm, Setting
from experiments.study import Study, main
from switokd_jax.analysis import runs, tables
from switokd_jax.analysis.tables import MeanStd, Table
from switokd_jax.figures import style

ARMS = {
    "vanilla": ONLINE["vanilla"],
    "dml": Arm(("method=switokd", "switokd.mode=learning")),
    "switokd": Arm(("method=switokd",)),
}
SHORT_ARMS = {**ARMS, "kd": OFFLINE["kd"]}
BAR_SPACING = 1.04  # factor in parameters between the bars of one teacher, which would overlap otherwise
QUANTITIES = {"top1": "student top-1 (%)", "gap": "gap G, last epoch"}


@dataclasses.dataclass(frozen=True)
class Point:
    """An arm with one teacher.

    Attributes:
      arm: its name in `ARMS`.
      teacher: the teacher's model.
      parameters: of that model.
      top1: the student's final top-1, percent, over the seeds.
      gap: the mean gap of the last epoch over the seeds; empty if nothing is distilled.
    """

    arm: str
    teacher: str
    parameters: int
    top1: MeanStd
    gap: MeanStd


def finish(folder: Path) -> list[Path]:
    """Writes gap.png, gap.md, gap.csv and gap.tex from the runs in a folder, and returns their paths."""
    points = read_points(folder)
    rows = tuple((point.arm, point.teacher, point.parameters, point.top1, point.gap) for point in points)
    head = ("arm", "teacher", "teacher's parameters", *QUANTITIES.values())
    table = Table("Student and gap as the teacher grows", head, rows, "Mean and standard deviation of the seeds.")
    return [draw(points, folder / "gap.png"), *tables.write(table, folder / "gap")]


def read_points(folder: Path) -> list[Point]:
    """Reads the results of this study from a folder: in the order of `ARMS`, then by the size of the teacher."""
    results: dict[tuple[str, int, str], list[tuple[float, float | None]]] = {}
    for run in runs.find_runs([folder]):
        arm = re.sub(r"_seed\d+$", "", run.folder.name).rpartition("_")[2]
        if arm not in ARMS:  # a run of something else
            continue
        teacher, student = (run.summary["networks"][name] for name in ("teacher", "student"))
        begin = run.summary["epochs"] - 1
        columns = [runs.columns(run.rows("train"), "epoch", f"{pair}/gap") for pair in run.pairs]
        gaps = [float(gap) for epochs, pair_gaps in columns for gap in pair_gaps[epochs > begin]]
        key = (arm, teacher["parameters"], teacher["model"])
        results.setdefault(key, []).append((student["final_top1"], statistics.fmean(gaps) if gaps else None))
    arms = [*ARMS]
    return [
        Point(
            arm,
            model,
            parameters,
            MeanStd(tuple(top1 for top1, _ in seeds)),
            MeanStd(tuple(gap for _, gap in seeds if gap is not None), digits=3),
        )
        for (arm, parameters, model), seeds in sorted(results.items(), key=lambda item: (arms.index(item[0][0]), item))
    ]


def draw(points: Sequence[Point], path: Path) -> Path:
    """Draws student top-1 and gap against the teacher's size; error bars are standard deviations of the seeds."""
    figure = Figure(figsize=(8.0, 3.0), layout="constrained")
    panels = figure.subplots(1, 2)
    colors = style.colors([*dict.fromkeys(point.arm for point in points)])
    for i, (arm, color) in enumerate(colors.items()):
        offset = BAR_SPACING ** (i - (len(colors) - 1) / 2)
        for axes, quantity in zip(panels, QUANTITIES, strict=True):
            values = {point.parameters: getattr(point, quantity) for point in points if point.arm == arm}
            values = {size: value for size, value in values.items() if value.values}
            axes.errorbar(
                [size * offset for size in values],
                [value.mean for value in values.values()],
                [value.std or 0.0 for value in values.values()],
                color=color,
                marker="o",
                markersize=4,
                capsize=2,
                label=arm,
            )
    for axes, label in zip(panels, QUANTITIES.values(), strict=True):
        style.style_axes(axes, "parameters of the teacher", label)
        axes.set_xscale("log")
        axes.margins(x=0.05)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False, fontsize=8)
    return style.save(figure, path)


STUDY = Study(
    title="A growing teacher",
    full=(
        *(
            Setting(
                name=f"cifar100_{teacher}",
                config="configs/cifar100_wrn16_2_mobilenetv2.py",
                arms=ARMS,
                flags=(
                    f"networks.teacher.model={teacher}",
                    "networks.student.model=resnet20",
                    "networks.student.learning_rate=0.1",
                ),
            )
            for teacher in ("wrn_16_2", "wrn_16_4", "wrn_16_6", "wrn_16_8")
        ),
        *(
            Setting(
                name=f"gap_short_{teacher}",
                config="configs/cifar100_short.py",
                arms=arms,
                flags=(f"networks.teacher.model={teacher}",),
                keeps_results=True,
            )
            for teacher, arms in (
                ("resnet14", {"dml": ARMS["dml"]}),
                ("resnet32", SHORT_ARMS),
                ("wrn_16_2", SHORT_ARMS),
            )
        ),
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
