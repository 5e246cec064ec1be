"""Figures that the end of training draws: the plotted numbers, and that the files are real images."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib import image

from switokd_jax import figures
from switokd_jax.analysis.runs import Run, read_run
from switokd_jax.figures import compare, curves, draw_all, other_metrics, switching
from switokd_jax.workdir import metric_writers


def metric_rows(pairs: list[str], extra: Mapping[str, float] | None = None) -> list[dict[str, Any]]:
    """Random rows of metrics.jsonl, three epochs of ten steps; the rows of all steps have the `extra` metrics."""
    rng = np.random.default_rng(0)
    steps, per_epoch = 30, 10
    names = network_names(pairs)
    rows: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        row: dict[str, Any] = {"split": "train", "step": step, "epoch": step / per_epoch}
        for name in names:
            row |= {f"{name}/{key}": float(rng.random()) for key in ("loss", "cross_entropy", "top1")}
        for pair in pairs:
            row |= {f"{pair}/{key}": float(rng.random()) for key in ("gap", "threshold")}
            row[f"{pair}/expert"] = bool(step % 3 == 0)
        rows.append({**row, **(extra or {})})
        if step % per_epoch == 0:
            scores = {f"{name}/{key}": float(rng.random()) for name in names for key in ("loss", "top1")}
            rows.append({"split": "test", "step": step, "epoch": step / per_epoch, **scores})
    return rows


def network_names(pairs: list[str]) -> list[str]:
    return sorted({name for pair in pairs for name in pair.split("->")}) or ["alone"]


def write_run(workdir: Path, pairs: list[str], rows: list[dict[str, Any]]) -> Run:
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "config.json").write_text(json.dumps({"method": "switokd", "seed": 0}))
    summary = {
        "networks": {name: {} for name in network_names(pairs)},
        "switch": {pair: {"expert_fraction": 1 / 3} for pair in pairs},
    }
    (workdir / "summary.json").write_text(json.dumps(summary))
    metric_writers.append_metrics(workdir / "metrics.jsonl", rows)
    return read_run(workdir)


def test_epoch_means() -> None:
    rows = [row for row in metric_rows(["t->s"]) if row["split"] == "train"]
    epochs, values = curves.epoch_means(rows, "t/loss")
    np.testing.assert_array_equal(epochs, [1, 2, 3])
    expected = [np.mean([row["t/loss"] for row in rows[i : i + 10]]) for i in (0, 10, 20)]
    np.testing.assert_allclose(values, expected)


def test_running_mean() -> None:
    values = np.random.default_rng(0).random(250)
    means = switching.running_mean(values)
    for i in (0, 1, 100, 249):  # a fiftieth of 250 steps: two on each side
        np.testing.assert_allclose(means[i], values[max(i - 2, 0) : i + 3].mean())


@pytest.mark.parametrize("pairs", [["t->s"], ["t->a", "t->b"], ["a->b", "b->c", "c->d"]])
def test_a_run_that_switches_has_curves_and_a_panel_for_each_pair(tmp_path: Path, pairs: list[str]) -> None:
    write_run(tmp_path, pairs, metric_rows(pairs))
    paths = figures.draw_run(tmp_path)
    assert [path.name for path in paths] == ["curves.png", "switching.png"]
    for path in paths:
        pixels = image.imread(path)
        assert pixels.shape[1] == 1600  # 8 inches at 200 dpi
        assert pixels[..., :3].std() > 0.05
    assert image.imread(paths[1]).shape[0] == pytest.approx(200 * (0.7 + 2.3 * len(pairs)), abs=2)


def test_a_run_without_switch_has_curves_only(tmp_path: Path) -> None:
    write_run(tmp_path, [], metric_rows([]))
    assert [path.name for path in figures.draw_run(tmp_path)] == ["curves.png"]


def test_a_run_without_rows_has_no_figures(tmp_path: Path) -> None:
    write_run(tmp_path, [], [])
    assert figures.draw_run(tmp_path) == []


OWN_METRICS = {"grad_norm": 2.0, "t/distillation/loss": 0.5, "t->s/my_gap": 1.0, "loss": 3.0}


def test_metrics_of_any_name_do_not_disturb_the_other_figures(tmp_path: Path) -> None:
    """Names without '/', with two, and those that end like built-in ones."""
    own = metric_rows(["t->s"], OWN_METRICS)
    write_run(tmp_path / "own", ["t->s"], own)
    write_run(tmp_path / "plain", ["t->s"], metric_rows(["t->s"]))
    for path in figures.draw_run(tmp_path / "own"):
        assert path.read_bytes() == (figures.draw_run(tmp_path / "plain")[0].parent / path.name).read_bytes()


def test_each_metric_of_the_users_has_a_panel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_run(tmp_path, ["t->s"], metric_rows(["t->s"], OWN_METRICS))
    panels: list[tuple[str, list[float]]] = []

    def plot(axes: Any, seeds: list[compare.Curve], color: str, label: str, mark_end: bool) -> None:
        panels.append((label, seeds[0][1].tolist()))

    monkeypatch.setattr(compare, "plot_mean_std", plot)
    (picture,) = other_metrics.draw_other_metrics({"switokd": [run]}, tmp_path)
    assert picture.path.name == "other_metrics.png"
    assert panels == [("switokd", [value] * 3) for value in OWN_METRICS.values()]


def test_metrics_that_a_user_adds_to_evaluations_have_panels(tmp_path: Path) -> None:
    rows = [row | ({"ece": 0.1} if row["split"] == "test" else {}) for row in metric_rows([])]
    run = write_run(tmp_path, [], rows)
    assert (other_metrics.other_metrics(run, "train"), other_metrics.other_metrics(run, "test")) == ([], ["ece"])


def test_metrics_that_are_no_numbers_have_no_panel(tmp_path: Path) -> None:
    rows = [row | {"note": "text", "histogram": [1, 2]} for row in metric_rows([])]
    assert other_metrics.draw_other_metrics({"": [write_run(tmp_path, [], rows)]}, tmp_path) == []


def test_a_run_of_built_in_metrics_has_no_other_metrics(tmp_path: Path) -> None:
    assert (
        other_metrics.draw_other_metrics({"": [write_run(tmp_path, ["t->s"], metric_rows(["t->s"]))]}, tmp_path) == []
    )


def test_draw_all_includes_the_metrics_of_the_users(tmp_path: Path) -> None:
    run = write_run(tmp_path, ["t->s"], metric_rows(["t->s"], {"grad_norm": 1.0}))
    pictures = draw_all.draw([run], tmp_path / "figures")
    assert [picture.path.name for picture in pictures] == [
        "curves.png",
        "switching.png",
        "expert_share.png",
        "other_metrics.png",
    ]
