"""Runs side by side: top-1 over epochs, the share of expert steps, and top-1 against what training cost.

As many experiments as one panel can tell apart share a panel for each network. Of more, each has a panel, where the
others stand behind it in grey."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from switokd_jax.analysis.runs import Run
from switokd_jax.figures import style
from switokd_jax.figures.curves import epoch_means
from switokd_jax.figures.style import Picture
from switokd_jax.models.flops import training_flops, unit

Groups = Mapping[str, Sequence[Run]]
Curve = tuple[np.ndarray, np.ndarray]
ACROSS, ACROSS_SMALL = 3, 4  # panels in a row


@dataclasses.dataclass(frozen=True)
class Measure:
    """What a picture is of.

    Attributes:
      stem: of its file's name.
      caption: what it shows.
      xlabel, ylabel: of the axes; a '{}' in the latter is the network's or pair's name.
      curve: of a run and one of its networks or pairs; None if the run does not know it.
      ends: whether the last place is marked, since the lines end at different ones.
    """

    stem: str
    caption: str
    xlabel: str
    ylabel: str
    curve: Callable[[Run, str], Curve | None]
    ends: bool = False


def draw_accuracy(groups: Groups, folder: Path) -> list[Picture]:
    """Test top-1 of every network over the epochs; mean of the seeds, the band is one standard deviation.

    Args:
      groups: runs that differ in their seed only, by label.
      folder: for the PNGs.

    Returns:
      Of few experiments one picture or, where there is nothing to draw, none; of many one for each network.
    """
    names = _all(run.networks for runs in groups.values() for run in runs)
    measure = Measure("accuracy", "Top-1 over the epochs", "epoch", "{} top-1 (%)", _accuracy)
    return _draw(groups, names, measure, folder)


def draw_shares(groups: Groups, folder: Path) -> list[Picture]:
    """Share of expert steps in each epoch, by pair; as `draw_accuracy`."""
    pairs = _all(run.summary["switch"] for runs in groups.values() for run in runs)
    measure = Measure("expert_share", "Expert steps over the epochs", "epoch", "{} expert steps (%)", share)
    return _draw(groups, pairs, measure, folder)


def draw_costs(groups: Groups, folder: Path) -> list[Picture]:
    """Test top-1 of every network against the floating-point operations of the whole run up to then, steps without a
    backward pass counted as such; as `draw_accuracy`."""
    runs = [run for of in groups.values() for run in of if "training_flops" in run.summary]
    if not runs:
        return []
    name, size = unit(max(run.summary["training_flops"] for run in runs))

    def curve(run: Run, name: str) -> Curve | None:
        accuracy = _accuracy(run, name)
        return None if accuracy is None or "training_flops" not in run.summary else (costs(run) / size, accuracy[1])

    caption, xlabel = "Top-1 against the training that it cost", f"training cost ({name})"
    measure = Measure("cost", caption, xlabel, "{} top-1 (%)", curve, ends=True)
    return _draw(groups, _all(run.networks for run in runs), measure, folder)


def share(run: Run, pair: str) -> Curve | None:
    """Epochs, and the percentage of expert steps in each; None if the run does not know the pair."""
    if pair not in run.summary["switch"]:
        return None
    epochs, shares = epoch_means(run.of_split("train"), f"{pair}/expert")
    return epochs, 100.0 * shares


def costs(run: Run) -> np.ndarray:
    """Floating-point operations training_flops at each evaluation of the test split."""
    per_epoch = run.summary["examples"] / run.summary["epochs"]
    made = []
    for line in run.of_split("test"):
        networks = {name: {**of, "updates": line[f"{name}/updates"]} for name, of in run.summary["networks"].items()}
        made.append(training_flops(networks, line["step"], line["epoch"] * per_epoch))
    return np.asarray(made)


def _accuracy(run: Run, name: str) -> Curve | None:
    lines = run.of_split("test")
    if not lines or f"{name}/top1" not in lines[0]:
        return None
    return np.asarray([line["epoch"] for line in lines]), np.asarray([line[f"{name}/top1"] for line in lines])


def _draw(groups: Groups, names: Sequence[str], measure: Measure, folder: Path) -> list[Picture]:
    seeds = any(len(of) > 1 for of in groups.values())
    bands = "; bands are one standard deviation of the seeds" if seeds else ""
    lines = {name: _lines(groups, name, measure) for name in names}
    lines = {name: of for name, of in lines.items() if of}
    if not lines:
        return []
    if len(_all(lines.values())) <= style.TOGETHER:
        return [Picture(_together(lines, measure, folder / f"{measure.stem}.png"), measure.caption + bands)]
    return [
        Picture(
            _apart(of, name, measure, folder / f"{measure.stem}_{style.slug(name)}.png"),
            f"{measure.caption}, {_arrow(name)}{bands}",
        )
        for name, of in lines.items()
    ]


def _lines(groups: Groups, name: str, measure: Measure) -> dict[str, list[Curve]]:
    """The curves of every experiment that has some."""
    curves = {label: [made for run in of if (made := measure.curve(run, name))] for label, of in groups.items()}
    return {label: of for label, of in curves.items() if of and all(len(x) for x, _ in of)}


def _together(lines: Mapping[str, Mapping[str, Sequence[Curve]]], measure: Measure, path: Path) -> Path:
    """A panel for each name, a line with its band for each experiment."""
    across = min(len(lines), ACROSS)
    down = -(-len(lines) // across)
    figure = Figure(figsize=(max(2.9 * across, 4.6), 0.35 + 2.7 * down), layout="constrained")
    panels = [*figure.subplots(down, across, squeeze=False).flat]
    colours = style.colours(_all(lines.values()))
    for axes, (name, of) in zip(panels, lines.items(), strict=False):
        for label, curves in of.items():
            banded(axes, curves, colours[label], label, measure.ends)
        _labelled(axes, measure.xlabel, measure.ylabel.format(_arrow(name)))
    for axes in panels[len(lines) :]:
        axes.remove()
    handles = {label: line for axes in panels for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend([*handles.values()], [*handles], loc="outside upper center", ncols=4, frameon=False, fontsize=8)
    return style.save(figure, path)


def _apart(lines: Mapping[str, Sequence[Curve]], name: str, measure: Measure, path: Path) -> Path:
    """A panel for each experiment, on the same axes."""
    across = min(len(lines), ACROSS_SMALL)
    down = -(-len(lines) // across)
    figure = Figure(figsize=(2.3 * across, 0.3 + 1.7 * down), layout="constrained")
    panels = [*figure.subplots(down, across, squeeze=False, sharex=True, sharey=True).flat]
    for axes, (label, curves) in zip(panels, lines.items(), strict=False):
        for other, behind in lines.items():
            if other != label:
                axes.plot(*mean(behind)[:2], color=style.BEHIND[style.current()], linewidth=0.6)
        banded(axes, curves, style.shade(style.NETWORKS[0]), label, measure.ends)
        axes.set_title(label, fontsize=8, pad=3)
        _labelled(axes, measure.xlabel, "")
        axes.set(xlabel="", ylabel="")
        axes.tick_params(labelsize=7)
    for i, axes in enumerate(panels):
        axes.tick_params(labelbottom=i + across >= len(lines))  # shared axes label the last row alone, if it is full
        if i >= len(lines):
            axes.remove()
    figure.supxlabel(measure.xlabel, fontsize=9)
    figure.supylabel(measure.ylabel.format(_arrow(name)), fontsize=9)
    return style.save(figure, path)


def _labelled(axes: Axes, xlabel: str, ylabel: str) -> None:
    style.tidy(axes, xlabel, ylabel)
    axes.locator_params(axis="x", nbins=5)


def banded(axes: Axes, curves: Sequence[Curve], colour: str, label: str, ends: bool) -> None:
    """The mean of several curves and one standard deviation around it, as far as all of them go."""
    x, middle, spread = mean(curves)
    axes.plot(x, middle, color=colour, linewidth=1.5, label=label)
    if len(curves) > 1:
        axes.fill_between(x, middle - spread, middle + spread, color=colour, alpha=0.18, linewidth=0)
    if ends or len(x) == 1:
        axes.plot(x[-1:], middle[-1:], color=colour, marker="o", markersize=4)


def mean(curves: Sequence[Curve]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean places, mean values and their standard deviation (0 of a single curve), as far as all curves go."""
    length = min(len(y) for _, y in curves)
    x = np.mean([x[:length] for x, _ in curves], axis=0)
    y = np.stack([y[:length] for _, y in curves])
    return x, y.mean(axis=0), y.std(axis=0, ddof=1) if len(y) > 1 else np.zeros(length)


def _arrow(name: str) -> str:
    return name.replace("->", " \N{RIGHTWARDS ARROW} ")


def _all(lists: Iterable[Iterable[str]]) -> list[str]:
    return [*dict.fromkeys(name for each in lists for name in each)]
