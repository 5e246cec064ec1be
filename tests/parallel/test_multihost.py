"""Runs of several real processes: the same numbers, one set of logs, and nobody waits for the dead."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import tiny_runs
from experiments.faults import storm
from switokd_jax.errors import UserError
from switokd_jax.parallel import multihost
from switokd_jax.workdir import metric_writers, restore

ROOT = Path(__file__).parents[2]
FLAGS = (
    "--config=configs/digits.py",
    "--config.networks.teacher.model=resnet8",
    "--config.networks.student.model=resnet8",
    "--config.batch_size=96",
    "--config.data.train_examples=480",
    "--config.log.tensorboard=False",
    "--config.log.every=4",
)
FLOAT64 = (*FLAGS, "--config.dtype=float64", "--config.epochs=3")


MAIN = ("-m", "switokd_jax.main")


def start(command: Iterable[str], workdir: Path, *flags: str, **environment: str) -> subprocess.Popen[str]:
    """A process with one device: two would wait for each other on two cores."""
    return subprocess.Popen(
        [sys.executable, *command, *flags, f"--workdir={workdir}"],
        cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": "", "JAX_COMPILATION_CACHE_DIR": str(tiny_runs.CACHE), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def launched(count: int, workdir: Path, *flags: str) -> subprocess.Popen[str]:
    """A run of so many processes, by our launcher."""
    return start(["experiments/launch/launch_local.py", f"--num_processes={count}", "--"], workdir, *flags)


def srun(count: int, workdir: Path, *flags: str) -> list[subprocess.Popen[str]]:
    """A run of so many processes, with the variables of a Slurm step on one node."""
    step = {
        "SLURM_JOB_ID": str(random.randrange(4096)),  # JAX makes the port of it, above those that Linux gives out
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_STEP_NUM_NODES": "1",
        "SLURM_STEP_NUM_TASKS": str(count),
        "SLURM_NTASKS": str(count),
    }
    tasks = ({"SLURM_PROCID": str(task), "SLURM_LOCALID": str(task)} for task in range(count))
    return [start(MAIN, workdir, *flags, **step, **task) for task in tasks]


def finished(process: subprocess.Popen[str], status: int = 0) -> str:
    """What a process says on stderr, once it has ended with this status."""
    out, err = process.communicate(timeout=400)
    assert process.returncode == status, out + err
    return err


def state(workdir: Path) -> Any:
    return restore.load_state(workdir)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three epochs in float64 by one process."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    finished(start(MAIN, workdir, *FLOAT64))
    return workdir


def assert_same_run(one: Path, other: Path) -> None:
    """Parameters to 1e-9 and every mode."""
    left, right = state(one), state(other)
    assert int(left["step"]) == int(right["step"])
    for (path, x), (_, y) in zip(
        jax.tree_util.tree_leaves_with_path(left["networks"]),
        jax.tree_util.tree_leaves_with_path(right["networks"]),
        strict=True,
    ):
        np.testing.assert_allclose(y, x, rtol=1e-9, atol=1e-9, err_msg=jax.tree_util.keystr(path))
    lines = [metric_writers.read_metrics(run / "metrics.jsonl") for run in (one, other)]
    assert [(line["split"], line["step"]) for line in lines[0]] == [(line["split"], line["step"]) for line in lines[1]]
    modes = [[line["teacher->student/expert"] for line in read if line["split"] == "train"] for read in lines]
    assert modes[0] == modes[1]
    assert 0 < sum(modes[0]) < len(modes[0])


def test_several_processes_are_one_run(alone: Path, tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    finished(launched(4, workdir, *FLOAT64, "--config.sharding=fsdp"))
    assert_same_run(alone, workdir)
    summary = json.loads((workdir / "summary.json").read_text())
    assert summary["record"]["devices"]["processes"] == 4
    assert {path.name for path in (workdir / "figures").iterdir()} == {"curves.png", "switching.png"}
    assert not [path for path in workdir.rglob("*") if "tmp" in path.name]


def test_a_peer_that_dies_ends_the_others(tmp_path: Path) -> None:
    """Within a minute, with a message; started again, the run goes on."""
    flags = (*FLAGS, "--config.epochs=200", "--config.checkpoint.every=2")
    process = launched(2, tmp_path / "run", *flags)
    wait_for_a_save(tmp_path / "run", process)
    peers = children(process.pid)
    os.kill(peers[1], signal.SIGKILL)
    killed = time.monotonic()
    _, err = process.communicate(timeout=90)
    assert time.monotonic() - killed < 60
    assert process.returncode not in (0, None)
    assert "start all of them again" in err or "another task died" in err
    assert not [pid for pid in peers if Path(f"/proc/{pid}").exists()]
    seen = metric_writers.read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]["step"]
    again = start(MAIN, tmp_path / "run", *flags)
    wait_for_lines(tmp_path / "run", again, beyond=seen)
    again.send_signal(signal.SIGINT)
    assert "stopped by SIGINT after step" in finished(again, 130)
    assert int(state(tmp_path / "run")["step"]) > seen


def test_a_preemption_of_one_saves_and_stops_all(alone: Path, tmp_path: Path) -> None:
    """And one process goes on with the run of two."""
    workdir, pmap = tmp_path / "run", "--config.parallelism=pmap"
    peers = srun(2, workdir, *FLOAT64, pmap, "--config.checkpoint.every=0.4")
    wait_for_a_save(workdir, peers[0])  # Orbax has JAX's sync point count steps then
    peers[1].send_signal(signal.SIGTERM)
    assert all("stopped by SIGTERM after step" in finished(peer, 75) for peer in peers)
    stopped = int(state(workdir)["step"])
    assert 0 < stopped < int(state(alone)["step"])
    assert metric_writers.read_metrics(workdir / "metrics.jsonl")[-1]["step"] == stopped
    finished(start(MAIN, workdir, *FLOAT64, pmap))
    assert_same_run(alone, workdir)


def children(pid: int) -> list[int]:
    """Processes that a process has started, oldest first."""
    return sorted(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def wait_for_lines(workdir: Path, process: subprocess.Popen[str], beyond: int = 0) -> None:
    """Until the run has taken steps, or more than so many."""
    while max((line["step"] for line in metric_writers.read_metrics(workdir / "metrics.jsonl")), default=0) <= beyond:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


def wait_for_a_save(workdir: Path, process: subprocess.Popen[str]) -> None:
    """Until the run has saved."""
    while not storm.newest_save(workdir):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("flags", "environment", "found"),
    [
        ((None, None, None), {}, None),
        (("a:1", 2, 1), {}, multihost.Cluster("flags", "a:1", 2, 1)),
        ((None, None, None), {"SLURM_STEP_NUM_TASKS": "4"}, multihost.Cluster("slurm")),
        ((None, None, None), {"SLURM_STEP_NUM_TASKS": "1"}, None),
        (
            (None, None, None),
            {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1", "OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1:5"},
            multihost.Cluster("ompi", None, 2, 1),
        ),
        (
            ("a:1", None, None),
            {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0"},
            multihost.Cluster("ompi", "a:1", 2, 0),
        ),
    ],
)
def test_who_the_processes_are(flags: Any, environment: dict[str, str], found: multihost.Cluster | None) -> None:
    coordinator, count, index = flags
    assert multihost.find(coordinator, count, index, {"JAX_PLATFORMS": "cpu", **environment}) == found


@pytest.mark.parametrize(
    ("flags", "environment", "message"),
    [
        (("a", 2, 0), {}, "--coordinator 'a' has no port"),
        (("a:1", 2, None), {}, "--coordinator, --num_processes and --process_id belong together"),
        ((None, 2, 0), {}, "--coordinator, --num_processes and --process_id belong together"),
        (("a:1", 2, 2), {}, "--process_id 2 is not one of 2 processes; give 0 to 1"),
        (("a:1", None, None), {}, "--coordinator needs --num_processes and --process_id"),
        (
            (None, None, None),
            {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0"},
            "give --coordinator=HOST:PORT",
        ),
        ((None, None, None), {"SLURM_STEP_NUM_TASKS": "4(x2)"}, r"SLURM_STEP_NUM_TASKS is '4\(x2\)', no number"),
    ],
)
def test_flags_that_name_no_job(flags: Any, environment: dict[str, str], message: str) -> None:
    coordinator, count, index = flags
    with pytest.raises(UserError, match=message):
        multihost.find(coordinator, count, index, {"JAX_PLATFORMS": "cpu", **environment})
