"""Pictures drawn from a run's metrics.jsonl."""

from __future__ import annotations

from pathlib import Path

from switokd_jax.workdir.layout import Workdir
from switokd_jax.workdir.metric_writers import read_metrics


def draw_run(workdir: Path) -> list[Path]:
    """Draws figures/curves.png and, where the run switched, figures/switching.png."""
    # matplotlib takes a second to import, which a run has at its end.
    from switokd_jax.figures.curves import draw_curves
    from switokd_jax.figures.switching import draw_switching

    lines = read_metrics(Workdir(workdir).metrics)
    folder = Workdir(workdir).figures
    folder.mkdir(exist_ok=True)
    drawn = [draw_curves(lines, folder / "curves.png"), draw_switching(lines, folder / "switching.png")]
    return [path for path in drawn if path]
