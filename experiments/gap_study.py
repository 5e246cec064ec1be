"""The paper's motivation: what becomes of the student and of the gap between the two as the teacher grows.

python experiments/gap_study.py --smoke --jobs=2
python experiments/gap_study.py --plan

DML is run as SwitOKD that is kept in learning mode: for a pair these are the same losses, and it logs the gap. Besides
the table this draws gap.png: student top-1, and the mean gap of the last epoch, against the size of the teacher.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np

sys.path[:0] = [str(Path(__file__).parents[1])]

from matplotlib.figure import Figure  # noqa: E402

from experiments.grids import ONLINE, Arm, Setting  # noqa: E402
from experiments.study import Study, main  # noqa: E402
from switokd_jax import finished  # noqa: E402
from switokd_jax.figures import style  # noqa: E402

ARMS = {
    "vanilla": ONLINE["vanilla"],
    "dml": Arm(("method=switokd", "switokd.mode=learning")),
    "switokd": Arm(("method=switokd",)),
}


def draw(folder: Path) -> list[Path]:
    """Draws gap.png from the runs in a folder; each point is a mean over seeds, each bar a standard deviation."""
    found: dict[str, dict[int, list[tuple[float, float]]]] = {}
    for run in finished.within([folder]):
        arm = re.sub(r"_seed\d+$", "", run.folder.name).rpartition("_")[2]
        last = [line for line in run.of_split("train") if line["epoch"] > run.summary["epochs"] - 1]
        gaps = [line[key] for line in last for key in line if key.endswith("/gap")]
        size = run.summary["networks"]["teacher"]["parameters"]
        seen = (run.summary["networks"]["student"]["final_top1"], float(np.mean(gaps)) if gaps else np.nan)
        found.setdefault(arm, {}).setdefault(size, []).append(seen)
    figure = Figure(figsize=(8.0, 3.0), layout="constrained")
    panels = figure.subplots(1, 2)
    for arm, colour in style.colours([arm for arm in ARMS if arm in found]).items():
        sizes = sorted(found[arm])
        for i, axes in enumerate(panels):
            values = [np.asarray([pair[i] for pair in found[arm][size]]) for size in sizes]
            if np.isnan(values[0]).any():  # nothing of the kind in the log
                continue
            means, spread = [each.mean() for each in values], [each.std() for each in values]
            axes.errorbar(sizes, means, spread, color=colour, marker="o", markersize=4, capsize=2, label=arm)
    for axes, label in zip(panels, ("student top-1 (%)", "gap G, last epoch"), strict=True):
        style.tidy(axes, "parameters of the teacher", label)
        axes.set_xscale("log")
        axes.margins(x=0.05)
    panels[0].legend(frameon=False, fontsize=8)
    return [style.save(figure, folder / "gap.png")]


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
            flags=(f"networks.teacher.model={teacher}", "epochs=4"),
        )
        for teacher in ("wrn_10_1", "wrn_10_2", "wrn_10_4")
    ),
    finish=draw,
)

if __name__ == "__main__":
    main(STUDY, __doc__)
