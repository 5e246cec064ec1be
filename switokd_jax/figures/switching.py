"""Figure `switching`: gap and threshold over the steps, with the mode as colored bands; one panel for each pair."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from switokd_jax.analysis.runs import Run, columns
from switokd_jax.figures import style
from switokd_jax.figures.style import Picture
from switokd_jax.workdir.metric_writers import MetricsRow

DRAWN = ("expert", "gap", "threshold")  # metrics of a pair
MAX_BANDS = 400  # about one for every three pixels of a column of a paper


def draw_switching(groups: Mapping[str, Sequence[Run]], folder: Path) -> list[Picture]:
    """Draws distillation gap G and threshold delta: each step thin, the running mean bold.

    Where there are more steps than `MAX_BANDS`, the color of a band is the share of its expert steps.

    Args:
      groups: runs that differ in their seed only, by label; the first run of each is drawn.
      folder: for the PNGs.

    Returns:
      A picture for each group that switches.
    """
    pictures = []
    for label, seeds in groups.items():
        train = seeds[0].rows("train")
        pairs = [pair for pair in seeds[0].pairs if len(columns(train, *(f"{pair}/{key}" for key in DRAWN))[0])]
        if not pairs:
            continue
        name = "switching" if len(groups) == 1 else f"switching_{style.slug(label)}"
        experiment = f", {label}" if len(groups) > 1 else ""
        seed = f", seed {seeds[0].config['seed']}" if len(seeds) > 1 else ""
        caption = f"Distillation gap against the adaptive threshold{experiment}{seed}"
        pictures.append(Picture(_draw_pairs(train, pairs, folder / f"{name}.png"), caption))
    return pictures


def _draw_pairs(train: Sequence[MetricsRow], pairs: Sequence[str], path: Path) -> Path:
    figure = Figure(figsize=(8.0, 0.7 + 2.3 * len(pairs)), layout="constrained")
    panels = figure.subplots(len(pairs), 1, squeeze=False, sharex=True)[:, 0]
    for axes, pair in zip(panels, pairs, strict=True):
        _draw_panel(axes, train, pair)
    figure.legend(
        handles=[*panels[0].get_legend_handles_labels()[0], _patch("expert"), _patch("learning")],
        loc="outside upper center",
        ncols=4,
        frameon=False,
        fontsize=8,
    )
    panels[-1].set_xlabel("step")
    return style.save(figure, path)


def _draw_panel(axes: Axes, train: Sequence[MetricsRow], pair: str) -> None:
    step, expert, gap, threshold = columns(train, "step", *(f"{pair}/{key}" for key in DRAWN))
    for values, color, label in (
        (gap, style.themed(style.GAP), "gap G"),
        (threshold, style.text_color(), r"threshold $\delta$"),
    ):
        axes.plot(step, values, color=color, linewidth=0.4, alpha=0.35)
        axes.plot(step, running_mean(values), color=color, linewidth=1.5, label=label)
    low, high = np.percentile(np.concatenate([gap, threshold]), (0.5, 99.5))
    margin = 0.08 * (high - low) or 0.1
    axes.set_ylim(low - margin, high + margin)
    style.style_axes(axes, "", "L1 distance")
    axes.margins(x=0)  # the bands reach the edges
    axes.grid(False)
    bands = np.array_split(expert, min(MAX_BANDS, len(expert)))
    theme = style.current_theme()
    axes.imshow(
        [[band.mean() for band in bands]],
        cmap=LinearSegmentedColormap.from_list("modes", [style.LEARNING[theme], style.EXPERT[theme]]),
        vmin=0,
        vmax=1,
        aspect="auto",
        extent=(step[0] - 0.5, step[-1] + 0.5, *axes.get_ylim()),
        interpolation="nearest",
        zorder=0,
    )
    axes.set_title(f"{style.display_name(pair)}: {100 * expert.mean():.0f} % expert", fontsize=9)


def running_mean(values: np.ndarray) -> np.ndarray:
    """Averages over about a fiftieth of the run around each step, over less at the ends.

    Args:
      values: [steps].

    Returns:
      The means, [steps].
    """
    half = max(len(values) // 100, 1)
    total = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    first, last = np.maximum(index - half, 0), np.minimum(index + half + 1, len(values))
    return (total[last] - total[first]) / (last - first)


def _patch(mode: str) -> Patch:
    color = (style.EXPERT if mode == "expert" else style.LEARNING)[style.current_theme()]
    return Patch(color=color, label=f"{mode} mode")
