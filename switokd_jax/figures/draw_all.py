"""All figures of one run, or of several side by side. A new figure is a module here and a line in `FIGURES`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np

from switokd_jax.analysis import grad_cam, trained_network
from switokd_jax.analysis.runs import Run, group_by_settings
from switokd_jax.figures import compare, heat
from switokd_jax.figures.compare import Groups
from switokd_jax.figures.curves import draw_curves
from switokd_jax.figures.gradients import draw_gradients
from switokd_jax.figures.other_metrics import draw_other_metrics
from switokd_jax.figures.style import Picture, slug
from switokd_jax.figures.switching import draw_switching

MAX_SURFACE_ROWS = 3  # images with surfaces
MAX_COLUMNS = 6  # of heat maps in one picture


@dataclasses.dataclass(frozen=True)
class FigureSpec:
    """One entry of `FIGURES`.

    Attributes:
      draw: takes runs by label and a folder; returns what it has written, nothing if the figure does not apply.
      after_training: whether the training loop draws it as well.
    """

    draw: Callable[[Groups, Path], list[Picture]]
    after_training: bool = False


FIGURES = (
    FigureSpec(draw_curves, after_training=True),
    FigureSpec(compare.draw_accuracy),
    FigureSpec(draw_switching, after_training=True),
    FigureSpec(compare.draw_expert_shares),
    FigureSpec(draw_gradients),
    FigureSpec(compare.draw_costs),
    FigureSpec(draw_other_metrics),
)


@dataclasses.dataclass(frozen=True, eq=False)
class HeatmapGrid:
    """Heat maps of several networks on the same images; `compute_heatmaps` makes it.

    Attributes:
      images: [n, height, width, channels] in [0, 1].
      labels: [n].
      classes: names by label.
      columns: what is drawn side by side, by network; for a single experiment its networks, under ''.
    """

    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    columns: Mapping[str, Sequence[heat.HeatmapColumn]]


def draw(
    runs: Sequence[Run], folder: Path, heatmaps: HeatmapGrid | None = None, *, after_training: bool = False
) -> list[Picture]:
    """Draws every figure that applies to these runs.

    Args:
      runs: one, or several to compare; those that differ in their seed only are averaged.
      folder: for the PNGs; created if it does not exist.
      heatmaps: drawn as well, if given.
      after_training: draws only the figures that the training loop draws.
    """
    folder.mkdir(parents=True, exist_ok=True)
    groups = group_by_settings(runs)
    figures = [figure for figure in FIGURES if figure.after_training or not after_training]
    pictures = [picture for figure in figures for picture in figure.draw(groups, folder)]
    return pictures + (_draw_heatmaps(heatmaps, folder) if heatmaps else [])


def compute_heatmaps(groups: Groups, examples: Sequence[int]) -> HeatmapGrid | None:
    """Computes Grad-CAM of every network on images of the test split.

    The networks are those of the first run of each group. Groups on another data set than the first are left out.

    Args:
      groups: runs by label.
      examples: indices in the test split; none for no heat maps.

    Raises:
      UserError: if a network or image cannot be read.
    """
    if not examples:
        return None
    firsts = {label: seeds[0] for label, seeds in groups.items()}
    first = next(iter(firsts.values()))
    images, labels = trained_network.test_images(trained_network.read_config(first.folder), examples)
    data_set = first.config["data"]["name"]
    same_data = {label: run for label, run in firsts.items() if run.config["data"]["name"] == data_set}
    names = [*dict.fromkeys(name for run in same_data.values() for name in run.networks)]
    network = trained_network.read(first.folder, first.networks[0])
    columns = {
        name: [_heatmap_column(run, name, images, label) for label, run in same_data.items() if name in run.networks]
        for name in names
    }
    if len(same_data) == 1:
        columns = {"": [dataclasses.replace(column[0], title=name) for name, column in columns.items()]}
    return HeatmapGrid(images / network.preprocess.scale, labels, network.model_info.classes, columns)


def _heatmap_column(run: Run, name: str, images: np.ndarray, title: str) -> heat.HeatmapColumn:
    network = trained_network.read(run.folder, name)
    maps, predictions = grad_cam.grad_cam(network, images)
    # Not compiled: a handful of images, and as many networks as there are experiments.
    probabilities = np.asarray(jax.nn.softmax(network.logits(images))).max(axis=-1)
    return heat.HeatmapColumn(title, np.asarray(maps), np.asarray(predictions), probabilities)


def _draw_heatmaps(heatmaps: HeatmapGrid, folder: Path) -> list[Picture]:
    """Draws one picture with the networks of a single experiment, or one for each network with all experiments."""
    pictures = []
    for name, columns in heatmaps.columns.items():
        for start in range(0, len(columns), MAX_COLUMNS):
            part = columns[start : start + MAX_COLUMNS]
            number = f"_{start // MAX_COLUMNS + 1}" if len(columns) > MAX_COLUMNS else ""
            suffix, by_network = (f"_{slug(name)}{number}", f" by {name}") if name else (number, "")
            path = heat.draw_heat(
                heatmaps.images, heatmaps.labels, part, heatmaps.classes, folder / f"heat{suffix}.png"
            )
            pictures.append(Picture(path, f"What speaks for the class that is chosen (Grad-CAM){by_network}"))
            path = heat.draw_surfaces(heatmaps.images[:MAX_SURFACE_ROWS], part, folder / f"surfaces{suffix}.png")
            pictures.append(Picture(path, f"The same heat maps as surfaces{by_network}"))
    return pictures
