"""A trace of a few steps, and the table of its operations."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import tiny_runs
from switokd_jax.train import loop

TABLE = Path(__file__).parents[2] / "experiments" / "speed" / "trace_table.py"


def table(workdir: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(TABLE), str(workdir)], capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_a_profile_names_the_operations(tmp_path: Path) -> None:
    """Also of a run that ends before the steps that are usually traced."""
    changes: dict[str, Any] = {"batch_size": 64, "steps": 2, "data.train_examples": 128, "log.profile": True}
    c = tiny_runs.tiny_config(**changes)
    loop.train_and_evaluate(c, tmp_path / "run")
    done = table(tmp_path / "run")
    assert done.returncode == 0, done.stderr
    head, *rows = done.stdout.splitlines()
    assert "s of operations" in head
    assert any("conv" in row for row in rows)
    assert not any(row.endswith(("  while", "  cond", "  conditional")) for row in rows)


def test_no_profile(tmp_path: Path) -> None:
    done = table(tmp_path)
    assert done.returncode == 1
    assert "holds no trace; run with --config.log.profile=True" in done.stderr
