"""The page on scaling: its tables are those of the committed measurements, and a measured point has their columns."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.scale import scaling
from experiments.speed.our_step import our_config
from switokd_jax.files import read_json


def test_the_page_is_that_of_the_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    committed = scaling.PAGE.read_text(encoding="utf-8")
    monkeypatch.setattr(scaling, "PAGE", tmp_path / "scaling.md")
    monkeypatch.setattr(scaling, "IMAGES", tmp_path)
    scaling.write_page()
    assert scaling.PAGE.read_text(encoding="utf-8") == committed
    charts = {path.name for path in tmp_path.glob("*.png")}
    assert charts == {f"scaling_{path.stem}.png" for path in scaling.RESULTS.glob("*.json")}


@pytest.mark.parametrize("path", sorted(scaling.RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_all_points_are_there(path: Path) -> None:
    sweep, rows = scaling.SWEEPS[path.stem], read_json(path)["rows"]
    assert [row[sweep.x] for row in rows] == [*sweep.points]
    assert all(row[column] > 0 for row in rows for column in sweep.lines)


def test_a_stream_over_made_records() -> None:
    point = scaling.with_records(1000)
    assert {*scaling.SWEEPS["records"].lines} < {*point}
    assert point["s to the first batch"] > 0
    image, label = scaling.MadeRecords(1000)[123]
    assert (image.shape, label) == (scaling.IMAGE_SHAPE, 23)


@pytest.mark.slow
def test_a_step_is_timed_in_both_modes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "ROUNDS", 1)
    monkeypatch.setattr(scaling, "STEPS", 1)
    c = our_config(("one_layer",), ("one_layer",), "float32")
    c.batch_size = 8
    point = scaling.timed_step(c, classes=10)
    assert {*scaling.BOTH, *scaling.TIMES, "state MiB", "temporary MiB"} == {*point}
    assert point["learning images/s"] == pytest.approx(8e3 / point["learning ms"])
