"""The launch scripts, with stand-ins for the clusters' commands."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Records each call, reports the slice as active, and lets a run end with the next of $STATUSES.
GCLOUD = """#!/bin/bash
echo "$*" >> "$CALLS"
case "$*" in
    *describe*) echo ACTIVE ;;
    *switokd_jax.main*)
        read -r status < "$STATUSES"
        sed -i 1d "$STATUSES"
        exit "$status" ;;
esac
"""
SRUN = """#!/bin/bash
echo "srun $*" >> "$CALLS"
exit "$(cat "$STATUSES")"
"""
SCONTROL = """#!/bin/bash
echo "scontrol $*" >> "$CALLS"
"""


def launch(script: str, tmp_path: Path, statuses: list[int], **environment: str) -> tuple[int, list[str]]:
    """Runs a script; returns its exit status and the commands that it called."""
    for name, text in {"gcloud": GCLOUD, "srun": SRUN, "scontrol": SCONTROL}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "statuses").write_text("".join(f"{status}\n" for status in statuses))
    result = subprocess.run(
        ["bash", f"experiments/launch/{script}", "--config=configs/digits.py", "--config.epochs=2"],
        cwd=ROOT,
        env={
            **os.environ,
            **environment,
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "CALLS": str(tmp_path / "calls"),
            "STATUSES": str(tmp_path / "statuses"),
        },
        capture_output=True,
        text=True,
        timeout=60,
    )
    return result.returncode, (tmp_path / "calls").read_text().splitlines()


@pytest.mark.slow
@pytest.mark.parametrize(("statuses", "status"), [([0], 0), ([75, 75, 0], 0), ([75, 1], 1), ([75] * 5, 75)])
def test_a_tpu_slice_is_created_used_and_deleted(statuses: list[int], status: int, tmp_path: Path) -> None:
    """A preempted run restarts, a failed one does not, and the slice is deleted in any case."""
    variables = {"PROJECT": "p", "ZONE": "z", "TYPE": "v5litepod-16", "BUCKET": "gs://b"}
    exit_status, calls = launch("tpu_slice.sh", tmp_path, statuses, **variables)
    assert exit_status == status
    assert " create switokd --project=p --zone=z " in calls[0]
    assert "--accelerator-type=v5litepod-16" in calls[0]
    assert " delete switokd " in calls[-1]
    runs = [call for call in calls if "switokd_jax.main" in call]
    assert len(runs) == len(statuses)
    assert all("--worker=all" in run and "--config=configs/digits.py --config.epochs=2 " in run for run in runs)
    assert all("--workdir=$HOME/bucket/runs/switokd" in run for run in runs)


@pytest.mark.parametrize("missing", ["PROJECT", "ZONE", "TYPE", "BUCKET"])
def test_a_missing_variable_is_named(missing: str, tmp_path: Path) -> None:
    variables = {name: "x" for name in ("PROJECT", "ZONE", "TYPE", "BUCKET") if name != missing}
    result = subprocess.run(
        ["bash", "experiments/launch/tpu_slice.sh"],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], **variables},
        capture_output=True,
        text=True,
    )
    assert result.returncode != 0
    assert missing in result.stderr


@pytest.mark.parametrize(("status", "requeued"), [(0, False), (1, False), (75, True)])
def test_slurm_requeues_a_preempted_run(status: int, requeued: bool, tmp_path: Path) -> None:
    exit_status, calls = launch("slurm.sbatch", tmp_path, [status], SLURM_JOB_ID="7", PYTHON="python3")
    assert exit_status == status
    assert calls[0].endswith("python3 -m switokd_jax.main --config=configs/digits.py --config.epochs=2")
    assert calls[1:] == ["scontrol requeue 7"] * requeued
