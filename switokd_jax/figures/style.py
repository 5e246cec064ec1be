"""One look for all pictures: colours that the colour-blind can tell apart, thin axes, print resolution."""

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
    """path: the PNG; caption: what it shows, for people who see nothing else."""

    path: Path
    caption: str


# Okabe and Ito's palette, its black last, where it is ink.
NETWORKS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
GAP = "#B2182B"
TOGETHER = len(NETWORKS) + 1  # lines that one panel can tell apart: the palette and ink
# By theme: paper, ink, grid.
PAPER: dict[Theme, tuple[str, str, str]] = {
    "light": ("#FFFFFF", "#222222", "#DDDDDD"),
    "dark": ("#16181C", "#E4E6EA", "#3A3E46"),
}
# By theme: lines that stand behind others.
BEHIND: dict[Theme, str] = {"light": "#C4C8CE", "dark": "#555B66"}
# By theme and mode: the bands behind curves.
EXPERT = {"light": "#F6C9A0", "dark": "#6B4420"}
LEARNING = {"light": "#DCE9F5", "dark": "#1F3245"}
# In the dark the palette's blue and the gap's red would be too deep to read.
IN_THE_DARK = {"#0072B2": "#4BA3DE", GAP: "#F0717E"}


@contextlib.contextmanager
def theme(name: Theme) -> Iterator[None]:
    """Pictures drawn in this context are for light or for dark pages."""
    paper, ink, grid = PAPER[name]
    inked: tuple[Any, ...] = (
        "text.color",
        "axes.labelcolor",
        "axes.edgecolor",
        "xtick.color",
        "ytick.color",
        "axes.titlecolor",
    )
    settings: Any = {"figure.facecolor": paper, "savefig.facecolor": paper, "axes.facecolor": paper, "grid.color": grid}
    settings.update(dict.fromkeys(inked, ink))
    with mpl.rc_context(settings):
        yield


def current() -> Theme:
    """The theme of this context."""
    return "dark" if mpl.rcParams["figure.facecolor"] == PAPER["dark"][0] else "light"


def ink() -> str:
    """The colour of text."""
    return str(mpl.rcParams["text.color"])


def shade(colour: str) -> str:
    """A colour as this theme has it."""
    return IN_THE_DARK.get(colour, colour) if current() == "dark" else colour


def colours(names: Sequence[str]) -> dict[str, str]:
    """A colour for each network, in order."""
    palette = [*map(shade, NETWORKS), ink()]
    return {name: palette[i % len(palette)] for i, name in enumerate(names)}


def tidy(axes: Axes, xlabel: str, ylabel: str) -> None:
    """Labels, a light grid, no box."""
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.grid(True, color=PAPER[current()][2], linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.02)  # marks at the ends stay whole
    if xlabel == "epoch":
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))


def slug(text: str) -> str:
    """A file name of a label."""
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in text)


def save(figure: Figure, path: Path) -> Path:
    """Writes a PNG at 200 dpi, whole or not at all."""
    FigureCanvasAgg(figure)
    atomic_write(path, lambda p: figure.savefig(p, dpi=200, format="png"))
    return path
