"""Stop signals at any moment, and output that cannot be written: a run saves what there is and ends with its status."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tiny_runs
from experiments.faults import group_signals, storm
from switokd_jax.stop_signals import PARENT_VARIABLE

ROOT = Path(__file__).parents[1]
FLAGS = ("--config=tests/tiny_digits.py", "--config.batch_size=16", "--config.checkpoint.every=1")


def start(workdir: Path, *flags: str, **options: Any) -> subprocess.Popen[str]:
    """Starts a run in a process group of its own."""
    options = {"env": tiny_runs.environment(), "stdout": subprocess.DEVNULL, **options}
    return subprocess.Popen(
        [sys.executable, "-m", "switokd_jax.main", f"--workdir={workdir}", *FLAGS, *flags],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **options,
    )


def end(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Waits for the end, which a signal brings within half a minute; returns the status and the stderr."""
    try:
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    return process.returncode, err


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
@pytest.mark.parametrize("delay", [0.3, 2.0])
def test_a_signal_while_the_program_starts(number: signal.Signals, delay: float, tmp_path: Path) -> None:
    process = start(tmp_path / "run", "--config.epochs=500")
    time.sleep(delay)
    os.killpg(process.pid, number)
    status, err = end(process)
    assert status == {signal.SIGINT: 130}.get(number, 75), err
    assert err.splitlines() == [f"switokd_jax: stopped by {number.name}; nothing was lost: repeat the command to go on"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGHUP])  # group_signals.py sends the others
def test_a_stream_saves_when_its_group_is_asked_to_stop(number: signal.Signals, tmp_path: Path) -> None:
    """Its workers get the signal as well; while it trains or evaluates, and it always evaluates."""
    group_signals.make_images(tmp_path / "data")
    data = ("name=folder", f"dir={tmp_path / 'data'}", "pipeline=stream", "workers=2")
    flags = (*(f"--config.data.{each}" for each in data), "--config.epochs=10000", "--config.eval_every=1e-9")
    process = start(tmp_path / "run", *flags)
    storm.wait(process, lambda: storm.newest_save(tmp_path / "run") > 0)  # type: ignore[arg-type]
    before = storm.newest_save(tmp_path / "run")
    os.killpg(process.pid, number)
    status, err = end(process)
    assert status == 75, err
    step = storm.newest_save(tmp_path / "run")
    assert f"stopped by {number.name} after step {step} of 50000, saved in {tmp_path / 'run'}" in err
    assert step >= before
    assert "Traceback" not in err


@pytest.mark.slow
def test_nohup_keeps_a_run_alive(tmp_path: Path) -> None:
    process = start(
        tmp_path / "run", "--config.steps=30", preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)
    )
    time.sleep(3.0)
    os.killpg(process.pid, signal.SIGHUP)
    assert end(process) == (0, "")


@pytest.mark.slow
def test_a_run_saves_and_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    code = (
        "import os, subprocess, sys, time\n"
        f"os.environ[{PARENT_VARIABLE!r}] = str(os.getpid())\n"
        "child = subprocess.Popen(sys.argv[1:], start_new_session=True)\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    command = [sys.executable, "-m", "switokd_jax.main", f"--workdir={tmp_path / 'run'}", *FLAGS]
    parent = subprocess.Popen(
        [sys.executable, "-c", code, *command, "--config.epochs=10000"],
        cwd=ROOT,
        env=tiny_runs.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    storm.wait(parent, lambda: storm.newest_save(tmp_path / "run") > 0)  # type: ignore[arg-type]
    parent.kill()
    parent.wait()
    parent.stdout.close()
    limit = time.monotonic() + 30
    while Path(f"/proc/{child}/status").exists() and "State:\tZ" not in Path(f"/proc/{child}/status").read_text():
        assert time.monotonic() < limit
        time.sleep(0.1)
    rows = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(rows[-1])["step"] == storm.newest_save(tmp_path / "run")


def closed() -> None:
    os.close(1)


@pytest.mark.slow
@pytest.mark.parametrize("broken", ["full", "closed", "pipe"])
def test_training_goes_on_without_its_console(broken: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {}
    reader = None
    if broken == "full":
        options["stdout"] = os.fdopen(os.open("/dev/full", os.O_WRONLY), "w")
    elif broken == "closed":
        hook: Callable[[], None] = closed
        options = {"stdout": None, "preexec_fn": hook}
    else:
        reader, writer = os.pipe()
        options["stdout"] = os.fdopen(writer, "w")
    process = start(tmp_path / "run", "--config.steps=30", "--config.log.progress=True", **options)
    if reader is not None:
        options["stdout"].close()
        os.read(reader, 1)
        os.close(reader)
    status, err = end(process)
    assert status == 0, err
    assert (tmp_path / "run" / "summary.json").exists()
    assert "Traceback" not in err
    assert err.count("progress cannot be printed any more") == (broken != "closed")
