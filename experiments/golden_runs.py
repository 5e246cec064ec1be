"""Trains three configs in float64 for two epochs and compares the end with numbers that were recorded once.

python experiments/golden_runs.py

It prints every number beside the recorded one: a change of the code that should not change results does not change
these. Exit status 1 if a metric differs by more than one part in 10^9, or a number of updates at all.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(Path(__file__).parents[1]))

import jax

from switokd_jax.cli import config_module
from switokd_jax.train import train_and_evaluate
from switokd_jax.workdir import metric_writers

CONFIGS = Path(__file__).parents[1] / "configs"
STEPS = 46
# --config.epochs=2 --config.dtype=float64 on one CPU device: metrics of the last step, and updates.
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


def run(name: str, workdir: Path) -> list[tuple[str, float, float]]:
    """Trains one config; returns what was measured: name, value and the recorded value."""
    config = config_module(CONFIGS / f"{name}.py").get_config()
    config.epochs, config.dtype, config.log.tensorboard, config.log.progress = 2, "float64", False, False
    summary = train_and_evaluate(config, workdir, jax.devices()[:1])
    rows = [row for row in metric_writers.read_metrics(workdir / "metrics.jsonl") if row["split"] == "train"]
    metrics, updates = GOLDEN[name]
    measured: list[tuple[str, float, float]] = [("step", rows[-1]["step"], STEPS)]
    measured += [(key, rows[-1][key], value) for key, value in metrics.items()]
    return measured + [
        (f"{network}/updates", summary["networks"][network]["updates"], value) for network, value in updates.items()
    ]


def main() -> None:
    """Runs all configs and prints a table."""
    same = True
    for name in GOLDEN:
        with tempfile.TemporaryDirectory() as folder:
            for key, value, recorded in run(name, Path(folder) / "run"):
                equal = value == recorded if isinstance(recorded, int) else abs(value - recorded) <= 1e-9 * recorded
                same &= equal
                print(f"{name:14} {key:22} {value!r:>20} {recorded!r:>20} {'' if equal else 'DIFFERS'}", flush=True)
    sys.exit(0 if same else 1)


if __name__ == "__main__":
    main()
