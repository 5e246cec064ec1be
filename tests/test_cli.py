"""Exit statuses and messages of commands."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import jax
import pytest

from switokd_jax import cli
from switokd_jax.errors import NonFiniteError, SaveError, Stopped, UserError
from switokd_jax.parallel import multihost

NON_FINITE = NonFiniteError("student", 7)
NON_FINITE.add_note("the latest checkpoint is that of step 5")


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (UserError("config.seed is -1"), 1, "config.seed is -1"),
        (UserError("two\nlines"), 1, "two lines"),
        (SaveError("the disk is full"), 1, "the disk is full"),
        (NON_FINITE, 1, "network 'student': its loss or gradient is not finite at step 7; the latest checkpoint is"),
        (Stopped(signal.SIGTERM, 3, 9, Path("runs/a")), 75, "stopped by SIGTERM after step 3 of 9, saved in runs/a"),
        (Stopped(signal.SIGINT, 3, 9, Path("runs/a")), 130, "repeat the command to resume"),
        (KeyboardInterrupt(), 130, "stopped by Ctrl-C; repeat the command to resume from the latest checkpoint"),
    ],
)
def test_an_error_becomes_one_line_and_a_status(
    error: BaseException, status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught, cli.exit_on_error():
        raise error
    assert caught.value.code == status
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("switokd_jax: ")
    assert message in line


def test_an_error_of_the_program_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError), cli.exit_on_error():
        raise ZeroDivisionError


def test_an_error_of_jax_keeps_its_traceback_in_a_single_process() -> None:
    with pytest.raises(jax.errors.JaxRuntimeError), cli.exit_on_error():
        raise jax.errors.JaxRuntimeError("out of memory")


@pytest.mark.parametrize("error", [UserError("config.seed is -1"), jax.errors.JaxRuntimeError("Gloo: reset by peer")])
def test_a_process_of_a_cluster_does_not_wait_for_the_others(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def exit_without_barrier(status: int) -> Any:
        raise SystemExit(f"without barrier: {status}")

    monkeypatch.setattr(multihost, "exit_without_barrier", exit_without_barrier)
    with pytest.raises(SystemExit, match="without barrier: 1"), cli.exit_on_error(multihost.Cluster("slurm")):
        raise error
    assert str(error) in capsys.readouterr().err


def test_a_config_file_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--config \S+nope.py is not a Python file"):
        cli.config_module(tmp_path / "nope.py")
