"""Figures that the end of training draws: the plotted numbers, and that the files are real images."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import pytest
from matplotlib import image
from matplotlib.axes import Axes

from switokd_jax import figures
from switokd_jax.analysis.runs import Run, read_run
from switokd_jax.figures import compare, curves, draw_all, gradients, other_metrics, switching
from switokd_jax.losses import kl_divergence
from switokd_jax.switching import switch
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


def distances(step: int) -> dict[str, float]:
    return {"t->s/gap": 1.0, "t->s/student_distance": 1.5 - step / 100, "t->s/teacher_distance": 0.5}


def test_gradients_are_the_means_of_the_distances(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One panel for each group whose steps have them; a softened distribution has no such gradients."""
    plotted: dict[str, Any] = {}
    plot = Axes.plot

    def record(axes: Axes, x: Any, y: Any, **options: Any) -> Any:
        plotted[options["label"]] = (x, y)
        return plot(axes, x, y, **options)

    monkeypatch.setattr(Axes, "plot", record)
    rows = metric_rows(["t->s"])
    run = write_run(tmp_path / "a", ["t->s"], [{**row, **distances(row["step"])} for row in rows])
    without = write_run(tmp_path / "b", ["t->s"], rows)
    soft = dataclasses.replace(run, config={**run.config, "switokd": {"temperature": 4.0}})
    groups = {"a": [run], "b": [without], "soft": [soft]}
    (picture,) = gradients.draw_gradients(groups, tmp_path)
    assert picture.path.name == "gradients.png"
    assert image.imread(picture.path).shape[:2] == (200 * 2.9, 1000)
    epochs, means = plotted[r"cross-entropy: $d_s$"]
    np.testing.assert_array_equal(epochs, [1, 2, 3])
    np.testing.assert_allclose(means, [1.5 - mean / 100 for mean in (5.5, 15.5, 25.5)])
    np.testing.assert_allclose(plotted["KL term: gap G"][1], [1.0, 1.0, 1.0])
    assert gradients.draw_gradients({"b": [without]}, tmp_path) == []


def test_the_logged_distances_are_norms_of_gradients() -> None:
    """Of the KL term and the cross-entropy at the student's logits, by automatic differentiation."""
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(size=(2, 6, 5)).astype(np.float32)
    labels = np.arange(6) % 5

    def kl(logits: Any) -> Any:
        return kl_divergence(teacher, logits, 1.0).sum()

    def cross_entropy(logits: Any) -> Any:
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).sum()

    of_kl, of_cross_entropy = jax.grad(kl)(student), jax.grad(cross_entropy)(student)
    decision = switch(student, teacher, labels)
    norms = [np.abs(gradient).sum(axis=1).mean() for gradient in (of_kl, of_cross_entropy, of_cross_entropy - of_kl)]
    logged = (decision.gap, decision.student_distance, decision.teacher_distance)
    np.testing.assert_allclose(norms, logged, rtol=1e-5)


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
