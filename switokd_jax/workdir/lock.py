"""Lock of a workdir: one training at a time. The operating system releases it when its process ends in any way."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from absl import logging

from switokd_jax.errors import UserError

# Raised by file systems without locks.
NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


@contextlib.contextmanager
def lock(path: Path) -> Iterator[None]:
    """Holds the lock within the context. Reading commands need no lock.

    It is a `flock`, which Linux passes on to the server of a network file system. Where the file system has no locks,
    a warning says so.

    Args:
      path: the lock file; it is created, and stays. It tells who holds the lock.

    Raises:
      UserError: naming the process that holds the lock.
      OSError: if the file cannot be written.
    """
    with path.open("a+") as file:
        _acquire(file, path, fcntl.LOCK_EX, attempts=10)
        file.truncate(0)
        json.dump(_holder(), file)
        file.flush()
        yield


def check_unlocked(path: Path) -> None:
    """Checks, without waiting or writing, that no other process holds the lock.

    Raises:
      UserError: naming the process that holds it.
    """
    if path.is_file():
        with contextlib.suppress(PermissionError), path.open("r") as file:
            _acquire(file, path, fcntl.LOCK_SH, attempts=1)


def _acquire(file: IO[str], path: Path, operation: int, attempts: int) -> None:
    """Takes the lock. Several attempts outlast another process's `check_unlocked`, which holds it for an instant."""
    try:
        fcntl.flock(file, operation | fcntl.LOCK_NB)
    except BlockingIOError:
        if attempts > 1:
            time.sleep(0.1)
            return _acquire(file, path, operation, attempts - 1)
        raise UserError(
            f"--workdir {path.parent} is in use by {_read_holder(file)}; wait for its end, or choose another folder"
        ) from None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        logging.warning(
            "%s: this file system has no locks (%s); do not start a second run in the same workdir",
            path.parent,
            error.strerror,
        )
    return None


def _holder() -> dict[str, object]:
    return {"host": socket.gethostname(), "pid": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}


def _read_holder(file: IO[str]) -> str:
    file.seek(0)
    try:
        holder = json.load(file)
        return f"process {holder['pid']} on {holder['host']}, since {holder['since']}"
    except (ValueError, KeyError, TypeError):  # it has just been taken, and is not written yet
        return "another process"
