"""Workdir: the names of a run's files are part of the interface."""

from __future__ import annotations

from pathlib import Path

import pytest

from switokd_jax.workdir.layout import Workdir

WORKDIR = Workdir(Path("runs/a"))


@pytest.mark.parametrize(
    ("path", "name"),
    [
        (WORKDIR.config, "config.json"),
        (WORKDIR.metrics, "metrics.jsonl"),
        (WORKDIR.summary, "summary.json"),
        (WORKDIR.record, "record.json"),
        (WORKDIR.checkpoints, "checkpoints"),
        (WORKDIR.latest_checkpoints, "checkpoints/latest"),
        (WORKDIR.best_checkpoints("student"), "checkpoints/best/student"),
        (WORKDIR.figures, "figures"),
        (WORKDIR.profile, "profile"),
        (WORKDIR.exports, "exports"),
        (WORKDIR.wandb, "wandb"),
    ],
)
def test_paths_do_not_change(path: Path, name: str) -> None:
    assert path == Path("runs/a") / name


def test_a_workdir_touches_no_file(tmp_path: Path) -> None:
    assert not Workdir(tmp_path / "new").latest_checkpoints.exists()
    assert [*tmp_path.iterdir()] == []
