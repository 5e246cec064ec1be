"""The schedule of a run: what happens after which step."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest

from switokd_jax.train.events import Event, Events, is_due, make_events


def make(eval_every: float, save_every: float, teachers: dict[int, str] | None = None, epochs: int = 10) -> Events:
    """Epochs of four steps."""
    config = SimpleNamespace(eval_every=eval_every, checkpoint=SimpleNamespace(every=save_every))
    run: Any = SimpleNamespace(
        steps_per_epoch=4, total_steps=4 * epochs, config=config, teacher_schedule=teachers or {}
    )
    return make_events(run)


def all_events(events: Events) -> dict[int, Event]:
    return {step: event for step in range(1, events.total_steps + 1) if (event := events.get(step))}


def test_evaluations_and_saves_meet_at_the_last_step() -> None:
    assert all_events(make(eval_every=3, save_every=5)) == {
        12: Event(evaluate=True, teacher=None, save=False),
        20: Event(evaluate=False, teacher=None, save=True),
        24: Event(evaluate=True, teacher=None, save=False),
        36: Event(evaluate=True, teacher=None, save=False),
        40: Event(evaluate=True, teacher=None, save=True),
    }


def test_teachers_have_events_of_their_own() -> None:
    events = all_events(make(eval_every=10, save_every=10, teachers={8: "a", 16: "b"}))
    assert [(step, event.teacher) for step, event in events.items()] == [(8, "a"), (16, "b"), (40, None)]


@pytest.mark.parametrize(
    ("interval", "steps"),
    [
        (0, {40}),
        (100, {40}),
        (16, {16, 32, 40}),
        (2.5, {2, 5, 8, 10, 12, 15, 18, 20, 22, 25, 28, 30, 32, 35, 38, 40}),
        (0.3, {*range(1, 41)}),
        (1e-12, {*range(1, 41)}),
    ],
)
def test_multiples_are_whole_steps(interval: float, steps: set[int]) -> None:
    assert {step for step in range(1, 41) if is_due(step, interval, 40)} == steps


@pytest.mark.parametrize("interval", [1.1, 1.5, 2.75, 3.1, 22.4999, 22.5, 359.4])
def test_every_multiple_is_found(interval: float) -> None:
    """As by counting up to the end."""
    multiples = {round(i * interval) for i in range(1, int(5000 / interval) + 1)} | {5000}
    assert {step for step in range(1, 5001) if is_due(step, interval, 5000)} == multiples


def test_a_run_of_any_length_has_its_events_at_once() -> None:
    begin = time.monotonic()
    events = make(eval_every=1e-9, save_every=1e-12, epochs=2**29 - 1)
    assert events.get(events.total_steps - 1) == Event(evaluate=True, teacher=None, save=True)
    assert time.monotonic() - begin < 5.0  # counting them would take hours
