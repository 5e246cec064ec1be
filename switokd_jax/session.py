"""What stays while a run trains: its plan, its compiled steps, its data on the devices; and when it does what."""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from switokd_jax import checkpoint, distribution, logs, plan
from switokd_jax.data import batches, sources
from switokd_jax.data.encoded import Encoded
from switokd_jax.data.feeds import Feed, feed
from switokd_jax.state import pair_name


@dataclasses.dataclass(frozen=True)
class Session:
    """Made by `open_session`.

    Attributes:
      plan: all that the run is.
      dataset: on the host.
      folder: the workdir.
      step: the compiled training steps.
      score: the compiled scoring steps.
      correlate: the compiled steps behind the method's refresh, or None where it has none.
      train: the training split, its data on the devices.
      scored: the other splits likewise; the first one selects the best epoch.
      checkpoints: of the workdir.
      writer: of metrics.
    """

    plan: plan.Plan
    dataset: sources.Dataset
    folder: Path
    step: distribution.Compiled
    score: distribution.Compiled
    correlate: distribution.Compiled | None
    train: Feed
    scored: Mapping[str, Feed]
    checkpoints: checkpoint.Checkpoints
    writer: logs.Writer

    @property
    def selected_on(self) -> str:
        """The split whose best epoch counts: validation where there is one."""
        return next(iter(self.scored))

    @property
    def most(self) -> int:
        """Largest number of steps in a call."""
        config = self.plan.config
        return config.steps_per_call if config.data.pipeline == "resident" else 1  # a stream's images are large

    def training(
        self, reading: batches.Reading, first: int, stops: Container[int] = ()
    ) -> Iterator[distribution.Batches]:
        """The batches after the step `first` on the devices, no call over a log interval or one of `stops`."""
        every = self.plan.config.log.every
        stacks = batches.stacked(reading, self.most, first, lambda step: step % every == 0 or step in stops)
        return self.plan.devices.ahead(stacks)

    def scoring(self, split: Feed) -> Iterator[distribution.Batches]:
        """The batches of a split on the devices."""
        return self.plan.devices.ahead(batches.stacked(split.scoring(), self.most))

    def write(self, lines: list[logs.Line]) -> None:
        """Writes lines of metrics, in one process only."""
        if distribution.is_main_process():
            self.writer.write(lines)

    def pace(self, clock: logs.Clock, step: int, expert: float | None) -> logs.Pace:
        """For the table on the console."""
        examples = (self.plan.total_steps - step) * self.train.size / self.plan.steps_per_epoch
        return logs.Pace(clock.rate, examples / clock.rate if clock.rate else 0.0, expert)


def open_session(run: plan.Plan, dataset: sources.Dataset, folder: Path) -> Session:
    """Places the data and opens the workdir's files; compiles nothing yet."""
    config, devices = run.config, run.devices
    splits = {"validation": dataset.validation, "test": dataset.test}
    refreshes = run.method.refresh(config.hyperparameters) is not None

    def open_feed(split: sources.Split | Encoded) -> Feed:
        made = feed(split, dataset.form, config.data, config.seed, config.batch_size, devices.share)
        return dataclasses.replace(made, data=devices.place(made.data))

    return Session(
        plan=run,
        dataset=dataset,
        folder=folder,
        step=devices.compile(plan.make_step(run), carried=True),
        score=devices.compile(plan.make_score(run), carried=False),
        correlate=devices.compile(plan.make_correlation(run), carried=False) if refreshes else None,
        train=open_feed(dataset.train),
        scored={name: open_feed(split) for name, split in splits.items() if len(split)},
        checkpoints=checkpoint.open_checkpoints(folder, run.topology.nodes, config.checkpoint, run.steps_per_epoch),
        writer=logs.open_writer(folder, config.log.tensorboard and distribution.is_main_process()),
    )


class Event(NamedTuple):
    """What happens after a step: an evaluation, another checkpoint for the frozen networks, a save, in this order."""

    step: int
    evaluate: bool
    anchor: str | None
    save: bool


def events(run: plan.Plan, first: int) -> list[Event]:
    """What happens after the step `first`, in order; the last step evaluates and saves."""
    per_epoch, total = run.steps_per_epoch, run.total_steps
    evaluations = _marks(run.config.eval_every * per_epoch, total)
    saves = _marks(run.config.checkpoint.every * per_epoch, total)
    turns = run.turns
    steps = sorted(evaluations | saves | {*turns})
    return [Event(step, step in evaluations, turns.get(step), step in saves) for step in steps if step > first]


def _marks(every: float, total: int) -> set[int]:
    """The whole steps nearest to the multiples of `every`, and the last one."""
    multiples = range(1, int(total / every) + 1) if every > 0 else range(0)
    return {min(max(round(i * every), 1), total) for i in multiples} | {total}


def head(split: str, run: plan.Plan, step: int) -> logs.Line:
    """How a line of metrics begins."""
    return {"split": split, "epoch": round(run.epoch(step), 6), "step": step}


def lines(run: plan.Plan, steps: range, metrics: Mapping[str, np.ndarray]) -> list[logs.Line]:
    """Metrics [most] of the calls' steps as JSON values, a line for each step, network by network in the topology's
    order (JAX sorts by name).

    Args:
      run: the plan.
      steps: their global steps, counted from 1.
      metrics: by name; rows beyond the steps mean nothing.
    """
    owners = [*run.topology.nodes, *map(pair_name, run.pairs)]
    ordered = sorted(metrics, key=lambda name: owners.index(name.partition("/")[0]))
    values = {name: metrics[name].tolist() for name in ordered}
    return [
        {**head("train", run, step), **{name: value[i] for name, value in values.items()}}
        for i, step in enumerate(steps)
    ]
