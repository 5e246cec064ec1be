"""Figure `other_metrics`: a panel for each scalar metric that a user's own method, or step, adds to metrics.jsonl."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from switokd_jax.analysis.runs import Run
from switokd_jax.figures.compare import Curve, Groups, Measure, draw_measure
from switokd_jax.figures.curves import epoch_means
from switokd_jax.figures.style import Picture
from switokd_jax.switching import Switch

# The built-in metrics. Other figures show those of them that are worth a figure.
ROW_FIELDS = ("split", "epoch", "step")
NETWORK_METRICS = ("loss", "cross_entropy", "distillation", "top1", "top5", "class_top1", "learning_rate", "updates")
PAIR_METRICS = Switch._fields


def draw_other_metrics(groups: Groups, folder: Path) -> list[Picture]:
    """Draws the metrics that are not built in: means of each epoch for training, else the value of each evaluation.

    Args:
      groups: runs by label.
      folder: for the PNGs.

    Returns:
      As `compare.draw_accuracy`; none if all metrics are built in.
    """
    sources = {
        f"{key}, {split}": (split, key)
        for seeds in groups.values()
        for run in seeds
        for split in ("train", "validation", "test")
        for key in other_metrics(run, split)
    }

    def curve(run: Run, name: str) -> Curve | None:
        split, key = sources[name]
        rows = [row for row in run.rows(split) if _is_number(row.get(key))]
        if not rows:
            return None
        if split == "train":
            return epoch_means(rows, key)
        return np.asarray([row["epoch"] for row in rows]), np.asarray([row[key] for row in rows], float)

    measure = Measure("other_metrics", "Other metrics over the epochs", "epoch", "", curve, title="{}")
    return draw_measure(groups, [*sources], measure, folder)


def other_metrics(run: Run, split: str) -> list[str]:
    """Returns the names of the numbers in the rows of a split that are not built-in metrics, in their order."""
    built_in = {
        *ROW_FIELDS,
        *(f"{name}/{metric}" for name in run.networks for metric in NETWORK_METRICS),
        *(f"{pair}/{metric}" for pair in run.pairs for metric in PAIR_METRICS),
    }
    numbers = dict.fromkeys(key for row in run.rows(split) for key, value in row.items() if _is_number(value))
    return [key for key in numbers if key not in built_in]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)
