"""Runs of several real processes: the same numbers, one set of logs, and no process waits for a dead one."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
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
from switokd_jax.workdir.layout import Workdir

ROOT = Path(__file__).parents[2]
FLAGS = (
    "--config=tests/tiny_digits.py",
    "--config.batch_size=96",
    "--config.data.train_examples=480",
    "--config.log.every=4",
)
FLOAT64 = (*FLAGS, "--config.dtype=float64", "--config.epochs=3")
MAIN = ("-m", "switokd_jax.main")


def start(command: Iterable[str], workdir: Path, *flags: str, **environment: str) -> subprocess.Popen[str]:
    """Starts a process with one device: two devices each would deadlock on two cores."""
    return subprocess.Popen(
        [sys.executable, *command, *flags, f"--workdir={workdir}"],
        cwd=ROOT,
        env={**tiny_runs.environment(), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def launched(count: int, workdir: Path, *flags: str) -> subprocess.Popen[str]:
    """Starts a run of so many processes with our launcher."""
    return start(["experiments/launch/launch_local.py", f"--num_processes={count}", "--"], workdir, *flags)


def srun(count: int, workdir: Path, *flags: str) -> list[subprocess.Popen[str]]:
    """Starts so many processes with the environment of a Slurm step on one node."""
    step = {
        "SLURM_JOB_ID": str(random.randrange(4096)),  # JAX derives the port from it, above the ephemeral ports of Linux
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_STEP_NUM_NODES": "1",
        "SLURM_STEP_NUM_TASKS": str(count),
        "SLURM_NTASKS": str(count),
    }
    tasks = ({"SLURM_PROCID": str(task), "SLURM_LOCALID": str(task)} for task in range(count))
    return [start(MAIN, workdir, *flags, **step, **task) for task in tasks]


def stderr_of(process: subprocess.Popen[str], status: int = 0) -> str:
    """Waits until a process has ended with this status; returns its stderr."""
    out, err = process.communicate(timeout=400)
    assert process.returncode == status, out + err
    return err


def state(workdir: Path) -> Any:
    return restore.load_state(workdir)


@pytest.fixture(scope="module")
def single_process(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Workdir of a run of three epochs in float64 by one process."""
    workdir = tmp_path_factory.mktemp("single") / "run"
    stderr_of(start(MAIN, workdir, *FLOAT64))
    return workdir


def assert_same_run(one: Path, other: Path) -> None:
    """Compares parameters to 1e-9, and every expert decision."""
    left, right = state(one), state(other)
    assert int(left["step"]) == int(right["step"])
    for (path, x), (_, y) in zip(
        jax.tree_util.tree_leaves_with_path(left["networks"]),
        jax.tree_util.tree_leaves_with_path(right["networks"]),
        strict=True,
    ):
        np.testing.assert_allclose(y, x, rtol=1e-9, atol=1e-9, err_msg=jax.tree_util.keystr(path))
    rows = [metric_writers.read_metrics(Workdir(run).metrics) for run in (one, other)]
    assert [(row["split"], row["step"]) for row in rows[0]] == [(row["split"], row["step"]) for row in rows[1]]
    expert = [[row["teacher->student/expert"] for row in each if row["split"] == "train"] for each in rows]
    assert expert[0] == expert[1]
    assert 0 < sum(expert[0]) < len(expert[0])


@pytest.mark.slow
def test_two_processes_train_the_run_of_one(single_process: Path, tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    stderr_of(launched(2, workdir, *FLOAT64, "--config.sharding=fsdp"))
    assert_same_run(single_process, workdir)
    summary = json.loads(Workdir(workdir).summary.read_text())
    assert summary["record"]["devices"]["processes"] == 2
    assert {path.name for path in Workdir(workdir).figures.iterdir()} == {"curves.png", "switching.png"}
    assert not [path for path in workdir.rglob("*") if "tmp" in path.name]


@pytest.mark.slow
def test_a_killed_process_ends_the_others_and_the_run_resumes(tmp_path: Path) -> None:
    """The others end within a minute, with a message."""
    flags = (*FLAGS, "--config.epochs=200", "--config.checkpoint.every=2")
    process = launched(2, tmp_path / "run", *flags)
    wait_for_a_save(tmp_path / "run", process)
    peers = children(process.pid)
    os.kill(peers[1], signal.SIGKILL)
    killed = time.monotonic()
    _, err = process.communicate(timeout=90)
    assert time.monotonic() - killed < 60
    assert process.returncode not in (0, None)
    assert "restart all of them" in err or "another task died" in err
    assert not [pid for pid in peers if Path(f"/proc/{pid}").exists()]
    step = metric_writers.read_metrics(Workdir(tmp_path / "run").metrics)[-1]["step"]
    again = start(MAIN, tmp_path / "run", *flags)
    wait_for_lines(tmp_path / "run", again, beyond=step)
    again.send_signal(signal.SIGINT)
    assert "stopped by SIGINT after step" in stderr_of(again, 130)
    assert int(state(tmp_path / "run")["step"]) > step


@pytest.mark.slow
def test_a_preemption_of_one_process_saves_and_stops_all(single_process: Path, tmp_path: Path) -> None:
    """One process then resumes the run of two."""
    workdir, pmap = tmp_path / "run", "--config.parallelism=pmap"
    peers = srun(2, workdir, *FLOAT64, pmap, "--config.checkpoint.every=0.4")
    wait_for_a_save(workdir, peers[0])  # Orbax has JAX's sync point count steps then
    peers[1].send_signal(signal.SIGTERM)
    assert all("stopped by SIGTERM after step" in stderr_of(peer, 75) for peer in peers)
    stopped = int(state(workdir)["step"])
    assert 0 < stopped < int(state(single_process)["step"])
    assert metric_writers.read_metrics(Workdir(workdir).metrics)[-1]["step"] == stopped
    stderr_of(start(MAIN, workdir, *FLOAT64, pmap))
    assert_same_run(single_process, workdir)


def pair(one: tuple[str, ...], other: tuple[str, ...]) -> list[tuple[int, str]]:
    """Starts a run of two processes with flags of their own; returns the status and the stderr of each."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        cluster = (f"--coordinator=localhost:{probe.getsockname()[1]}", "--num_processes=2")
    processes = [
        subprocess.Popen(
            [sys.executable, *MAIN, *FLAGS, "--config.epochs=1", *cluster, f"--process_id={index}", *flags],
            cwd=ROOT,
            env=tiny_runs.environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index, flags in enumerate((one, other))
    ]
    return [(process.wait(60), process.communicate()[1]) for process in processes]


@pytest.mark.slow
@pytest.mark.parametrize("what", ["setting", "workdir"])
def test_processes_that_do_not_agree_end_before_they_train(what: str, tmp_path: Path) -> None:
    """With one line that names the difference, in both of them. test_process_checks has data and code."""
    one: tuple[str, ...] = (f"--workdir={tmp_path / 'run'}",)
    other = one
    if what == "setting":
        other = (*other, "--config.networks.student.learning_rate=0.05")
        named = (
            "process 1 has config.networks.student.learning_rate = 0.05, and process 0 has 0.02; start all processes"
        )
    else:
        other = (f"--workdir={tmp_path / 'elsewhere'}",)
        named = "elsewhere/lock.json = None"
    begin = time.monotonic()
    ends = pair(one, other)
    assert time.monotonic() - begin < 60
    for status, err in ends:
        assert status == 1, err
        assert named in err or (what == "workdir" and "--workdir has to be one folder" in err), err
        assert len([line for line in err.splitlines() if line.startswith("switokd_jax: ")]) == 1
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.slow
def test_a_port_that_is_taken_ends_process_0_with_one_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        cluster = (f"--coordinator=localhost:{port}", "--num_processes=2", "--process_id=0")
        process = start(MAIN, tmp_path / "run", *FLAGS, *cluster)
        err = stderr_of(process, 1)
    assert f"process 0 cannot listen on port {port} (Address already in use); give another port" in err


def children(pid: int) -> list[int]:
    """Returns the ids of the processes that a process has started, oldest first."""
    return sorted(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def wait_for_lines(workdir: Path, process: subprocess.Popen[str], beyond: int = 0) -> None:
    """Waits until the run has taken more than so many steps."""
    while max((row["step"] for row in metric_writers.read_metrics(Workdir(workdir).metrics)), default=0) <= beyond:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


def wait_for_a_save(workdir: Path, process: subprocess.Popen[str]) -> None:
    """Waits until the run has saved."""
    while not storm.newest_save(workdir):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("flags", "environment", "cluster"),
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
def test_a_cluster_is_detected(flags: Any, environment: dict[str, str], cluster: multihost.Cluster | None) -> None:
    coordinator, num_processes, process_id = flags
    environment = {"JAX_PLATFORMS": "cpu", **environment}
    assert multihost.detect_cluster(coordinator, num_processes, process_id, environment) == cluster


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
def test_an_incomplete_cluster_is_refused(flags: Any, environment: dict[str, str], message: str) -> None:
    coordinator, num_processes, process_id = flags
    with pytest.raises(UserError, match=message):
        multihost.detect_cluster(coordinator, num_processes, process_id, {"JAX_PLATFORMS": "cpu", **environment})
