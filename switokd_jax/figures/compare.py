"""Runs side by side: top-1 over epochs, the share of expert steps, and top-1 against what training cost."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from switokd_jax.cost import spent, unit
from switokd_jax.figures import style
from switokd_jax.figures.curves import epoch_means
from switokd_jax.finished import Finished

Groups = Mapping[str, Sequence[Finished]]
Curve = tuple[np.ndarray, np.ndarray]
ACROSS = 3  # panels in a row


def draw_accuracy(groups: Groups, path: Path) -> Path | None:
    """Test top-1 of every network over the epochs; mean of the seeds, the band is one standard deviation.

    Args:
      groups: runs that differ in their seed only, by label.
      path: the PNG to write.

    Returns:
      The path, or None where there is nothing to draw.
    """
    names = _all(run.networks for runs in groups.values() for run in runs)
    return _panels(groups, names, lambda run, name: _accuracy(run, name), "epoch", "{} top-1 (%)", path)


def draw_shares(groups: Groups, path: Path) -> Path | None:
    """Share of expert steps in each epoch, a panel for each pair; as `draw_accuracy`."""
    pairs = _all(run.summary["switch"] for runs in groups.values() for run in runs)
    return _panels(groups, pairs, share, "epoch", "{} expert steps (%)", path)


def draw_costs(groups: Groups, path: Path) -> Path | None:
    """Test top-1 of every network against the floating-point operations of the whole run up to then, steps without a
    backward pass counted as such; as `draw_accuracy`."""
    runs = [run for of in groups.values() for run in of if "training_flops" in run.summary]
    if not runs:
        return None
    name, size = unit(max(run.summary["training_flops"] for run in runs))

    def curve(run: Finished, name: str) -> Curve | None:
        accuracy = _accuracy(run, name)
        return None if accuracy is None or "training_flops" not in run.summary else (costs(run) / size, accuracy[1])

    return _panels(
        groups, _all(run.networks for run in runs), curve, f"training cost ({name})", "{} top-1 (%)", path, ended=True
    )


def share(run: Finished, pair: str) -> Curve | None:
    """Epochs, and the percentage of expert steps in each; None if the run does not know the pair."""
    if pair not in run.summary["switch"]:
        return None
    epochs, shares = epoch_means(run.of_split("train"), f"{pair}/expert")
    return epochs, 100.0 * shares


def costs(run: Finished) -> np.ndarray:
    """Floating-point operations spent at each evaluation of the test split."""
    per_epoch = run.summary["examples"] / run.summary["epochs"]
    made = []
    for line in run.of_split("test"):
        networks = {name: {**of, "updates": line[f"{name}/updates"]} for name, of in run.summary["networks"].items()}
        made.append(spent(networks, line["step"], line["epoch"] * per_epoch))
    return np.asarray(made)


def _accuracy(run: Finished, name: str) -> Curve | None:
    lines = run.of_split("test")
    if not lines or f"{name}/top1" not in lines[0]:
        return None
    return np.asarray([line["epoch"] for line in lines]), np.asarray([line[f"{name}/top1"] for line in lines])


def _panels(
    groups: Groups,
    names: Sequence[str],
    curve: Callable[[Finished, str], Curve | None],
    xlabel: str,
    ylabel: str,
    path: Path,
    ended: bool = False,
) -> Path | None:
    """A panel for each name, a line with its band for each group."""
    if not names:
        return None
    across = min(len(names), ACROSS)
    down = -(-len(names) // across)
    figure = Figure(figsize=(max(2.9 * across, 4.6), 0.35 + 2.7 * down), layout="constrained")
    panels = [*figure.subplots(down, across, squeeze=False).flat]
    dashes = style.dashes([*groups])
    for axes, name in zip(panels, names, strict=False):
        for label, colour in style.colours([*groups]).items():
            curves = [made for run in groups[label] if (made := curve(run, name)) is not None and len(made[0])]
            if curves:
                _banded(axes, curves, colour, dashes[label], label, ended)
        style.tidy(axes, xlabel, ylabel.format(name.replace("->", " \N{RIGHTWARDS ARROW} ")))
        axes.margins(x=0.02)
        if xlabel == "epoch":
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in panels[len(names) :]:
        axes.remove()
    handles = {label: line for axes in panels for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend([*handles.values()], [*handles], loc="outside upper center", ncols=4, frameon=False, fontsize=8)
    return style.save(figure, path)


def _banded(axes: Axes, curves: Sequence[Curve], colour: str, dash: str, label: str, ended: bool) -> None:
    """The mean of several curves and one standard deviation around it, as far as all of them go."""
    length = min(len(y) for _, y in curves)
    x = np.mean([x[:length] for x, _ in curves], axis=0)
    y = np.stack([y[:length] for _, y in curves])
    mean = y.mean(axis=0)
    axes.plot(x, mean, color=colour, linestyle=dash, linewidth=1.5, label=label)
    if len(curves) > 1:
        spread = y.std(axis=0, ddof=1)
        axes.fill_between(x, mean - spread, mean + spread, color=colour, alpha=0.18, linewidth=0)
    if ended or length == 1:
        axes.plot(x[-1:], mean[-1:], color=colour, marker="o", markersize=4)


def _all(lists: Iterable[Iterable[str]]) -> list[str]:
    return [*dict.fromkeys(name for each in lists for name in each)]
