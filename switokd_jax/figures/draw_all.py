"""All pictures of one run, or of several side by side."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np

from switokd_jax.analysis import grad_cam, trained_network
from switokd_jax.analysis.runs import Run, group_by_settings
from switokd_jax.figures import compare, heat
from switokd_jax.figures.curves import draw_curves
from switokd_jax.figures.style import Picture, slug
from switokd_jax.figures.switching import draw_switching

SURFACES = 3  # images that have a row of surfaces
ACROSS = 6  # columns of a picture


@dataclasses.dataclass(frozen=True, eq=False)
class HeatmapGrid:
    """What networks see in some images; made by `look`.

    Attributes:
      images: [n, height, width, channels] within 0 and 1.
      labels: [n].
      classes: their names.
      columns: what stands side by side, by network, or by '' where that is the networks of one experiment.
    """

    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    columns: Mapping[str, Sequence[heat.HeatmapColumn]]


def draw(runs: Sequence[Run], folder: Path, looks: HeatmapGrid | None = None) -> list[Picture]:
    """Draws what there is to draw.

    Args:
      runs: one, or several to compare; those that differ in their seed only are averaged.
      folder: for the PNGs; made if need be.
      looks: for heat maps.
    """
    folder.mkdir(parents=True, exist_ok=True)
    groups = group_by_settings(runs)
    made: list[Picture] = []
    if len(runs) > 1:
        made += compare.draw_accuracy(groups, folder)
    elif path := draw_curves(runs[0].lines, folder / "curves.png"):
        made.append(Picture(path, "Loss and top-1 over the epochs"))
    for label, of in groups.items():
        name = "switching" if len(groups) == 1 else f"switching_{slug(label)}"
        which = f", {label}" if len(groups) > 1 else ""
        seed = f", seed {of[0].config['seed']}" if len(of) > 1 else ""
        caption = f"Distillation gap against the adaptive threshold{which}{seed}"
        if path := draw_switching(of[0].lines, folder / f"{name}.png"):
            made.append(Picture(path, caption))
    made += [*compare.draw_shares(groups, folder), *compare.draw_costs(groups, folder)]
    return made + (_heat_maps(looks, folder) if looks else [])


def compute_heatmaps(groups: compare.Groups, examples: Sequence[int]) -> HeatmapGrid | None:
    """Grad-CAM of every network on images of the test split. The first run of each group is the one that is read;
    groups on other data than the first one are left out.

    Args:
      groups: runs by label.
      examples: places in the test split; none for no heat maps.

    Raises:
      ConfigError: if a network or image cannot be read.
    """
    if not examples:
        return None
    firsts = {label: of[0] for label, of in groups.items()}
    first = next(iter(firsts.values()))
    images, labels = trained_network.test_images(trained_network.read_config(first.folder), examples)
    alike = {label: run for label, run in firsts.items() if run.config["data"]["name"] == first.config["data"]["name"]}
    names = [*dict.fromkeys(name for run in alike.values() for name in run.networks)]
    read = trained_network.read(first.folder, first.networks[0])
    by_network = {
        name: [_seen(run, name, images, label) for label, run in alike.items() if name in run.networks]
        for name in names
    }
    if len(alike) == 1:
        by_network = {"": [dataclasses.replace(of[0], title=name) for name, of in by_network.items()]}
    return HeatmapGrid(images / read.preprocess.scale, labels, read.model_info.classes, by_network)


def _heat_maps(looks: HeatmapGrid, folder: Path) -> list[Picture]:
    """Of one experiment its networks side by side; of several, for each network, a column for each experiment."""
    made = []
    for name, of in looks.columns.items():
        for start in range(0, len(of), ACROSS):
            some, number = of[start : start + ACROSS], f"_{start // ACROSS + 1}" if len(of) > ACROSS else ""
            end, who = (f"_{slug(name)}{number}", f" by {name}") if name else (number, "")
            path = heat.draw_heat(looks.images, looks.labels, some, looks.classes, folder / f"heat{end}.png")
            made.append(Picture(path, f"What speaks for the class that is chosen (Grad-CAM){who}"))
            path = heat.draw_surfaces(looks.images[:SURFACES], some, folder / f"surfaces{end}.png")
            made.append(Picture(path, f"The same heat maps as surfaces{who}"))
    return made


def _seen(run: Run, name: str, images: np.ndarray, title: str) -> heat.HeatmapColumn:
    network = trained_network.read(run.folder, name)
    maps, chosen = grad_cam.grad_cam(network, images)
    # Not compiled: a handful of images, and as many networks as there are experiments.
    probabilities = np.asarray(jax.nn.softmax(network.logits(images))).max(axis=-1)
    return heat.HeatmapColumn(title, np.asarray(maps), np.asarray(chosen), probabilities)
