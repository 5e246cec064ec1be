"""The tables of kept results: differences by hand; the committed tables are those of the committed results."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from experiments import papers_page, results_page
from experiments.results_page import KeptRun
from switokd_jax.errors import UserError


def kept(arm: str, seed: int, student: float) -> KeptRun:
    costs = {"forward_flops": 1.0, "backward_flops": 2.0}
    updates = 6 if arm == "switokd" else 10
    networks = {
        "student": {"final_top1": student, "updates": 10, **costs},
        "teacher": {"final_top1": 50.0, "updates": updates, **costs},
    }
    switch = {"teacher->student": {"expert_fraction": 0.4}} if arm == "switokd" else {}
    summary = {"networks": networks, "switch": switch, "training_flops": 2e12, "steps": 10}
    epochs = [{"epoch": 1.0, "test/student/top1": 10.0 + seed}, {"epoch": 2.0, "test/student/top1": student}]
    if switch:
        for row in epochs:
            for key in ("expert", "gap", "threshold", "student_distance", "teacher_distance"):
                row[f"train/teacher->student/{key}"] = row["epoch"] / 10
    return KeptRun(arm, seed, summary, epochs)


RUNS = [
    kept("vanilla", 0, 40.0),
    *(kept("dml", seed, top1) for seed, top1 in ((0, 41.0), (1, 43.0))),
    *(kept("switokd", seed, top1) for seed, top1 in ((0, 42.0), (1, 46.0), (2, 44.0))),
]


def cells(text: str, *first: str) -> list[str]:
    """The cells of the row that begins so."""
    (row,) = (line for line in text.splitlines() if line.startswith(f"| {' | '.join(first)} |"))
    return row.strip("| ").split(" | ")


def test_differences_are_between_runs_of_one_seed() -> None:
    # 42 - 41 = 1 and 46 - 43 = 3: mean 2, standard deviation sqrt(2), standard error 1
    assert results_page.paired_difference(RUNS, "switokd", "dml") == "+2.00 ± 1.00 (2)"
    assert results_page.paired_difference(RUNS, "switokd", "vanilla") == "+2.00 (1)"
    assert results_page.paired_difference(RUNS, "switokd", "kd") == "-"


def test_three_seeds_have_a_p_value() -> None:
    """Differences 1, 3 and 5: t = 3 / (2 / sqrt(3)) with 2 degrees of freedom, so p = 1 - t / sqrt(2 + t^2)."""
    runs = [*RUNS, kept("dml", 2, 39.0)]
    t = 3.0 / (2.0 / 3.0**0.5)
    expected = f"{1.0 - t / (2.0 + t * t) ** 0.5:.2g}"
    assert results_page.paired_difference(runs, "switokd", "dml") == f"+3.00 ± 1.15 (3, p {expected})"
    same = [kept(arm, seed, 40.0) for arm in ("dml", "kdcl") for seed in (0, 1, 2)]
    assert results_page.paired_difference(same, "kdcl", "dml") == "+0.00 ± 0.00 (3)", "no variance, no test"


def test_the_page_has_a_row_for_each_arm() -> None:
    text = results_page.page(RUNS, {})
    scores = ["44.00 ± 2.00", "50.00 ± 0.00", "+2.00 (1)", "+2.00 ± 1.00 (2)", "40.0 ± 0.0", "2.00 ± 0.00"]
    # Four of ten updates of the teacher are saved, each two thirds of its half of the cost: 8 of 60.
    assert cells(text, "switokd", "0, 1, 2") == ["switokd", "0, 1, 2", *scores, "13.3 ± 0.0"]
    assert cells(text, "switokd", "11.0") == ["switokd", "11.0", "44.0"]
    assert cells(text, "switokd expert steps") == ["switokd expert steps", "0.100", "0.200"]
    assert "The weakest student of all runs has 40.00 %." in text
    assert "A growing teacher" not in text


def test_larger_teachers_have_a_table_of_their_own() -> None:
    text = results_page.page(RUNS, {"resnet14": RUNS, "resnet32": [kept("switokd", 0, 43.0)], "wrn_16_2": []})
    row = cells(text, "resnet32", "switokd")
    assert row[2:] == ["0", "43.00", "50.00", "-", "-", "0.200", "40.0", "2.00", "13.3"]
    assert cells(text, "resnet14", "vanilla")[7:] == ["-", "-", "2.00", "-"]


def test_the_table_of_the_readme_is_replaced() -> None:
    text = f"Before.\n{results_page.BEGIN}\nold\n{results_page.END}\nAfter.\n"
    replaced = results_page.replace_table(text, "| new |")
    assert replaced == f"Before.\n{results_page.BEGIN}\n\n| new |\n\n{results_page.END}\nAfter.\n"
    assert results_page.replace_table(replaced, "| new |") == replaced
    with pytest.raises(UserError, match=r"README\.md needs the line"):
        results_page.replace_table("no table", "| new |")


def test_results_are_read_by_the_name_of_their_file(tmp_path: Path) -> None:
    folder = tmp_path / "short"
    folder.mkdir()
    assert results_page.read_runs(folder) == []
    for run in RUNS:
        content = {"config": "c.py", "flags": [], "summary": run.summary, "epochs": run.epochs}
        (folder / f"short_{run.arm}_seed{run.seed}.json").write_text(json.dumps(content))
    assert results_page.read_runs(folder) == RUNS


def test_the_committed_tables_are_those_of_the_committed_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["results_page.py", "--check"])
    assert results_page.main() == 0, "run python experiments/results_page.py"


def test_the_page_of_the_papers_is_that_of_the_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["papers_page.py", "--check"])
    assert papers_page.main() == 0, "run python experiments/papers_page.py"
