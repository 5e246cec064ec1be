"""Figures of runs side by side: top-1 over epochs, the share of expert steps, and top-1 against training cost.

A few experiments share a panel for each network or pair. If there are more than one panel can tell apart, each
experiment has its own panel, with the others in gray in the background.
"""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from switokd_jax.analysis.runs import Run, columns, is_number
from switokd_jax.figures import style
from switokd_jax.figures.curves import rows_by_epoch
from switokd_jax.figures.style import Picture
from switokd_jax.metrics import expert_share_of_rows
from switokd_jax.models.flops import training_flops, unit

Groups = Mapping[str, Sequence[Run]]
"""Runs that differ in their seed only, by the label of their experiment."""
Curve = tuple[np.ndarray, np.ndarray]
"""x and y, both [points]."""
PANELS_PER_ROW, SMALL_PANELS_PER_ROW = 3, 4
MAX_TITLE_LENGTH = 40  # characters in a line above a panel


@dataclasses.dataclass(frozen=True)
class Measure:
    """The quantity that a figure shows.

    Attributes:
      stem: of the file's name.
      caption: of the picture.
      xlabel, ylabel: of the axes; a '{}' in the latter is the name of the panel's network or pair.
      curve: returns the curve of a run for one such name; None if the run has none.
      mark_end: whether the last point has a marker, because the lines end at different x.
      title: of a panel; a '{}' is its name. For names too long for the side of a panel.
    """

    stem: str
    caption: str
    xlabel: str
    ylabel: str
    curve: Callable[[Run, str], Curve | None]
    mark_end: bool = False
    title: str = ""


def draw_accuracy(groups: Groups, folder: Path) -> list[Picture]:
    """Draws the top-1 of every network on the reported split over the epochs.

    Lines are means of the seeds, with a band of one standard deviation.

    Args:
      groups: at least two runs; a single one has `curves`.
      folder: for the PNGs.

    Returns:
      One picture for a few experiments, one for each network for many, and none if there is nothing to draw.
    """
    if sum(len(seeds) for seeds in groups.values()) < 2:
        return []
    measure = Measure("accuracy", "Top-1 over the epochs", "epoch", "{} top-1 (%)", _accuracy)
    return draw_measure(groups, _union(run.networks for run in _runs(groups)), measure, folder)


def draw_expert_shares(groups: Groups, folder: Path) -> list[Picture]:
    """Draws the share of expert steps in each epoch by pair, with bands as in `draw_accuracy`."""
    measure = Measure(
        "expert_share", "Expert steps over the epochs", "epoch", "{} expert steps (%)", expert_share_curve
    )
    return draw_measure(groups, _union(run.pairs for run in _runs(groups)), measure, folder)


def draw_costs(groups: Groups, folder: Path) -> list[Picture]:
    """Draws the top-1 of every network on the reported split against the cost of training up to then.

    The cost is in floating-point operations; a step that pauses a network counts without its backward pass. Bands
    are those of `draw_accuracy`.
    """
    runs = [run for run in _runs(groups) if "training_flops" in run.summary]
    if not runs:
        return []
    unit_name, unit_size = unit(max(run.summary["training_flops"] for run in runs))

    def curve(run: Run, name: str) -> Curve | None:
        if name not in run.networks or "training_flops" not in run.summary:
            return None
        flops, top1 = cumulative_flops(run, f"{name}/top1")
        return (flops / unit_size, top1) if len(flops) else None

    caption, xlabel = "Top-1 against the training that it cost", f"training cost ({unit_name})"
    measure = Measure("cost", caption, xlabel, "{} top-1 (%)", curve, mark_end=True)
    return draw_measure(groups, _union(run.networks for run in runs), measure, folder)


def expert_share_curve(run: Run, pair: str) -> Curve | None:
    """Returns the ends of the epochs and the percentage of expert steps in each; None if the run has no such pair."""
    rows = [row for row in run.rows("train") if is_number(row.get(f"{pair}/expert")) and is_number(row.get("epoch"))]
    if pair not in run.pairs or not rows:
        return None
    by_epoch = rows_by_epoch(rows)
    shares = [100.0 * expert_share_of_rows(epoch, pair) for epoch in by_epoch.values()]
    return np.asarray([*by_epoch]), np.asarray(shares)


def cumulative_flops(run: Run, metric: str = "step") -> tuple[np.ndarray, np.ndarray]:
    """Returns the floating-point operations of training up to each evaluation, and a metric, [evaluations] each."""
    examples_per_epoch = run.summary["examples"] / run.summary["epochs"]
    keys = ("step", "epoch", metric, *(f"{name}/updates" for name in run.networks))
    steps, epochs, values, *updates = columns(run.rows(run.reported_split), *keys)
    flops = []
    for step, epoch, *counts in zip(steps, epochs, *updates, strict=True):
        networks = {
            name: {**network, "updates": count}
            for (name, network), count in zip(run.summary["networks"].items(), counts, strict=True)
        }
        flops.append(training_flops(networks, step, epoch * examples_per_epoch))
    return np.asarray(flops), values


def _accuracy(run: Run, name: str) -> Curve | None:
    epochs, top1 = columns(run.rows(run.reported_split), "epoch", f"{name}/top1")
    return (epochs, top1) if len(epochs) else None


def draw_measure(groups: Groups, names: Sequence[str], measure: Measure, folder: Path) -> list[Picture]:
    """Draws one quantity for several names.

    Args:
      groups: runs by label.
      names: of networks, pairs or metrics; one panel each.
      measure: the quantity.
      folder: for the PNGs.

    Returns:
      As `draw_accuracy`.
    """
    has_seeds = any(len(seeds) > 1 for seeds in groups.values())
    bands = "; bands are one standard deviation of the seeds" if has_seeds else ""
    curves = {name: _curves(groups, name, measure) for name in names}
    curves = {name: by_label for name, by_label in curves.items() if by_label}
    if not curves:
        return []
    if len(_union(curves.values())) <= style.MAX_LINES_PER_PANEL:
        return [Picture(_shared_panels(curves, measure, folder / f"{measure.stem}.png"), measure.caption + bands)]
    return [
        Picture(
            _small_multiples(by_label, name, measure, folder / f"{measure.stem}_{style.slug(name)}.png"),
            f"{measure.caption}, {style.display_name(name)}{bands}",
        )
        for name, by_label in curves.items()
    ]


def _curves(groups: Groups, name: str, measure: Measure) -> dict[str, list[Curve]]:
    """Returns the curves of the seeds by label, of experiments that have some."""
    by_label = {
        label: [curve for run in seeds if (curve := measure.curve(run, name))] for label, seeds in groups.items()
    }
    return {label: curves for label, curves in by_label.items() if curves and all(len(x) for x, _ in curves)}


def _shared_panels(curves: Mapping[str, Mapping[str, Sequence[Curve]]], measure: Measure, path: Path) -> Path:
    """Draws a panel for each name, with a line and its band for each experiment."""
    columns = min(len(curves), PANELS_PER_ROW)
    rows = -(-len(curves) // columns)
    figure = Figure(figsize=(max(2.9 * columns, 4.6), 0.35 + 2.7 * rows), layout="constrained")
    panels = [*figure.subplots(rows, columns, squeeze=False).flat]
    colors = style.colors(_union(curves.values()))
    for axes, (name, by_label) in zip(panels, curves.items(), strict=False):
        for label, seeds in by_label.items():
            plot_mean_std(axes, seeds, colors[label], label, measure.mark_end)
        _label_axes(axes, measure.xlabel, measure.ylabel.format(style.display_name(name)))
        title = textwrap.wrap(measure.title.format(style.display_name(name)), MAX_TITLE_LENGTH)
        axes.set_title("\n".join(title), fontsize=8)
    for axes in panels[len(curves) :]:
        axes.remove()
    handles = {label: line for axes in panels for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend([*handles.values()], [*handles], loc="outside upper center", ncols=4, frameon=False, fontsize=8)
    return style.save(figure, path)


def _small_multiples(curves: Mapping[str, Sequence[Curve]], name: str, measure: Measure, path: Path) -> Path:
    """Draws a panel for each experiment, all with the same axes."""
    columns = min(len(curves), SMALL_PANELS_PER_ROW)
    rows = -(-len(curves) // columns)
    figure = Figure(figsize=(2.3 * columns, 0.3 + 1.7 * rows), layout="constrained")
    panels = [*figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).flat]
    for axes, (label, seeds) in zip(panels, curves.items(), strict=False):
        for other, others_seeds in curves.items():
            if other != label:
                color = style.BACKGROUND_LINE[style.current_theme()]
                axes.plot(*mean_std(others_seeds)[:2], color=color, linewidth=0.6)
        plot_mean_std(axes, seeds, style.themed(style.NETWORKS[0]), label, measure.mark_end)
        axes.set_title(label, fontsize=8, pad=3)
        _label_axes(axes, measure.xlabel, "")
        axes.set(xlabel="", ylabel="")
        axes.tick_params(labelsize=7)
    for i, axes in enumerate(panels):
        # Shared axes have tick labels in the last row only, where some columns may have no panel.
        axes.tick_params(labelbottom=i + columns >= len(curves))
        if i >= len(curves):
            axes.remove()
    figure.supxlabel(measure.xlabel, fontsize=9)
    figure.supylabel((measure.ylabel or measure.title).format(style.display_name(name)), fontsize=9)
    return style.save(figure, path)


def _label_axes(axes: Axes, xlabel: str, ylabel: str) -> None:
    style.style_axes(axes, xlabel, ylabel)
    axes.locator_params(axis="x", nbins=5)


def plot_mean_std(axes: Axes, curves: Sequence[Curve], color: str, label: str, mark_end: bool) -> None:
    """Plots the mean of several curves and a band of one standard deviation around it."""
    x, mean, std = mean_std(curves)
    axes.plot(x, mean, color=color, linewidth=1.5, label=label)
    if len(curves) > 1:
        axes.fill_between(x, mean - std, mean + std, color=color, alpha=0.18, linewidth=0)
    if mark_end or len(x) == 1:
        axes.plot(x[-1:], mean[-1:], color=color, marker="o", markersize=4)


def mean_std(curves: Sequence[Curve]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Averages curves point by point, up to the end of the shortest.

    Returns:
      Mean x, mean y and the sample standard deviation of y (0 for a single curve), all [points].

    >>> x, mean, std = mean_std([(np.array([1.0, 2.0]), np.array([10.0, 20.0])), (np.array([1.0]), np.array([14.0]))])
    >>> x.tolist(), mean.tolist(), std.round(3).tolist()
    ([1.0], [12.0], [2.828])
    """
    length = min(len(y) for _, y in curves)
    x = np.mean([x[:length] for x, _ in curves], axis=0)
    y = np.stack([y[:length] for _, y in curves])
    return x, y.mean(axis=0), y.std(axis=0, ddof=1) if len(y) > 1 else np.zeros(length)


def _runs(groups: Groups) -> list[Run]:
    return [run for seeds in groups.values() for run in seeds]


def _union(lists: Iterable[Iterable[str]]) -> list[str]:
    """Returns all names without repetition, in the order of their first appearance."""
    return [*dict.fromkeys(name for names in lists for name in names)]
