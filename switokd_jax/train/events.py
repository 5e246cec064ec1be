"""The schedule of a run: after which steps it evaluates, loads another teacher, and saves."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
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


@dataclasses.dataclass(frozen=True)
class Events:
    """The events of a run. They are computed when they are asked for, so a run of any length has them at once.

    Attributes:
      evaluate_every: steps between two evaluations, perhaps with a fraction.
      save_every: steps between two saves, likewise; 0 for one at the end.
      teachers: checkpoints that the frozen networks load, by global step.
      total_steps: of the run; the last step evaluates and saves.
    """

    evaluate_every: float
    save_every: float
    teachers: Mapping[int, str]
    total_steps: int

    def get(self, step: int) -> Event | None:
        """Returns what happens after a global step; None for nothing."""
        event = Event(
            evaluate=is_due(step, self.evaluate_every, self.total_steps),
            teacher=self.teachers.get(step),
            save=is_due(step, self.save_every, self.total_steps),
        )
        return event if any(event) else None


def make_events(run: RunSpec) -> Events:
    """Makes the events of a run from its config."""
    return Events(
        evaluate_every=run.config.eval_every * run.steps_per_epoch,
        save_every=run.config.checkpoint.every * run.steps_per_epoch,
        teachers=run.teacher_schedule,
        total_steps=run.total_steps,
    )


def is_due(step: int, interval: float, total_steps: int) -> bool:
    """Returns whether a step, from 1, is the whole step nearest to a multiple of an interval, or the last step.

    >>> [step for step in range(1, 11) if is_due(step, 2.5, 10)]
    [2, 5, 8, 10]
    """
    if step == total_steps:
        return True
    if interval <= 1.0:
        return interval > 0.0  # every step
    below = int(step / interval)
    return any(round(multiple * interval) == step for multiple in (below, below + 1))
