"""Grids on a cluster: arrays, their dependencies, requeued jobs, and what is submitted only once.

A script replaces training. submitit's local executor runs it, or scripts in the place of Slurm's commands record it.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

import scripted_main
from switokd_jax import sweep
from switokd_jax.analysis import job_runner, slurm
from switokd_jax.analysis.jobs import Job
from switokd_jax.errors import UserError
from switokd_jax.files import read_json

# Replaces sbatch: keeps each script that it gets, and numbers the jobs from 1.
SBATCH = """#!/bin/sh
n=$(($(ls "$QUEUE" | wc -l) + 1))
cp "$1" "$QUEUE/$n"
echo "Submitted batch job $n"
"""


@dataclasses.dataclass(frozen=True)
class ScriptJob(Job):
    """A job whose command is a script."""

    def command(self, folder: Path) -> list[str]:
        """Returns the command line of the script."""
        return [sys.executable, str(folder / "main.py"), str(folder / self.name), self.config]


@pytest.fixture
def grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for a grid whose jobs find this module's classes in their pickles."""
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    monkeypatch.chdir(Path(__file__).parents[2])
    folder = tmp_path / "grid"
    folder.mkdir()
    (folder / "main.py").write_text(scripted_main.MAIN)
    return folder


def ignore(line: str) -> None:
    """Takes a line of progress that the test does not look at."""


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not come"
        time.sleep(0.05)


@pytest.mark.slow
def test_jobs_end_as_on_this_machine_and_a_preempted_one_is_requeued(grid: Path) -> None:
    jobs = [ScriptJob("works", "works.py"), ScriptJob("waits", "waits.py"), ScriptJob("fails", "fails.py")]
    lines = slurm.submit(jobs, grid, slurm.Resources(minutes=60), cluster="local").splitlines()
    assert lines[0] == "submitted an array of 3: works, waits, fails"
    wait_for(grid / "waits" / "began")
    os.kill(int(read_json(grid / "slurm" / "ids.json")["waits"]), signal.SIGTERM)
    for name in ("works", "waits"):
        wait_for(grid / "results" / f"{name}.json")
    assert (grid / "waits" / "saved").exists()
    wait_for(grid / "logs" / "fails.txt")
    assert [job.name for job in job_runner.unfinished_jobs(jobs, grid)] == ["fails"]

    on_cluster = (grid / "results" / "works.json").read_bytes()
    (grid / "results" / "works.json").unlink()
    assert job_runner.run(jobs[:1], grid, log=ignore) == {}
    assert (grid / "results" / "works.json").read_bytes() == on_cluster


@pytest.fixture
def cluster(grid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The scripts that sbatch has taken; squeue shows what is in the file 'states' beside them."""
    commands, queue = tmp_path / "commands", tmp_path / "queue"
    queue.mkdir()
    commands.mkdir()
    for name, script in {
        "sbatch": SBATCH,
        "squeue": '#!/bin/sh\ncat "$QUEUE/../states"\n',
        "srun": "#!/bin/sh\n",
    }.items():
        (commands / name).write_text(script)
        (commands / name).chmod(0o755)
    (tmp_path / "states").touch()
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
    monkeypatch.setenv("QUEUE", str(queue))
    return queue


GRID = [
    Job("vanilla", "works.py"),
    Job("dml", "works.py"),
    Job("kd", "works.py", depends_on=("vanilla",)),
    Job("at", "works.py", depends_on=("vanilla",)),
]


def test_jobs_that_wait_for_the_same_ones_are_an_array(grid: Path, cluster: Path) -> None:
    resources = slurm.Resources(90, partition="gpu", gpus=1, cpus=4, parallelism=2)
    lines = slurm.submit(GRID, grid, resources).splitlines()
    assert lines[:2] == ["submitted an array of 2: vanilla, dml", "submitted an array of 2, after vanilla: kd, at"]
    first, second = ((cluster / name).read_text() for name in "12")
    for line in ("array=0-1%2", "time=90", "partition=gpu", "gpus-per-node=1", "cpus-per-task=4", "requeue"):
        assert f"#SBATCH --{line}\n" in first
    assert "#SBATCH --signal=USR2@120\n" in first
    assert "--dependency" not in first
    assert "#SBATCH --dependency=afterok:1_0\n" in second


def test_what_is_in_the_queue_is_not_submitted_again(grid: Path, cluster: Path, tmp_path: Path) -> None:
    slurm.submit(GRID, grid, slurm.Resources(90))
    (tmp_path / "states").write_text("1_0 RUNNING\n2_0 PENDING\n7 RUNNING\n\n")  # dml and at have failed
    (grid / "logs").mkdir()
    (grid / "logs" / "dml.txt").write_text("epoch 1\nswitokd_jax: no space left\n")
    lines = slurm.submit(GRID, grid, slurm.Resources(90)).splitlines()
    assert lines[:5] == [
        "1 of 4 runs in the queue: RUNNING",
        "1 of 4 runs in the queue: PENDING",
        "dml failed: no space left",
        "submitted an array of 1: dml",
        "submitted an array of 1, after vanilla: at",
    ]
    assert "#SBATCH --dependency=afterok:1_0\n" in (cluster / "4").read_text()


def test_runs_of_another_part_stay_known(grid: Path, cluster: Path, tmp_path: Path) -> None:
    for jobs in (GRID[:1], GRID[1:2]):
        slurm.submit(jobs, grid, slurm.Resources(90))
    (tmp_path / "states").write_text("1 RUNNING\n2 RUNNING\n")
    assert slurm.submit(GRID[:2], grid, slurm.Resources(90)).splitlines()[0] == "2 of 2 runs in the queue: RUNNING"
    assert len([*cluster.iterdir()]) == 2


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize(("state", "is_cancelled"), [("RUNNING", False), ("COMPLETING", True), ("", True)])
def test_a_cancelled_job_is_not_requeued(state: str, is_cancelled: bool, tmp_path: Path) -> None:
    (tmp_path / "states").write_text(f"{state}\n")
    assert slurm.is_cancelled({"SLURM_JOB_ID": "7"}) is is_cancelled
    assert not slurm.is_cancelled({})


def test_a_refused_job_is_one_line(grid: Path, cluster: Path, tmp_path: Path) -> None:
    (tmp_path / "commands" / "sbatch").write_text("#!/bin/sh\necho 'invalid partition specified: gpu' >&2\nexit 1\n")
    with pytest.raises(UserError, match=r"^Slurm refused vanilla: .*invalid partition specified: gpu") as error:
        slurm.submit(GRID, grid, slurm.Resources(90, partition="gpu"))
    assert "\n" not in str(error.value)
    assert not (grid / "slurm" / "ids.json").exists()


def test_a_machine_without_slurm_is_named(grid: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="no squeue here; start the command on a login node"):
        slurm.submit(GRID, grid, slurm.Resources(90))


def test_a_missing_submitit_is_named(grid: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(UserError, match=r"needs submitit: pip install 'switokd_jax\[slurm\]'"):
        slurm.submit(GRID, grid, slurm.Resources(90))


def test_jobs_that_wait_for_each_other_are_refused() -> None:
    jobs = [Job("a", "works.py", depends_on=("b",)), Job("b", "works.py", depends_on=("a",))]
    with pytest.raises(UserError, match="runs depend on each other: "):
        slurm.group_into_arrays(jobs)


def no_table(summaries: Mapping[str, Any]) -> sweep.Table:
    raise AssertionError(f"a table of {summaries}")


def test_a_part_without_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--part=3/3 has no runs"):
        sweep.run_and_tabulate(GRID, tmp_path, sweep.Execution(slurm.Resources(90), (3, 3)), no_table)


def execution(*flags: str) -> sweep.Execution:
    parser = argparse.ArgumentParser()
    sweep.add_execution_flags(parser)
    return sweep.execution(parser.parse_args(flags))


def test_flags_say_what_each_run_asks_for(tmp_path: Path) -> None:
    asked = execution("--launcher=slurm", "--time=1-12:00:00", "--gpus=1", "--array-parallelism=8", "--part=2/2")
    assert asked == sweep.Execution(slurm.Resources(2160, gpus=1, parallelism=8), (2, 2))
    lines = sweep.plan(GRID, tmp_path, asked).splitlines()
    assert lines[-2:] == ["an array of 1: dml", "each run asks for minutes=2160, gpus=1, parallelism=8"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--launcher=slurm"], "--launcher=slurm needs --time"),
        (["--launcher=slurm", "--time=soon"], "--time=soon is no time limit; give minutes, 12:00:00 or 1-12:00:00"),
        (
            ["--launcher=slurm", "--time=0:30"],
            "--time=0:30 is too short for a start that trains and saves; give 10 minutes",
        ),
        (["--launcher=slurm", "--time=90", "--jobs=2"], "--jobs, --devices-per-job and --workers divide this machine"),
        (["--launcher=slurm", "--time=90", "--gpus=-1"], "--gpus, --cpus and --array-parallelism must not be below 0"),
        (["--gpus=1"], "--gpus, --cpus and --array-parallelism need --launcher=slurm"),
    ],
)
def test_flags_that_do_not_fit_are_refused(flags: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        execution(*flags)
