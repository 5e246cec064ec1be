"""Stopping early: on SIGTERM, SIGHUP or Ctrl-C, or, among several processes, on JAX's preemption notice.

A run that is asked to stop saves after the current call of the devices and ends with a status that says why. A second
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

from switokd_jax.stop_signals import STOP_SIGNALS


class StopSignal:
    """The signal that asks the run to stop, if one has come. Made by `handle_stop_signals`.

    Args:
      stop: an event that asks for the same as SIGTERM.

    Attributes:
      stop_requested: the signal on which all processes have agreed, or None.
    """

    def __init__(self, stop: threading.Event) -> None:
        self.stop_requested: signal.Signals | None = None
        self._stop = stop
        self._signal: signal.Signals | None = None
        self._last_query = 0

    @property
    def _received(self) -> signal.Signals | None:
        return signal.SIGTERM if self._signal is None and self._stop.is_set() else self._signal

    def should_stop(self, steps: range) -> bool:
        """Returns whether to stop now. All processes call it after each call of the devices.

        All processes must stop after the same call, whichever received the signal. JAX's sync point is the first step
        after the largest step that any process has queried, and only a query of that very step is answered with yes.
        Orbax queries it as well (with the step it saves), so we query every global step, in all processes alike. A run
        that is resumed at step 500 begins with step 1, which is the sync point if the signal came before any query.

        Args:
          steps: the global steps of the call, counted from 1.
        """
        if jax.process_count() == 1:
            self.stop_requested = self._received
            return self.stop_requested is not None
        first, self._last_query = self._last_query + 1, steps[-1]
        if any(multihost_utils.reached_preemption_sync_point(step) for step in range(first, steps.stop)):
            self.stop_requested = self._received or signal.SIGTERM
        return self.stop_requested is not None

    @property
    def interrupts_evaluation(self) -> bool:
        """Whether a signal has come to a process on its own, which need not agree with others before it stops."""
        return self._received is not None and jax.process_count() == 1

    def accept(self) -> None:
        """Stops at once for the signal that has come."""
        self.stop_requested = self._received

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Handles a signal."""
        self._signal = signal.Signals(number)
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)  # JAX forwards SIGTERM to the other processes


@contextlib.contextmanager
def handle_stop_signals(stop: threading.Event | None = None) -> Iterator[StopSignal]:
    """Handles SIGINT, SIGTERM and SIGHUP inside the context, those of the main thread only.

    A signal that is ignored stays ignored, as under `nohup`.

    Among several processes SIGTERM stays with JAX, whose handler tells the other processes.

    Args:
      stop: an event that asks for the same as SIGTERM, for a run in another thread than the main one.
    """
    stop_signal = StopSignal(stop or threading.Event())
    handled_signals = [number for number in STOP_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    if jax.process_count() > 1:
        handled_signals = [number for number in handled_signals if number != signal.SIGTERM]
    if threading.current_thread() is not threading.main_thread():
        handled_signals = []
    previous = {number: signal.signal(number, stop_signal.handle) for number in handled_signals}
    try:
        yield stop_signal
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
