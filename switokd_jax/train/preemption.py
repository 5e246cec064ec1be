"""Being asked to stop: by SIGTERM, by Ctrl-C, or, among several processes, by JAX's notice of a preemption.

A run that is asked saves after the call of the devices under way and ends with a status that says why. The second
Ctrl-C stops at once.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

import jax
from jax.experimental import multihost_utils


class StopSignal:
    """Whether the run has been asked to stop. Made by `listening`."""

    def __init__(self) -> None:
        self.asked: signal.Signals | None = None
        self._here: signal.Signals | None = None

    def look(self, taken: range) -> bool:
        """Whether to stop now; to be called after each call of the devices, by all processes alike.

        All processes stop after the same call, whichever of them was asked: JAX's sync point is one more than the
        largest number that any of them has asked it about, and is reached when it is asked about. So it is asked about
        every global step: Orbax asks it too, about the step that it saves.

        Args:
          taken: the global steps of that call, from 1.
        """
        if jax.process_count() == 1:
            self.asked = self._here
        elif any(multihost_utils.reached_preemption_sync_point(step) for step in taken):
            self.asked = self._here or signal.SIGTERM
        return self.asked is not None

    def hear(self, number: int, frame: FrameType | None) -> None:
        """Handles a signal."""
        self._here = signal.Signals(number)
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            if jax.process_count() > 1:
                os.kill(os.getpid(), signal.SIGTERM)  # which JAX tells the others


@contextlib.contextmanager
def listening() -> Iterator[StopSignal]:
    """Hears SIGINT and SIGTERM while the context lasts, unless it runs in another thread than the main one.

    Among several processes SIGTERM is JAX's: its handler tells the other processes.
    """
    notice = StopSignal()
    heard = [signal.SIGINT] if jax.process_count() > 1 else [signal.SIGINT, signal.SIGTERM]
    if threading.current_thread() is not threading.main_thread():
        heard = []
    before = {number: signal.signal(number, notice.hear) for number in heard}
    try:
        yield notice
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
