"""The best student of a table is kept with the name of its run; one of another machine stays."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import pytest
from safetensors.numpy import load_file

import tiny_runs
from experiments import keep_best
from switokd_jax.interop import pytorch
from switokd_jax.train import loop
from switokd_jax.workdir import restore


def write_result(results: Path, name: str, top1: float) -> None:
    summary: dict[str, Any] = {"networks": {"student": {"final_top1": top1, "model": "two_layers"}}}
    flags = ["--config.seed=0"]
    (results / f"{name}.json").write_text(json.dumps({"config": "c.py", "flags": flags, "summary": summary}))


@pytest.mark.slow
def test_the_best_student_is_kept(tmp_path: Path) -> None:
    results, folder = tmp_path / "short", tmp_path / "runs"
    results.mkdir()
    assert keep_best.keep(results, folder) == "short: no results"
    c = tiny_runs.tiny_config(epochs=1.0, batch_size=32)
    c.data.train_examples = 96
    loop.train_and_evaluate(c, folder / "short_dml_seed1", jax.devices()[:1])
    write_result(results, "short_vanilla_seed0", 40.0)
    write_result(results, "short_dml_seed1", 41.0)
    assert keep_best.keep(results, folder) == "short: wrote best_student.safetensors, short_dml_seed1 with 41.00 %"
    expected = pytorch.state_dict(restore.load_variables(folder / "short_dml_seed1", "student", "latest"))
    tiny_runs.assert_same_bits(load_file(results / "best_student.safetensors"), expected)
    about = json.loads((results / "best_student.json").read_text())
    assert (about["run"], about["model"], about["top1"]) == ("short_dml_seed1", "two_layers", 41.0)
    assert about["command"] == "python -m switokd_jax.main --config=c.py --config.seed=0"
    assert keep_best.keep(results, folder) == "short: short_dml_seed1 is kept already"
    write_result(results, "short_kd_seed0", 42.0)
    assert keep_best.keep(results, folder).startswith("short: short_kd_seed0 is the best run, and ")
    assert json.loads((results / "best_student.json").read_text()) == about
