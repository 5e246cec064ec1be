"""A run in float64 ends with the recorded numbers (experiments/golden_runs.py has more of them)."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments import golden_runs


@pytest.mark.slow
def test_digits_end_as_recorded(tmp_path: Path) -> None:
    measured = golden_runs.run("digits", tmp_path / "run")
    assert len(measured) == 6
    for name, value, recorded in measured:
        # Steps and updates are counted; the order of a sum may change the last digits of the rest.
        assert value == (recorded if isinstance(recorded, int) else pytest.approx(recorded, rel=1e-9)), name
