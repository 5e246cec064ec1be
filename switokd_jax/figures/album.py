"""All pictures of one run, or of several side by side."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np

from switokd_jax import finished, gradcam, trained
from switokd_jax.figures import compare, heat
from switokd_jax.figures.curves import draw_curves
from switokd_jax.figures.switching import draw_switching
from switokd_jax.finished import Finished

SURFACES = 3  # images that have a row of surfaces


@dataclasses.dataclass(frozen=True)
class Picture:
    """path: the PNG; caption: what it shows, for people who see nothing else."""

    path: Path
    caption: str


def draw(runs: Sequence[Finished], folder: Path, examples: Sequence[int] = ()) -> list[Picture]:
    """Draws what there is to draw.

    Args:
      runs: one, or several to compare; those that differ in their seed only are averaged.
      folder: for the PNGs; made if need be.
      examples: places in the test split of the images that get heat maps; none for no heat maps.

    Raises:
      ConfigError: if heat maps are asked for and a network or image cannot be read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    groups = finished.groups(runs)
    drawn: list[tuple[Path | None, str]] = []
    if len(runs) == 1:
        drawn.append((draw_curves(runs[0].lines, folder / "curves.png"), "Loss and top-1 over the epochs"))
    else:
        drawn.append(
            (compare.draw_accuracy(groups, folder / "accuracy.png"), "Top-1 over the epochs" + _banded(groups))
        )
    for label, of in groups.items():
        name = "switching" if len(groups) == 1 else f"switching_{slug(label)}"
        which = f", {label}" if len(groups) > 1 else ""
        seed = f", seed {of[0].config['seed']}" if len(of) > 1 else ""
        caption = f"Distillation gap against the adaptive threshold{which}{seed}"
        drawn.append((draw_switching(of[0].lines, folder / f"{name}.png"), caption))
    drawn += [
        (compare.draw_shares(groups, folder / "expert_share.png"), "Expert steps over the epochs" + _banded(groups)),
        (compare.draw_costs(groups, folder / "cost.png"), "Top-1 against the training that it cost" + _banded(groups)),
    ]
    made = [Picture(path, caption) for path, caption in drawn if path]
    return made + (heat_maps(groups, folder, examples) if examples else [])


def heat_maps(groups: compare.Groups, folder: Path, examples: Sequence[int]) -> list[Picture]:
    """Grad-CAM of every network on images of the test split: of one experiment its networks side by side, of several
    a picture for each network with a column for each experiment. The first run of each group is the one that is read.

    Raises:
      ConfigError: if a network or image cannot be read, or the experiments have other images.
    """
    firsts = {label: of[0] for label, of in groups.items()}
    first = next(iter(firsts.values()))
    images, labels = trained.test_images(trained.read_config(first.folder), examples)
    alike = {label: run for label, run in firsts.items() if run.config["data"]["name"] == first.config["data"]["name"]}
    seen = {
        (label, name): _seen(run, name, images, label if len(alike) > 1 else name)
        for label, run in alike.items()
        for name in run.networks
    }
    names = [*dict.fromkeys(name for _, name in seen)]
    columns: Mapping[str, list[heat.Seen]] = (
        {"": [*seen.values()]}
        if len(alike) == 1
        else {name: [made for (_, of), made in seen.items() if of == name] for name in names}
    )
    classes = trained.read(first.folder, first.networks[0]).facts.classes
    made = []
    for name, of in columns.items():
        end, who = (f"_{slug(name)}", f" by {name}") if name else ("", "")
        path = folder / f"heat{end}.png"
        heat.draw_heat(images, labels, of, classes, path)
        made.append(Picture(path, f"What decides the class (Grad-CAM){who}"))
        path = folder / f"surfaces{end}.png"
        few = [dataclasses.replace(each, maps=each.maps[:SURFACES]) for each in of]
        heat.draw_surfaces(images[:SURFACES], few, path)
        made.append(Picture(path, f"The same heat maps as surfaces{who}"))
    return made


def _seen(run: Finished, name: str, images: np.ndarray, title: str) -> heat.Seen:
    network = trained.read(run.folder, name)
    maps, chosen = gradcam.heat(network, images)
    probabilities = np.asarray(jax.nn.softmax(jax.jit(network.logits)(images))).max(axis=-1)
    return heat.Seen(title, np.asarray(maps), np.asarray(chosen), probabilities)


def slug(text: str) -> str:
    """A file name of a label."""
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in text)


def _banded(groups: compare.Groups) -> str:
    return "; bands are one standard deviation of the seeds" if any(len(of) > 1 for of in groups.values()) else ""
