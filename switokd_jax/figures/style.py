"""One look for all pictures: colours that the colour-blind can tell apart, thin axes, print resolution."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from switokd_jax.files import write_whole

# Okabe and Ito's palette.
NETWORKS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
EXPERT, LEARNING = "#F6C9A0", "#DCE9F5"
GAP, THRESHOLD = "#B2182B", "#222222"


def colours(names: list[str]) -> dict[str, str]:
    """A colour for each network, in order."""
    return {name: NETWORKS[i % len(NETWORKS)] for i, name in enumerate(names)}


def tidy(axes: Axes, xlabel: str, ylabel: str) -> None:
    """Labels, a light grid, no box."""
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.grid(True, color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0)


def save(figure: Figure, path: Path) -> Path:
    """Writes a PNG at 200 dpi, whole or not at all."""
    FigureCanvasAgg(figure)
    write_whole(path, lambda p: figure.savefig(p, dpi=200, format="png"))
    return path
