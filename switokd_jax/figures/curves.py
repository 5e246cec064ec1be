"""Loss and top-1 of every network over the epochs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from switokd_jax.figures import style

MARKED = 40  # evaluations that still show as separate marks


def draw_curves(lines: Sequence[dict[str, Any]], path: Path) -> Path | None:
    """Left the loss, right the top-1: test solid with marks, training (mean of each epoch) dashed.

    Args:
      lines: of metrics.jsonl.
      path: the PNG to write.

    Returns:
      The path, or None where there is nothing to draw.
    """
    test = [line for line in lines if line["split"] == "test"]
    train = [line for line in lines if line["split"] == "train"]
    if not test or not train:
        return None
    names = [key.removesuffix("/loss") for key in test[0] if key.endswith("/loss")]
    figure = Figure(figsize=(8.0, 3.2), layout="constrained")
    panels = figure.subplots(1, 2)
    for axes, metric, label in zip(panels, ("loss", "top1"), ("cross-entropy", "top-1 (%)"), strict=True):
        for name, colour in style.colours(names).items():
            key = f"{name}/{metric}"
            x, y = np.asarray([(line["epoch"], line[key]) for line in test]).T
            marker = "o" if len(x) <= MARKED else None
            axes.plot(x, y, color=colour, linewidth=1.6, marker=marker, markersize=2.5, label=f"{name}, test")
            key = f"{name}/cross_entropy" if metric == "loss" else key
            x, y = epoch_means(train, key)
            axes.plot(x, y, color=colour, linewidth=1.0, linestyle="--", alpha=0.8, label=f"{name}, train")
        style.tidy(axes, "epoch", label)
    panels[0].set_yscale("log")
    panels[0].yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))  # that of a short range is linear
    panels[0].yaxis.set_major_formatter("{x:g}")
    panels[0].minorticks_off()
    panels[1].legend(frameon=False, fontsize=8)
    return style.save(figure, path)


def epoch_means(train: Sequence[dict[str, Any]], key: str) -> tuple[np.ndarray, np.ndarray]:
    """The ends of the epochs, and the mean of a metric over the steps of each."""
    epochs = np.ceil([line["epoch"] for line in train])
    values = np.asarray([line[key] for line in train])
    ends = np.unique(epochs)
    return ends, np.asarray([values[epochs == end].mean() for end in ends])
