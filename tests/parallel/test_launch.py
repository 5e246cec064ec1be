"""The launch scripts, with stand-ins for the clusters' commands."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Notes each call, says that the slice is there, and has a run end with the next of $STATUSES.
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
    """The exit status of a script, and the commands that it called."""
    for name, text in {"gcloud": GCLOUD, "srun": SRUN, "scontrol": SCONTROL}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "statuses").write_text("".join(f"{status}\n" for status in statuses))
    done = subprocess.run(
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
    return done.returncode, (tmp_path / "calls").read_text().splitlines()


@pytest.mark.parametrize(("statuses", "status"), [([0], 0), ([75, 75, 0], 0), ([75, 1], 1), ([75] * 5, 75)])
def test_a_tpu_slice_is_made_used_and_taken_down(statuses: list[int], status: int, tmp_path: Path) -> None:
    """A run that was preempted starts again, one that failed does not, and the slice goes in any case."""
    known = {"PROJECT": "p", "ZONE": "z", "TYPE": "v5litepod-16", "BUCKET": "gs://b"}
    ended, calls = launch("tpu_slice.sh", tmp_path, statuses, **known)
    assert ended == status
    assert " create switokd --project=p --zone=z " in calls[0]
    assert "--accelerator-type=v5litepod-16" in calls[0]
    assert " delete switokd " in calls[-1]
    runs = [call for call in calls if "switokd_jax.main" in call]
    assert len(runs) == len(statuses)
    assert all("--worker=all" in run and "--config=configs/digits.py --config.epochs=2 " in run for run in runs)
    assert all("--workdir=$HOME/bucket/runs/switokd" in run for run in runs)


@pytest.mark.parametrize("missing", ["PROJECT", "ZONE", "TYPE", "BUCKET"])
def test_a_variable_that_is_missing_is_named(missing: str, tmp_path: Path) -> None:
    known = {name: "x" for name in ("PROJECT", "ZONE", "TYPE", "BUCKET") if name != missing}
    done = subprocess.run(
        ["bash", "experiments/launch/tpu_slice.sh"],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], **known},
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert missing in done.stderr


@pytest.mark.parametrize(("status", "again"), [(0, False), (1, False), (75, True)])
def test_slurm_queues_a_run_again_that_was_preempted(status: int, again: bool, tmp_path: Path) -> None:
    ended, calls = launch("slurm.sbatch", tmp_path, [status], SLURM_JOB_ID="7", PYTHON="python3")
    assert ended == status
    assert calls[0].endswith("python3 -m switokd_jax.main --config=configs/digits.py --config.epochs=2")
    assert calls[1:] == ["scontrol requeue 7"] * again
