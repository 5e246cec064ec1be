"""Agreement of several processes on the step at which they stop; JAX's part is replaced by its published rule."""

from __future__ import annotations

import signal
import threading

import jax
import pytest
from jax.experimental import multihost_utils

from switokd_jax.train.preemption import StopSignal


class SyncManager:
    """The first step after the largest one that was queried before the notice; only that very step is answered yes."""

    def __init__(self) -> None:
        self.last_query = 0
        self.sync_point: int | None = None

    def notice(self) -> None:
        self.sync_point = self.last_query + 1

    def reached(self, step: int) -> bool:
        self.last_query = step
        return step == self.sync_point


@pytest.fixture
def manager(monkeypatch: pytest.MonkeyPatch) -> SyncManager:
    manager = SyncManager()
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(multihost_utils, "reached_preemption_sync_point", manager.reached)
    return manager


def test_a_notice_before_the_first_step_of_a_resumed_run_stops_it(manager: SyncManager) -> None:
    """It came while the processes compiled; the first call after step 500 has to stop."""
    stop_signal = StopSignal(threading.Event())
    manager.notice()
    assert stop_signal.should_stop(range(501, 511))
    assert stop_signal.stop_requested == signal.SIGTERM


def test_a_notice_between_two_calls_stops_the_next_one(manager: SyncManager) -> None:
    stop_signal = StopSignal(threading.Event())
    assert not stop_signal.should_stop(range(501, 511))
    manager.notice()
    assert stop_signal.should_stop(range(511, 512))


def test_without_a_notice_nothing_stops(manager: SyncManager) -> None:
    stop_signal = StopSignal(threading.Event())
    assert not any(stop_signal.should_stop(range(step, step + 10)) for step in range(1, 100, 10))
    assert manager.last_query == 100
