"""What the pictures show: the plotted numbers, and that the files are real images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib import image

from switokd_jax import figures
from switokd_jax.figures import curves, switching
from switokd_jax.workdir import metric_writers


def run_lines(pairs: list[str], steps: int = 30, per_epoch: int = 10) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    names = sorted({name for pair in pairs for name in pair.split("->")}) or ["alone"]
    lines: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        row: dict[str, Any] = {"split": "train", "step": step, "epoch": step / per_epoch}
        for name in names:
            row |= {f"{name}/{key}": float(rng.random()) for key in ("loss", "cross_entropy", "top1")}
        for pair in pairs:
            row |= {f"{pair}/{key}": float(rng.random()) for key in ("gap", "threshold")}
            row[f"{pair}/expert"] = bool(step % 3 == 0)
        lines.append(row)
        if step % per_epoch == 0:
            scores = {f"{name}/{key}": float(rng.random()) for name in names for key in ("loss", "top1")}
            lines.append({"split": "test", "step": step, "epoch": step / per_epoch, **scores})
    return lines


def test_epoch_means() -> None:
    lines = [line for line in run_lines(["t->s"]) if line["split"] == "train"]
    epochs, values = curves.epoch_means(lines, "t/loss")
    np.testing.assert_array_equal(epochs, [1, 2, 3])
    expected = [np.mean([line["t/loss"] for line in lines[i : i + 10]]) for i in (0, 10, 20)]
    np.testing.assert_allclose(values, expected)


def test_running_mean() -> None:
    values = np.random.default_rng(0).random(250)
    got = switching.running_mean(values)
    for i in (0, 1, 100, 249):  # a fiftieth of 250 steps: two on each side
        np.testing.assert_allclose(got[i], values[max(i - 2, 0) : i + 3].mean())


@pytest.mark.parametrize("pairs", [["t->s"], ["t->a", "t->b"], ["a->b", "b->c", "c->d"]])
def test_draws_both(tmp_path: Path, pairs: list[str]) -> None:
    metric_writers.append_metrics(tmp_path / "metrics.jsonl", run_lines(pairs))
    drawn = figures.draw_run(tmp_path)
    assert [path.name for path in drawn] == ["curves.png", "switching.png"]
    for path in drawn:
        pixels = image.imread(path)
        assert pixels.shape[1] == 1600  # 8 inches at 200 dpi
        assert pixels[..., :3].std() > 0.05
    # One panel per pair.
    assert image.imread(drawn[1]).shape[0] == pytest.approx(200 * (0.7 + 2.3 * len(pairs)), abs=2)


def test_a_run_without_switch_has_curves_only(tmp_path: Path) -> None:
    metric_writers.append_metrics(tmp_path / "metrics.jsonl", run_lines([]))
    assert [path.name for path in figures.draw_run(tmp_path)] == ["curves.png"]


def test_nothing_to_draw(tmp_path: Path) -> None:
    assert figures.draw_run(tmp_path) == []
