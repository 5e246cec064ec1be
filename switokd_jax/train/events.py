"""The schedule of a run: after which steps it evaluates, loads another teacher, and saves."""

from __future__ import annotations

from typing import NamedTuple

from switokd_jax.train.run_spec import RunSpec


class Event(NamedTuple):
    """What happens after a global step, in this order.

    Attributes:
      evaluate: evaluate all networks, and save each that is better than before.
      teacher: the checkpoint that the frozen networks load, or None.
      save: save the whole state.
    """

    evaluate: bool
    teacher: str | None
    save: bool


def make_events(run: RunSpec, first_step: int) -> dict[int, Event]:
    """The events after `first_step` by global step, in order; the last step evaluates and saves."""
    steps_per_epoch, total_steps = run.steps_per_epoch, run.total_steps
    evaluations = multiples_of(run.config.eval_every * steps_per_epoch, total_steps)
    saves = multiples_of(run.config.checkpoint.every * steps_per_epoch, total_steps)
    teachers = run.teacher_schedule
    return {
        step: Event(step in evaluations, teachers.get(step), step in saves)
        for step in sorted(evaluations | saves | teachers.keys())
        if step > first_step
    }


def multiples_of(interval: float, total_steps: int) -> set[int]:
    """The whole steps nearest to the multiples of an interval, and the last step; 0 gives the last step alone.

    >>> sorted(multiples_of(2.5, 10))
    [2, 5, 8, 10]
    """
    multiples = range(1, int(total_steps / interval) + 1) if interval > 0 else range(0)
    return {min(max(round(i * interval), 1), total_steps) for i in multiples} | {total_steps}
