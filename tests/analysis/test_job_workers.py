"""Where jobs run: their devices, processes that see only their own GPUs, and threads of one process."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TextIO

import jax
import pytest

import tiny_runs
from switokd_jax.analysis import job_runner, jobs
from switokd_jax.analysis.job_workers import Processes, Threads, make_workers, split_devices
from switokd_jax.analysis.jobs import Job
from switokd_jax.errors import UserError
from switokd_jax.main import make_thread_command
from switokd_jax.train.loop import train_and_evaluate
from switokd_jax.workdir.metric_writers import read_metrics

ROOT = Path(__file__).parents[2]
# A network alone in float64, as a user would write it.
CONFIG = """
from switokd_jax import config

def get_config():
    c = config.default()
    c.method, c.topology.kind, c.dtype = "vanilla", "complete", "float64"
    c.networks = type(c)({"student": config.network(model="one_layer", schedule="constant")})
    c.epochs, c.checkpoint.every = 2.0, 0.5
    c.log.tensorboard = False
    return c
"""


def ignore(line: str) -> None:
    """Takes a line of progress that a test does not look at."""


def fail(flags: Sequence[str], devices: Sequence[Any], output: TextIO, stop: threading.Event) -> int:
    raise AssertionError("nothing is to be trained")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((2, 0, None), "--jobs is 0; at least one run has to go on at a time"),
        ((2, 1, 3), "--devices-per-job is 3; give 1 to 2, the devices of this machine"),
        ((2, 1, 0), "--devices-per-job is 0; give 1 to 2"),
    ],
)
def test_devices_that_cannot_be_divided_are_refused(arguments: tuple[int, int, int | None], message: str) -> None:
    with pytest.raises(UserError, match=message):
        split_devices(*arguments)


@pytest.mark.parametrize(("devices", "count"), [(8, None), (8, 3), (3, 8), (1, 4), (5, 2)])
def test_every_job_has_devices_of_its_own_while_there_are_enough(devices: int, count: int | None) -> None:
    groups = split_devices(devices, count, None)
    used = [device for group in groups for device in group]
    assert all(groups)
    assert max(used.count(device) for device in used) == -(-len(used) // devices)


@pytest.mark.parametrize(
    ("platform", "devices", "kind", "expected"),
    [
        ("cpu", 1, "auto", Processes),
        ("cpu", 8, "auto", Threads),
        ("gpu", 8, "auto", Processes),
        ("tpu", 1, "auto", Threads),
        ("tpu", 4, "threads", Threads),
        ("cpu", 8, "processes", Processes),
        ("gpu", 2, "threads", Threads),
    ],
)
def test_the_platform_decides_what_a_job_is(platform: str, devices: int, kind: str, expected: type[Any]) -> None:
    found: list[Any] = [SimpleNamespace(platform=platform) for _ in range(devices)]
    workers = make_workers(kind, None, None, found, fail)
    assert (type(workers), workers.count) == (expected, devices)


def test_a_tpu_is_not_shared_by_processes() -> None:
    chips: list[Any] = [SimpleNamespace(platform="tpu")]
    with pytest.raises(UserError, match=r"--workers=processes.*give --workers=threads"):
        make_workers("processes", 1, None, chips, fail)


@pytest.mark.slow
def test_each_process_sees_its_own_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two at a time on four GPUs, of which the machine has eight."""
    script = tmp_path / "main.py"
    script.write_text(
        "import json, os, pathlib, sys, time\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "folder.mkdir(parents=True)\n"
        "summary = {'networks': {}, 'gpus': os.environ['CUDA_VISIBLE_DEVICES']}\n"
        "(folder / 'summary.json').write_text(json.dumps(summary))\n"
        "time.sleep(1.0)\n"
    )
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    monkeypatch.setattr(Job, "command", lambda job, folder: [sys.executable, str(script), str(folder / job.name)])
    grid = [Job(name, "any.py") for name in "abcd"]
    assert job_runner.run(grid, tmp_path, Processes([(0, 1), (2, 3)], "gpu"), log=ignore) == {}
    seen = [job_runner.read_result(job, tmp_path) for job in grid]
    assert sorted(summary["gpus"] for summary in seen if summary) == ["4,5", "4,5", "6,7", "6,7"]


def test_a_part_keeps_jobs_together_that_need_each_other() -> None:
    grid = [Job("kd", "c.py", depends_on=("vanilla",)), Job("dml", "c.py"), Job("vanilla", "c.py"), Job("one", "c.py")]
    parts = [jobs.take_part(grid, part, 3) for part in (1, 2, 3)]
    assert [[job.name for job in part] for part in parts] == [["kd", "vanilla"], ["dml"], ["one"]]
    assert jobs.take_part(grid, 1, 1) == grid


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b", "1/", "/"])
def test_a_part_that_does_not_exist_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="is not PART/COUNT; give 1/4 to 4/4"):
        jobs.parse_part(text)


def write_config(folder: Path) -> str:
    (folder / "own.py").write_text(CONFIG)
    return str(folder / "own.py")


def metrics(workdir: Path) -> list[dict[str, Any]]:
    """All numbers of a run but its times."""
    rows = read_metrics(workdir / "metrics.jsonl")
    return [{name: value for name, value in row.items() if "second" not in name} for row in rows]


@pytest.mark.slow
def test_threads_train_what_runs_of_their_own_train(tmp_path: Path) -> None:
    """Bit for bit, each with its own output; a run that fails, and one with a defect, leave the others alone."""
    config = write_config(tmp_path)
    grid = [Job(f"seed{seed}", config, (f"--config.seed={seed}",)) for seed in range(3)]
    bad = Job("bad", config, ("--config.epochs=-1",))
    (tmp_path / "broken.py").write_text("def get_config():\n    return 1 / 0\n")
    broken = Job("broken", str(tmp_path / "broken.py"))
    workers = Threads([[device] for device in jax.devices()[2:4]], make_thread_command())
    failed = job_runner.run([grid[0], bad, broken, *grid[1:]], tmp_path / "grid", workers, log=ignore)
    assert {*failed} == {"bad", "broken"}
    assert "ZeroDivisionError" in broken.log_path(tmp_path / "grid").read_text()
    assert failed["bad"].startswith("config.epochs is -1")
    for job in grid:
        log = job.log_path(tmp_path / "grid").read_text()
        assert log.count("network  student: one_layer") == 1
        assert len([line for line in log.splitlines() if line.startswith("test")]) == 2
    for seed in (0, 2):
        flags = [f"--config={config}", f"--workdir={tmp_path / f'alone{seed}'}", f"--config.seed={seed}"]
        output = io.StringIO()
        assert make_thread_command()(flags, jax.devices()[:1], output, threading.Event()) == 0
        assert metrics(tmp_path / f"alone{seed}") == metrics(tmp_path / "grid" / f"seed{seed}")


@pytest.mark.slow
def test_a_run_saves_when_its_event_is_set(tmp_path: Path) -> None:
    """As on SIGTERM; the same call goes on."""
    command, stop, output = make_thread_command(), threading.Event(), io.StringIO()
    flags = [f"--config={write_config(tmp_path)}", f"--workdir={tmp_path / 'stopped'}", "--config.epochs=3"]
    stop.set()
    assert command(flags, jax.devices()[:1], output, stop) == 75
    assert "stopped by SIGTERM" in output.getvalue().splitlines()[-1]
    assert not (tmp_path / "stopped" / "summary.json").exists()
    assert command(flags, jax.devices()[:1], output, threading.Event()) == 0
    assert "resuming" in output.getvalue()


def test_no_thread_starts_a_job_after_the_end(tmp_path: Path) -> None:
    workers = Threads([["device"]], fail)
    workers.terminate()
    assert workers.run(Job("a", "any.py"), tmp_path).returncode == -signal.SIGTERM
    assert not (tmp_path / "logs").exists()


@pytest.mark.slow
def test_a_grid_of_threads_goes_on_after_a_kill(tmp_path: Path) -> None:
    """Two runs on two devices of one process, which is killed in the middle and started again."""
    flags = [f"--config={write_config(tmp_path)}", f"--workdir={tmp_path / 'grid'}", "--jobs=auto", "--seeds", "0", "1"]
    # Run in this way, the process knows the tests' networks as well.
    script = "import runpy, tiny_runs; runpy.run_module('switokd_jax.sweep', run_name='__main__')"
    command = [sys.executable, "-c", script, *flags, "--", "--config.epochs=3"]
    environment = tiny_runs.environment(devices=2) | {"PYTHONPATH": str(Path(tiny_runs.__file__).parent)}
    process = subprocess.Popen(command, env=environment, cwd=ROOT)
    limit = time.monotonic() + 120
    while not all([*tmp_path.glob(f"grid/seed={seed}/checkpoints/latest/[0-9]*")] for seed in (0, 1)):
        assert time.monotonic() < limit
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait(timeout=60)
    subprocess.run(command, env=environment, cwd=ROOT, check=True, timeout=300)
    for seed in (0, 1):
        train_and_evaluate(sweep_config(seed), tmp_path / f"alone{seed}", jax.devices()[:1])
        assert metrics(tmp_path / f"alone{seed}") == metrics(tmp_path / "grid" / f"seed={seed}")


def sweep_config(seed: int) -> Any:
    """What CONFIG is in the sweep."""
    c = tiny_runs.alone_config("one_layer", epochs=3.0, dtype="float64", seed=seed)
    c.checkpoint.every = 0.5
    return c
