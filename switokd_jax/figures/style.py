"""One style for all figures: colors that color-blind readers can tell apart, thin axes, print resolution."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from switokd_jax.files import atomic_write

Theme = Literal["light", "dark"]


@dataclasses.dataclass(frozen=True)
class Picture:
    """A figure that has been written.

    Attributes:
      path: the PNG.
      caption: describes the content, also for readers who cannot see the image.
    """

    path: Path
    caption: str


# Okabe and Ito's palette; its black comes last, as the text color of the theme.
NETWORKS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
GAP = "#B2182B"
MAX_LINES_PER_PANEL = len(NETWORKS) + 1  # the palette and the text color
# By theme: page, text and grid.
THEMES: dict[Theme, tuple[str, str, str]] = {
    "light": ("#FFFFFF", "#222222", "#DDDDDD"),
    "dark": ("#16181C", "#E4E6EA", "#3A3E46"),
}
# By theme: lines in the background of others.
BACKGROUND_LINE: dict[Theme, str] = {"light": "#C4C8CE", "dark": "#555B66"}
# By theme: the bands behind the curves of a switch, for each mode.
EXPERT = {"light": "#F6C9A0", "dark": "#6B4420"}
LEARNING = {"light": "#DCE9F5", "dark": "#1F3245"}
# The palette's blue and the gap's red are too dark to read on a dark page.
DARK_THEME_COLORS = {"#0072B2": "#4BA3DE", GAP: "#F0717E"}


@contextlib.contextmanager
def theme(name: Theme) -> Iterator[None]:
    """Figures that are drawn within this context are for light or for dark pages."""
    page, text, grid = THEMES[name]
    text_settings: tuple[Any, ...] = (
        "text.color",
        "axes.labelcolor",
        "axes.edgecolor",
        "xtick.color",
        "ytick.color",
        "axes.titlecolor",
    )
    settings: Any = {"figure.facecolor": page, "savefig.facecolor": page, "axes.facecolor": page, "grid.color": grid}
    settings.update(dict.fromkeys(text_settings, text))
    with mpl.rc_context(settings):
        yield


def current_theme() -> Theme:
    """Returns the theme of this context; light unless it is within `theme`."""
    return "dark" if mpl.rcParams["figure.facecolor"] == THEMES["dark"][0] else "light"


def text_color() -> str:
    """Returns the text color of the current theme."""
    return str(mpl.rcParams["text.color"])


def themed(color: str) -> str:
    """Returns the variant of a color that is legible in the current theme."""
    return DARK_THEME_COLORS.get(color, color) if current_theme() == "dark" else color


def colors(names: Sequence[str]) -> dict[str, str]:
    """Assigns the palette's colors to names, in order; beyond `MAX_LINES_PER_PANEL` names they repeat."""
    palette = [*map(themed, NETWORKS), text_color()]
    return {name: palette[i % len(palette)] for i, name in enumerate(names)}


def style_axes(axes: Axes, xlabel: str, ylabel: str) -> None:
    """Sets the labels and a light grid, and removes the frame."""
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.grid(True, color=THEMES[current_theme()][2], linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.02)  # or the axes would cut the first and the last marker
    if xlabel == "epoch":
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))


def display_name(name: str) -> str:
    """Returns the name of a network or pair as readers see it.

    >>> display_name("teacher->student")
    'teacher → student'
    """
    return name.replace("->", " \N{RIGHTWARDS ARROW} ")


def slug(text: str) -> str:
    """Returns a label as a part of a file name.

    >>> slug("switokd, alpha=1.0")
    'switokd__alpha_1.0'
    """
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in text)


def save(figure: Figure, path: Path) -> Path:
    """Writes a PNG at 200 dpi; an interrupted write leaves no partial file."""
    FigureCanvasAgg(figure)
    atomic_write(path, lambda p: figure.savefig(p, dpi=200, format="png"))
    return path
