"""Figure `curves`: loss and top-1 of every network of one run over the epochs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from switokd_jax.analysis.runs import Run, columns, is_number
from switokd_jax.figures import style
from switokd_jax.figures.style import Picture
from switokd_jax.workdir.metric_writers import MetricsRow

MAX_MARKERS = 40  # evaluations; the markers of more would overlap


def draw_curves(groups: Mapping[str, Sequence[Run]], folder: Path) -> list[Picture]:
    """Draws the loss on the left and the top-1 on the right.

    The reported split is solid, with markers; training, as the mean of each epoch, is dashed.

    Args:
      groups: runs by label; the figure is of a single run.
      folder: for the PNG.

    Returns:
      One picture; none for several runs, or for a run without steps or evaluations.
    """
    runs = [run for seeds in groups.values() for run in seeds]
    if len(runs) != 1:
        return []
    reported, train = runs[0].rows(runs[0].reported_split), runs[0].rows("train")
    if not reported or not train:
        return []
    names = [name for name in runs[0].networks if len(columns(reported, f"{name}/loss", f"{name}/top1")[0])]
    figure = Figure(figsize=(8.0, 3.2), layout="constrained")
    panels = figure.subplots(1, 2)
    for axes, metric, label in zip(panels, ("loss", "top1"), ("cross-entropy", "top-1 (%)"), strict=True):
        for name, color in style.colors(names).items():
            key = f"{name}/{metric}"
            x, y = columns(reported, "epoch", key)
            marker = "o" if len(x) <= MAX_MARKERS else None
            axes.plot(
                x,
                y,
                color=color,
                linewidth=1.6,
                marker=marker,
                markersize=2.5,
                label=f"{name}, {runs[0].reported_split}",
            )
            # The training loss contains the method's terms; the other does not.
            key = f"{name}/cross_entropy" if metric == "loss" else key
            x, y = epoch_means(train, key)
            axes.plot(x, y, color=color, linewidth=1.0, linestyle="--", alpha=0.8, label=f"{name}, train")
        style.style_axes(axes, "epoch", label)
    panels[0].set_yscale("log")
    panels[0].yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))  # the default is linear for short ranges
    panels[0].yaxis.set_major_formatter("{x:g}")
    panels[0].minorticks_off()
    panels[1].legend(frameon=False, fontsize=8)
    return [Picture(style.save(figure, folder / "curves.png"), "Loss and top-1 over the epochs")]


def epoch_means(train: Sequence[MetricsRow], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Averages a metric over the steps of each epoch.

    Args:
      train: rows of the training split.
      key: name of a metric; rows without it are left out.

    Returns:
      The ends of the epochs, and the means, both [epochs].
    """
    by_epoch = rows_by_epoch([row for row in train if is_number(row.get(key)) and is_number(row.get("epoch"))])
    return np.asarray([*by_epoch]), np.asarray([np.mean([row[key] for row in rows]) for rows in by_epoch.values()])


def rows_by_epoch(train: Sequence[MetricsRow]) -> dict[float, list[MetricsRow]]:
    """Groups rows of the training split by the end of their epoch, in ascending order.

    >>> {end: len(rows) for end, rows in rows_by_epoch([{"epoch": 0.5}, {"epoch": 1.0}, {"epoch": 1.5}]).items()}
    {1.0: 2, 2.0: 1}
    """
    by_epoch: dict[float, list[MetricsRow]] = {}
    for row in sorted(train, key=lambda row: row["epoch"]):
        by_epoch.setdefault(float(np.ceil(row["epoch"])), []).append(row)
    return by_epoch
