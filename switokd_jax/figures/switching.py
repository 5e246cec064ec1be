"""Gap against threshold over the steps, with the mode as coloured bands; one panel per gated pair."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from switokd_jax.figures import style

BANDS = 400  # about one for each three pixels of a column of a paper


def draw_switching(lines: Sequence[dict[str, Any]], path: Path) -> Path | None:
    """Draws distillation gap G and threshold delta: each step thin, the running mean bold.

    Where there are more steps than bands fit, a band's colour is the share of its expert steps.

    Args:
      lines: of metrics.jsonl.
      path: the PNG to write.

    Returns:
      The path, or None where no pair switched.
    """
    train = [line for line in lines if line["split"] == "train"]
    pairs = [key.removesuffix("/gap") for key in (train[0] if train else {}) if key.endswith("/gap")]
    if not pairs:
        return None
    figure = Figure(figsize=(8.0, 0.7 + 2.3 * len(pairs)), layout="constrained")
    panels = figure.subplots(len(pairs), 1, squeeze=False, sharex=True)[:, 0]
    for axes, pair in zip(panels, pairs, strict=True):
        _panel(axes, train, pair)
    figure.legend(
        handles=[*panels[0].get_legend_handles_labels()[0], _patch("expert"), _patch("learning")],
        loc="outside upper center",
        ncols=4,
        frameon=False,
        fontsize=8,
    )
    panels[-1].set_xlabel("step")
    return style.save(figure, path)


def _panel(axes: Axes, train: Sequence[dict[str, Any]], pair: str) -> None:
    step = np.asarray([line["step"] for line in train])
    expert = np.asarray([line[f"{pair}/expert"] for line in train], float)
    gap, threshold = (np.asarray([line[f"{pair}/{key}"] for line in train]) for key in ("gap", "threshold"))
    for values, colour, label in (
        (gap, style.shade(style.GAP), "gap G"),
        (threshold, style.ink(), r"threshold $\delta$"),
    ):
        axes.plot(step, values, color=colour, linewidth=0.4, alpha=0.35)
        axes.plot(step, running_mean(values), color=colour, linewidth=1.5, label=label)
    low, high = np.percentile(np.concatenate([gap, threshold]), (0.5, 99.5))
    room = 0.08 * (high - low) or 0.1
    axes.set_ylim(low - room, high + room)
    style.tidy(axes, "", "L1 distance")
    axes.margins(x=0)  # bands reach the edges
    axes.grid(False)
    bins = np.array_split(expert, min(BANDS, len(expert)))
    axes.imshow(
        [[part.mean() for part in bins]],
        cmap=LinearSegmentedColormap.from_list(
            "modes", [style.LEARNING[style.current()], style.EXPERT[style.current()]]
        ),
        vmin=0,
        vmax=1,
        aspect="auto",
        extent=(step[0] - 0.5, step[-1] + 0.5, *axes.get_ylim()),
        interpolation="nearest",
        zorder=0,
    )
    teacher, student = pair.split("->")
    axes.set_title(f"{teacher} \N{RIGHTWARDS ARROW} {student}: {100 * expert.mean():.0f} % expert", fontsize=9)


def running_mean(values: np.ndarray) -> np.ndarray:
    """Mean over about a fiftieth of the run around each step, shorter at the ends."""
    half = max(len(values) // 100, 1)
    total = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    first, last = np.maximum(index - half, 0), np.minimum(index + half + 1, len(values))
    return (total[last] - total[first]) / (last - first)


def _patch(mode: str) -> Patch:
    colour = (style.EXPERT if mode == "expert" else style.LEARNING)[style.current()]
    return Patch(color=colour, label=f"{mode} mode")
