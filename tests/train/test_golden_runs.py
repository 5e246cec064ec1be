"""Whole runs in float64 end where they always ended: the last training row of three configs, recorded once."""

from __future__ import annotations

from pathlib import Path

import jax
import pytest

import tiny_runs
from switokd_jax.train import train_and_evaluate
from switokd_jax.workdir import metric_writers

# --config.epochs=2 --config.dtype=float64 on one CPU device: metrics and optimizer steps after step 46.
GOLDEN: dict[str, tuple[dict[str, float], dict[str, int]]] = {
    "digits": (
        {
            "teacher/loss": 0.8217419139808677,
            "student/loss": 0.7382823579159051,
            "teacher->student/gap": 0.3795519975286109,
        },
        {"teacher": 40, "student": 46},
    ),
    "digits_1t2s": (
        {"large/loss": 0.4519841424124122, "middle/loss": 0.8525808454646565, "small/loss": 0.9714326287848215},
        {"large": 43, "middle": 46, "small": 46},
    ),
    "digits_chain3": (
        {"large/loss": 0.5550078747103897, "middle/loss": 0.935732708434289, "small/loss": 0.8695850425253059},
        {"large": 37, "middle": 41, "small": 46},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", GOLDEN)
def test_a_run_ends_with_the_recorded_numbers(name: str, tmp_path: Path) -> None:
    c = tiny_runs.config_file(name).get_config()
    c.epochs, c.dtype, c.log.tensorboard, c.log.progress = 2, "float64", False, False
    summary = train_and_evaluate(c, tmp_path, jax.devices()[:1])
    row = [row for row in metric_writers.read_metrics(tmp_path / "metrics.jsonl") if row["split"] == "train"][-1]
    metrics, updates = GOLDEN[name]
    assert row["step"] == 46
    assert {key: row[key] for key in metrics} == pytest.approx(metrics, rel=1e-9)
    assert {network: values["updates"] for network, values in summary["networks"].items()} == updates
