"""Grad-CAM heat maps over their images, and the same maps as surfaces."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath

from switokd_jax.figures import style

CELL = 1.15  # inches a side
HEAT = "inferno"
RIGHT, WRONG = "#009E73", "#D55E00"
SMALL, WIDEST = 7, 1.05  # points and inches, of what stands below an image
LINE = 0.16  # inches, of each further line of a title
FINE = 60  # places a side of a surface


@dataclasses.dataclass(frozen=True, eq=False)
class HeatmapColumn:
    """What a network sees in images.

    Attributes:
      title: of its column.
      maps: [n, height, width] within 0 and 1.
      chosen: [n], the classes that it takes them for.
      probabilities: [n], what it gives these.
    """

    title: str
    maps: np.ndarray
    chosen: np.ndarray
    probabilities: np.ndarray


def draw_heat(
    images: np.ndarray, labels: np.ndarray | None, columns: Sequence[HeatmapColumn], classes: Sequence[str], path: Path
) -> Path:
    """A row for each image: the image with its label, then each column's heat map over it, with the class that was
    chosen in green where it is right.

    Args:
      images: [n, height, width, channels] within 0 and 1.
      labels: [n], or None where nobody knows them.
      columns: from the left.
      classes: names by label.
      path: the PNG to write.
    """
    rows, across = len(images), 1 + len(columns)
    size = (CELL * across + 0.65, (CELL + 0.13) * rows + _heading(columns))
    figure = Figure(figsize=size, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0.02, hspace=0.02)  # type: ignore[union-attr, call-arg]
    grid = figure.subplots(rows, across, squeeze=False)
    shown: Any = None
    for i, row in enumerate(grid):
        _image(row[0], images[i])
        if labels is not None:
            _below(row[0], classes[int(labels[i])], "", style.ink())
    for axes, column in zip(grid.T[1:], columns, strict=True):
        for i, each in enumerate(axes):
            _image(each, images[i], grey=True)
            shown = each.imshow(
                column.maps[i],
                cmap=HEAT,
                vmin=0,
                vmax=1,
                # Little heat lets the image through, much has the colour of the bar, on dark pixels too.
                alpha=0.4 + 0.5 * column.maps[i],
                interpolation="bilinear",
                extent=_extent(images[i]),
            )
            colour = style.ink()
            if labels is not None:
                colour = style.shade(RIGHT if column.chosen[i] == labels[i] else WRONG)
            _below(each, classes[int(column.chosen[i])], f" {100 * column.probabilities[i]:.0f} %", colour)
    for axes, title in zip(grid[0], ["image", *(column.title for column in columns)], strict=True):
        axes.set_title(_wrapped(title), fontsize=8, pad=4)
    if shown is not None:
        bar = figure.colorbar(shown, ax=grid, shrink=min(1.0, 1.4 / rows + 0.2), aspect=25, pad=0.02, ticks=[0, 1])
        bar.ax.set_yticklabels(["none", "most"], fontsize=7)
        bar.solids.set_alpha(1)  # type: ignore[union-attr]
        bar.outline.set_visible(False)
    return style.save(figure, path)


def draw_surfaces(images: np.ndarray, columns: Sequence[HeatmapColumn], path: Path) -> Path:
    """The heat maps as surfaces over the image's plane: a row for each image, a column for each network, one scale.

    Args:
      images: [n, height, width, channels] within 0 and 1, drawn on the left.
      columns: from the left.
      path: the PNG to write.
    """
    rows, across = len(images), len(columns)
    heading = _heading(columns)
    figure = Figure(figsize=(0.9 + 2.1 * across, heading + 1.6 * rows))
    left, top = 0.9 / (0.9 + 2.1 * across), 1 - heading / (heading + 1.6 * rows)
    wide, high = (1 - left) / across, top / rows
    for i, image in enumerate(images):
        bottom = top - (i + 1) * high
        _image(figure.add_axes((0.08 * left, bottom + 0.25 * high, 0.84 * left, 0.5 * high)), image)
        for j, column in enumerate(columns):
            axes = figure.add_axes((left + j * wide, bottom, wide, high), projection="3d")
            _surface(axes, column.maps[i])
            if i == 0:
                figure.text(
                    left + (j + 0.5) * wide,
                    top + 0.05 * top / (1.6 * rows),
                    _wrapped(column.title),
                    ha="center",
                    fontsize=9,
                )
    return style.save(figure, path)


def _surface(axes: Any, heat: np.ndarray) -> None:
    fine = _finer(heat)
    x, y = np.meshgrid(np.linspace(0, 1, fine.shape[1]), np.linspace(0, 1, fine.shape[0]))
    axes.plot_surface(x, y, fine, cmap=HEAT, vmin=0, vmax=1, rcount=FINE, ccount=FINE, linewidth=0, antialiased=False)
    axes.set(xlim=(0, 1), ylim=(1, 0), zlim=(0, 1), xticks=[], yticks=[], zticks=[0, 1])  # rows of an image run down
    axes.set_box_aspect((1, 1, 0.6), zoom=0.98)
    axes.view_init(elev=40, azim=-60)
    axes.tick_params(labelsize=6, pad=-3)
    grid = style.PAPER[style.current()][2]
    for axis in (axes.xaxis, axes.yaxis, axes.zaxis):
        axis.set_pane_color((0.5, 0.5, 0.5, 0.06))
        axis.line.set_color(grid)


def _finer(heat: np.ndarray) -> np.ndarray:
    """Bilinearly to `FINE` places a side, so that small images too have smooth surfaces."""
    for axis in (0, 1):
        places = np.linspace(0, heat.shape[axis] - 1, FINE)
        heat = np.apply_along_axis(lambda line, at=places: np.interp(at, np.arange(len(line)), line), axis, heat)
    return heat


def _image(axes: Axes, image: np.ndarray, grey: bool = False) -> None:
    """An image without axes."""
    if grey or image.shape[-1] == 1:
        axes.imshow(image.mean(axis=-1), cmap="gray", vmin=0, vmax=1, interpolation="nearest", extent=_extent(image))
    else:
        axes.imshow(image, interpolation="nearest", extent=_extent(image))
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


def _extent(image: np.ndarray) -> tuple[float, float, float, float]:
    return 0.0, float(image.shape[1]), float(image.shape[0]), 0.0


def _below(axes: Axes, name: str, rest: str, colour: str) -> None:
    axes.set_xlabel(fitting(name, rest), fontsize=SMALL, color=colour, labelpad=2)


def _wrapped(title: str) -> str:
    """As narrow as an image."""
    return title.replace(", ", ",\n")


def _heading(columns: Sequence[HeatmapColumn]) -> float:
    """Inches above the first row, for the title of most lines."""
    return 0.25 + LINE * max((_wrapped(column.title).count("\n") for column in columns), default=0)


def fitting(name: str, rest: str = "") -> str:
    """The two as one text that is narrower than an image, the name cut for it."""
    if width(name + rest) <= WIDEST:
        return name + rest
    cut = name
    while cut and width(f"{cut}\N{HORIZONTAL ELLIPSIS}{rest}") > WIDEST:
        cut = cut[:-1]
    return f"{cut.rstrip()}\N{HORIZONTAL ELLIPSIS}{rest}"


def width(text: str) -> float:
    """Inches of what stands below an image."""
    # By its font: class names of one length differ by a factor of four.
    return float(TextPath((0, 0), text, size=SMALL, prop=FontProperties()).get_extents().width) / 72
