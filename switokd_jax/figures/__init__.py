"""Figures of finished runs, drawn from their metrics and networks."""

from __future__ import annotations

from pathlib import Path


def draw_run(workdir: Path) -> list[Path]:
    """Draws the figures that the end of training shows into WORKDIR/figures, and returns their paths.

    Args:
      workdir: of a run whose summary.json is written.
    """
    # Importing matplotlib takes a second; a run should not spend it before it trains.
    from switokd_jax.analysis.runs import read_run
    from switokd_jax.figures import draw_all
    from switokd_jax.workdir.layout import Workdir

    pictures = draw_all.draw([read_run(workdir)], Workdir(workdir).figures, after_training=True)
    return [picture.path for picture in pictures]
