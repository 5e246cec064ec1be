"""The schedule of a run: what happens after which step."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from switokd_jax.train.events import Event, make_events, multiples_of


def run(eval_every: float, save_every: float, teachers: dict[int, str] | None = None) -> Any:
    """Ten epochs of four steps."""
    config = SimpleNamespace(eval_every=eval_every, checkpoint=SimpleNamespace(every=save_every))
    return SimpleNamespace(steps_per_epoch=4, total_steps=40, config=config, teacher_schedule=teachers or {})


def test_evaluations_and_saves_meet_at_the_last_step() -> None:
    events = make_events(run(eval_every=3, save_every=5), 0)
    assert events == {
        12: Event(evaluate=True, teacher=None, save=False),
        20: Event(evaluate=False, teacher=None, save=True),
        24: Event(evaluate=True, teacher=None, save=False),
        36: Event(evaluate=True, teacher=None, save=False),
        40: Event(evaluate=True, teacher=None, save=True),
    }


def test_a_resumed_run_has_only_what_comes_after_its_step() -> None:
    assert [*make_events(run(eval_every=3, save_every=5), 24)] == [36, 40]


def test_a_finished_run_has_no_events() -> None:
    assert make_events(run(eval_every=1, save_every=1), 40) == {}


def test_teachers_have_events_of_their_own() -> None:
    events = make_events(run(eval_every=10, save_every=10, teachers={8: "a", 16: "b"}), 0)
    assert [(step, event.teacher) for step, event in events.items()] == [(8, "a"), (16, "b"), (40, None)]


@pytest.mark.parametrize(
    ("interval", "steps"),
    [(0, {40}), (100, {40}), (16, {16, 32, 40}), (2.5, {2, 5, 8, 10, 12, 15, 18, 20, 22, 25, 28, 30, 32, 35, 38, 40})],
)
def test_multiples_are_whole_steps(interval: float, steps: set[int]) -> None:
    assert multiples_of(interval, 40) == steps


def test_an_interval_below_one_step_is_every_step() -> None:
    assert multiples_of(0.3, 3) == {1, 2, 3}
