"""The page of kept results: differences over seeds by hand; the committed page is that of the committed results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments import results_page
from experiments.results_page import KeptRun
from switokd_jax.errors import UserError


def kept(arm: str, seed: int, student: float) -> KeptRun:
    networks = {"student": {"final_top1": student}, "teacher": {"final_top1": 50.0}}
    switch = {"teacher->student": {"expert_fraction": 0.25}} if arm == "switokd" else {}
    summary = {"networks": networks, "switch": switch, "training_flops": 2e12}
    epochs = [{"epoch": 1.0, "test/student/top1": 10.0 + seed}, {"epoch": 2.0, "test/student/top1": student}]
    return KeptRun(arm, seed, summary, epochs)


RUNS = [
    *(kept("dml", seed, top1) for seed, top1 in ((0, 41.0), (1, 43.0))),
    *(kept("switokd", seed, top1) for seed, top1 in ((0, 42.0), (1, 46.0), (2, 44.0))),
    kept("vanilla", 0, 40.0),
]


def test_differences_are_between_runs_of_one_seed() -> None:
    # 42 - 41 = 1 and 46 - 43 = 3: mean 2, standard deviation sqrt(2), standard error 1
    assert results_page.paired_difference(RUNS, "switokd", "dml", "student") == "+2.00 ± 1.00 (2)"
    assert results_page.paired_difference(RUNS, "switokd", "vanilla", "student") == "+2.00 (1)"
    assert results_page.paired_difference(RUNS, "switokd", "kd", "student") == "-"


def test_the_page_has_a_row_for_each_arm() -> None:
    lines = results_page.page(RUNS).splitlines()
    (row,) = (line for line in lines if line.startswith("| switokd | 0, 1, 2 |"))
    scores = "44.00 ± 2.00 | 50.00 ± 0.00 | +2.00 (1) | +2.00 ± 1.00 (2)"
    assert row == f"| switokd | 0, 1, 2 | {scores} | 25.00 ± 0.00 | 2.00 ± 0.00 |"
    assert "| switokd | 11.0 | 44.0 |" in lines
    arms = [line.split(" | ")[0] for line in lines if line.startswith("| ") and "method" not in line]
    assert arms[:3] == ["| vanilla", "| dml", "| switokd"]


def test_results_are_read_by_the_name_of_their_file(tmp_path: Path) -> None:
    folder = tmp_path / "short"
    folder.mkdir()
    with pytest.raises(UserError, match="holds no results"):
        results_page.read_runs(folder)
    for run in RUNS:
        content = {"config": "c.py", "flags": [], "summary": run.summary, "epochs": run.epochs}
        (folder / f"short_{run.arm}_seed{run.seed}.json").write_text(json.dumps(content))
    assert results_page.read_runs(folder) == RUNS
