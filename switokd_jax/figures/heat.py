"""Figures `heat` and `surfaces`: Grad-CAM heat maps over their images, and the same maps as surfaces."""

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

CELL = 1.15  # side of an image, inches
COLORMAP = "inferno"
RIGHT, WRONG = "#009E73", "#D55E00"
CAPTION_POINTS, MAX_CAPTION_WIDTH = 7, 1.05  # size of the text below an image, points; its width, inches
TITLE_LINE = 0.16  # height of each line of a title after the first, inches
SURFACE_SIDE = 60  # points along each side of a surface


@dataclasses.dataclass(frozen=True, eq=False)
class HeatmapColumn:
    """Heat maps of one network, for several images.

    Attributes:
      title: of the column.
      maps: [n, height, width] in [0, 1].
      predictions: [n], the classes that the network predicts.
      probabilities: [n], of these classes.
    """

    title: str
    maps: np.ndarray
    predictions: np.ndarray
    probabilities: np.ndarray


def draw_heat(
    images: np.ndarray, labels: np.ndarray | None, columns: Sequence[HeatmapColumn], classes: Sequence[str], path: Path
) -> Path:
    """Draws a row for each image: the image with its label, then the heat map of each column over it.

    The predicted class is below each heat map, in green if it is right.

    Args:
      images: [n, height, width, channels] in [0, 1].
      labels: [n], or None if they are unknown.
      columns: from the left.
      classes: names by label.
      path: the PNG to write.
    """
    num_rows, num_columns = len(images), 1 + len(columns)
    size = (CELL * num_columns + 0.65, (CELL + 0.13) * num_rows + _title_height(columns))
    figure = Figure(figsize=size, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0.02, hspace=0.02)  # type: ignore[union-attr, call-arg]
    grid = figure.subplots(num_rows, num_columns, squeeze=False)
    overlay: Any = None
    for i, row in enumerate(grid):
        _draw_image(row[0], images[i])
        if labels is not None:
            _write_below(row[0], classes[int(labels[i])], "", style.text_color())
    for column_axes, column in zip(grid.T[1:], columns, strict=True):
        for i, axes in enumerate(column_axes):
            _draw_image(axes, images[i], gray=True)
            overlay = axes.imshow(
                column.maps[i],
                cmap=COLORMAP,
                vmin=0,
                vmax=1,
                # Low values let the image through; high ones have the color of the bar, also on dark pixels.
                alpha=0.4 + 0.5 * column.maps[i],
                interpolation="bilinear",
                extent=_extent(images[i]),
            )
            color = style.text_color()
            if labels is not None:
                color = style.themed(RIGHT if column.predictions[i] == labels[i] else WRONG)
            _write_below(axes, classes[int(column.predictions[i])], f" {100 * column.probabilities[i]:.0f} %", color)
    for axes, title in zip(grid[0], ["image", *(column.title for column in columns)], strict=True):
        axes.set_title(_wrap_title(title), fontsize=8, pad=4)
    if overlay is not None:
        bar = figure.colorbar(
            overlay, ax=grid, shrink=min(1.0, 1.4 / num_rows + 0.2), aspect=25, pad=0.02, ticks=[0, 1]
        )
        bar.ax.set_yticklabels(["none", "most"], fontsize=7)
        bar.solids.set_alpha(1)  # type: ignore[union-attr]
        bar.outline.set_visible(False)
    return style.save(figure, path)


def draw_surfaces(images: np.ndarray, columns: Sequence[HeatmapColumn], path: Path) -> Path:
    """Draws the heat maps as surfaces above the image plane: a row for each image, a column for each network.

    All surfaces have the same scale.

    Args:
      images: [n, height, width, channels] in [0, 1], drawn on the left.
      columns: from the left.
      path: the PNG to write.
    """
    num_rows, num_columns = len(images), len(columns)
    title_height = _title_height(columns)
    figure_width, figure_height = 0.9 + 2.1 * num_columns, title_height + 1.6 * num_rows
    figure = Figure(figsize=(figure_width, figure_height))
    left, top = 0.9 / figure_width, 1 - title_height / figure_height
    width, height = (1 - left) / num_columns, top / num_rows
    for i, image in enumerate(images):
        bottom = top - (i + 1) * height
        _draw_image(figure.add_axes((0.08 * left, bottom + 0.25 * height, 0.84 * left, 0.5 * height)), image)
        for j, column in enumerate(columns):
            axes = figure.add_axes((left + j * width, bottom, width, height), projection="3d")
            _draw_surface(axes, column.maps[i])
            if i == 0:
                x, y = left + (j + 0.5) * width, top + 0.05 * top / (1.6 * num_rows)
                figure.text(x, y, _wrap_title(column.title), ha="center", fontsize=9)
    return style.save(figure, path)


def _draw_surface(axes: Any, heatmap: np.ndarray) -> None:
    fine = _upsample(heatmap)
    x, y = np.meshgrid(np.linspace(0, 1, fine.shape[1]), np.linspace(0, 1, fine.shape[0]))
    axes.plot_surface(
        x,
        y,
        fine,
        cmap=COLORMAP,
        vmin=0,
        vmax=1,
        rcount=SURFACE_SIDE,
        ccount=SURFACE_SIDE,
        linewidth=0,
        antialiased=False,
    )
    axes.set(xlim=(0, 1), ylim=(1, 0), zlim=(0, 1), xticks=[], yticks=[], zticks=[0, 1])  # rows of an image run down
    axes.set_box_aspect((1, 1, 0.6), zoom=0.98)
    axes.view_init(elev=40, azim=-60)
    axes.tick_params(labelsize=6, pad=-3)
    grid = style.THEMES[style.current_theme()][2]
    for axis in (axes.xaxis, axes.yaxis, axes.zaxis):
        axis.set_pane_color((0.5, 0.5, 0.5, 0.06))
        axis.line.set_color(grid)


def _upsample(heatmap: np.ndarray) -> np.ndarray:
    """Resizes a map bilinearly to `SURFACE_SIDE` points a side, so that small images too have smooth surfaces."""
    for axis in (0, 1):
        points = np.linspace(0, heatmap.shape[axis] - 1, SURFACE_SIDE)
        heatmap = np.apply_along_axis(
            lambda values, points=points: np.interp(points, np.arange(len(values)), values), axis, heatmap
        )
    return heatmap


def _draw_image(axes: Axes, image: np.ndarray, gray: bool = False) -> None:
    """Draws an image without ticks and frame."""
    if gray or image.shape[-1] == 1:
        axes.imshow(image.mean(axis=-1), cmap="gray", vmin=0, vmax=1, interpolation="nearest", extent=_extent(image))
    else:
        axes.imshow(image, interpolation="nearest", extent=_extent(image))
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


def _extent(image: np.ndarray) -> tuple[float, float, float, float]:
    return 0.0, float(image.shape[1]), float(image.shape[0]), 0.0


def _write_below(axes: Axes, name: str, suffix: str, color: str) -> None:
    axes.set_xlabel(truncate_to_width(name, suffix), fontsize=CAPTION_POINTS, color=color, labelpad=2)


def _wrap_title(title: str) -> str:
    """Breaks a title after its commas, so that it is about as narrow as an image."""
    return title.replace(", ", ",\n")


def _title_height(columns: Sequence[HeatmapColumn]) -> float:
    """Returns the height above the first row, in inches, that the title with the most lines needs."""
    return 0.25 + TITLE_LINE * max((_wrap_title(column.title).count("\n") for column in columns), default=0)


def truncate_to_width(name: str, suffix: str = "") -> str:
    """Joins the two to a caption of at most `MAX_CAPTION_WIDTH`; the name is shortened if need be."""
    if text_width(name + suffix) <= MAX_CAPTION_WIDTH:
        return name + suffix
    shortened = name
    while shortened and text_width(f"{shortened}\N{HORIZONTAL ELLIPSIS}{suffix}") > MAX_CAPTION_WIDTH:
        shortened = shortened[:-1]
    return f"{shortened.rstrip()}\N{HORIZONTAL ELLIPSIS}{suffix}"


def text_width(text: str) -> float:
    """Returns the width of a caption in inches."""
    # Measured in the font: the widths of class names of the same length differ by a factor of four.
    return float(TextPath((0, 0), text, size=CAPTION_POINTS, prop=FontProperties()).get_extents().width) / 72
