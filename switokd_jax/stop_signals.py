"""Signals that ask a process to stop while it has nothing to save: it ends at once, with the status that says why.

The training loop handles the same signals by itself (`train.preemption`), because there a stop has to save first.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, MutableMapping
from types import FrameType
from typing import NoReturn

from switokd_jax.errors import EXIT_STATUS

# Environment variable with the id of a process that starts runs: they save and end if it is killed.
PARENT_VARIABLE = "SWITOKD_JAX_PARENT"
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopRequested(KeyboardInterrupt):
    """A stop signal has come; see `raise_stop_requested`.

    Attributes:
      status: exit status for the process.
    """

    def __init__(self, number: int):
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.status = EXIT_STATUS[signal.Signals(number)]


def raise_stop_requested(number: int, frame: FrameType | None = None) -> NoReturn:
    """Raises `StopRequested`. A signal handler for code that has to end its own processes first."""
    del frame
    raise StopRequested(number)


def leave_to_watcher(number: int, frame: FrameType | None = None) -> None:
    """Does nothing: the thread of `exit_on_stop_signals` ends the process. A signal handler."""
    del number, frame


def exit_at_once(number: int) -> NoReturn:
    """Ends the process with one line and the status of `EXIT_STATUS`."""
    name = signal.Signals(number).name
    with contextlib.suppress(OSError):  # the terminal may be gone
        os.write(2, f"switokd_jax: stopped by {name}; nothing was lost: repeat the command to go on\n".encode())
    os._exit(EXIT_STATUS[signal.Signals(number)])


def exit_on_stop_signals() -> None:
    """Ends the process at any stop signal, until other handlers are installed; leaves signals that are ignored alone.

    Call it first of all in a process: imports and compilation take long. Python runs a handler only once its main
    thread is back from native code, so a thread that the signal itself wakes ends the process.
    """
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    for number in STOP_SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, leave_to_watcher)

    def watch() -> None:
        while number := os.read(woken, 1):
            if signal.getsignal(number[0]) is leave_to_watcher:
                exit_at_once(number[0])

    threading.Thread(target=watch, name="stop-signals", daemon=True).start()


def watch_parent(parent: int, on_end: Callable[[], object], interval: float = 1.0) -> None:
    """Calls a function once the parent process has ended; a child would else outlive a parent that was killed.

    Args:
      parent: id of the parent process.
      on_end: called from a thread.
      interval: seconds between two looks.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(interval)
        on_end()

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


def stop_with_parent(environment: MutableMapping[str, str]) -> None:
    """Sends this process SIGTERM once the process named by `PARENT_VARIABLE` has ended, if it is named.

    SIGUSR2 is then the parent's matter: Slurm sends it before a time limit, to all processes of a job.

    Args:
      environment: environment variables; the variable is removed, since it does not apply to our own children.
    """
    parent = environment.pop(PARENT_VARIABLE, "")
    if parent.isdigit():
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        watch_parent(int(parent), lambda: os.kill(os.getpid(), signal.SIGTERM))
