"""The lock of a workdir: one training at a time."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from switokd_jax.errors import UserError
from switokd_jax.workdir.lock import check_unlocked, lock

HOLDER = """
import sys, time
from pathlib import Path
from switokd_jax.workdir.lock import lock
with lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_the_second_is_told_who_is_the_first(tmp_path: Path) -> None:
    with lock(tmp_path / ".lock"):
        for second in (lambda: lock(tmp_path / ".lock").__enter__(), lambda: check_unlocked(tmp_path / ".lock")):
            with pytest.raises(
                UserError, match=rf"--workdir {tmp_path} is in use by process {os.getpid()} on \S+, since"
            ):
                second()


def test_it_is_free_again_at_the_end(tmp_path: Path) -> None:
    check_unlocked(tmp_path / ".lock")
    assert not (tmp_path / ".lock").exists()
    for _ in range(2):
        with lock(tmp_path / ".lock"):
            pass
    check_unlocked(tmp_path / ".lock")


def test_it_is_free_again_when_its_process_is_killed(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / ".lock")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    with pytest.raises(UserError, match=f"in use by process {process.pid} on"):
        check_unlocked(tmp_path / ".lock")
    process.kill()
    process.communicate()
    with lock(tmp_path / ".lock"):
        pass


def test_checks_at_the_same_moment_do_not_keep_each_other_out(tmp_path: Path) -> None:
    (tmp_path / ".lock").touch()
    with (tmp_path / ".lock").open() as other:
        fcntl.flock(other, fcntl.LOCK_SH)  # what `check_unlocked` of another process holds for an instant
        check_unlocked(tmp_path / ".lock")
        release = threading.Timer(0.3, lambda: fcntl.flock(other, fcntl.LOCK_UN))
        release.start()
        with lock(tmp_path / ".lock"):
            pass
        release.join()
