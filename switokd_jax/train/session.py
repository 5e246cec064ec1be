"""What stays while a run trains: its plan, its compiled steps, its data on the devices; and when it does what."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Container, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from switokd_jax.config import Config
from switokd_jax.data import resident, sampling
from switokd_jax.data.dataset import Dataset, Split
from switokd_jax.data.image_records import RecordSplit
from switokd_jax.data.loader import Loader, make_loader
from switokd_jax.parallel import mesh
from switokd_jax.state import TrainState, pair_name
from switokd_jax.train import progress, run_spec
from switokd_jax.workdir import checkpointer, metric_writers, provenance


@dataclasses.dataclass(frozen=True)
class Session:
    """Made by `open_session`.

    Attributes:
      plan: all that the run is.
      dataset: on the host.
      folder: the workdir.
      record: of this start, for provenance.json and summary.json.
      step: the compiled training steps.
      score: the compiled scoring steps.
      correlate: the compiled steps behind the method's refresh, or None where it has none.
      train: the training split, its data on the devices.
      scored: the other splits likewise; the first one selects the best epoch.
      checkpoints: of the workdir.
      writer: of metrics.
    """

    plan: run_spec.RunSpec
    dataset: Dataset
    folder: Path
    record: Mapping[str, Any]
    step: mesh.CompiledStep
    score: mesh.CompiledStep
    correlate: mesh.CompiledStep | None
    train: Loader
    scored: Mapping[str, Loader]
    checkpoints: checkpointer.Checkpointer
    writer: metric_writers.Writer

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
        self, reading: sampling.BatchIterator, first: int, stops: Container[int] = ()
    ) -> Iterator[mesh.DeviceBatches]:
        """The batches after the step `first` on the devices, no call over a log interval or one of `stops`."""
        every = self.plan.config.log.every
        stacks = sampling.stack_batches(reading, self.most, first, lambda step: step % every == 0 or step in stops)
        return self.plan.distribution.prefetch_to_device(stacks)

    def scoring(self, split: Loader) -> Iterator[mesh.DeviceBatches]:
        """The batches of a split on the devices."""
        return self.plan.distribution.prefetch_to_device(sampling.stack_batches(split.eval_batches(), self.most))

    def write(self, lines: list[metric_writers.MetricsRow]) -> bool:
        """Writes lines of metrics, in one process only; whether the run may be saved, as none waits for room."""
        written = not mesh.is_main_process() or self.writer.write(lines)
        return written or self.plan.distribution.process_shard.shard_count > 1  # of several processes all save, or none

    def show(self, bar: progress.Progress, clock: progress.Clock, seen: list[metric_writers.MetricsRow]) -> None:
        """Moves the live row of the console to the last of some training steps."""
        trained = [line for line in seen if line["split"] == "train"]
        if trained:
            keys = [key for key in trained[-1] if key.endswith("/expert")]
            expert = float(np.mean([[line[key] for key in keys] for line in trained])) if keys else None
            bar.step(trained[-1], self.pace(clock, trained[-1]["step"], expert))

    def pace(self, clock: progress.Clock, step: int, expert: float | None) -> progress.ProgressStats:
        """For the table on the console."""
        examples = (self.plan.total_steps - step) * self.train.num_examples / self.plan.steps_per_epoch
        return progress.ProgressStats(clock.rate, examples / clock.rate if clock.rate else 0.0, expert)


def open_session(run: run_spec.RunSpec, dataset: Dataset, folder: Path) -> Session:
    """Places the data and opens the workdir's files; compiles nothing yet.

    Raises:
      ConfigError: if the folder's run has seen other data.
    """
    this = provenance.collect(run, dataset)
    provenance.check(folder, this)
    config, devices = run.config, run.distribution
    splits = {"validation": dataset.validation, "test": dataset.test}
    refreshes = run.method.update_memory_at_eval(config.hyperparameters) is not None

    def open_feed(split: Split | RecordSplit) -> Loader:
        made = make_loader(
            split, dataset.image_spec, config.data, config.seed, config.batch_size, devices.process_shard
        )
        return dataclasses.replace(made, device_data=devices.device_put(made.device_data))

    train = open_feed(dataset.train)
    scored = {name: open_feed(split) for name, split in splits.items() if len(split)}
    devices.barrier()  # Orbax sends a first message when it opens a folder
    return Session(
        plan=run,
        dataset=dataset,
        folder=folder,
        record=this,
        step=devices.compile(run_spec.make_step(run), has_state=True),
        score=devices.compile(run_spec.make_score(run), has_state=False),
        correlate=devices.compile(run_spec.make_correlation(run), has_state=False) if refreshes else None,
        train=train,
        scored=scored,
        checkpoints=checkpointer.open_checkpointer(folder, run.topology.nodes, config.checkpoint, run.steps_per_epoch),
        writer=_open_writer(folder, config),
    )


def _open_writer(folder: Path, config: Config) -> metric_writers.Writer:
    """Of the first process; the others write nothing."""
    main = mesh.is_main_process()
    facts = json.loads((folder / "config.json").read_text()) if main and config.log.wandb else {}
    return metric_writers.open_writer(folder, main and config.log.tensorboard, config.log.wandb if main else "", facts)


def timed(step: mesh.CompiledStep, clock: progress.Clock, profile: Path | None) -> Callable[..., Any]:
    """The steps with their examples counted and their time taken; compiling is not.

    The first call that does not compile is traced into the folder `profile`, if there is one.
    """
    compiled: set[int] = set()

    def call(state: TrainState, data: resident.DeviceDataset | None, coming: mesh.DeviceBatches) -> Any:
        traced = profile is not None and not compiled
        if coming.size not in compiled:
            jax.block_until_ready(state)
            clock.stop()
            compiled.add(coming.size)
            step.executable(state, data, coming)
        clock.start()
        clock.examples += coming.size * coming.count
        if traced:
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0  # a trace holds a million events, and Python's would fill it
            with jax.profiler.trace(str(profile), profiler_options=options):
                return jax.block_until_ready(step.call(state, data, coming))
        return step.call(state, data, coming)

    return call


class Event(NamedTuple):
    """What happens after a step: an evaluation, another checkpoint for the frozen networks, a save, in this order."""

    step: int
    evaluate: bool
    anchor: str | None
    save: bool


def events(run: run_spec.RunSpec, first: int) -> list[Event]:
    """What happens after the step `first`, in order; the last step evaluates and saves."""
    per_epoch, total = run.steps_per_epoch, run.total_steps
    evaluations = _marks(run.config.eval_every * per_epoch, total)
    saves = _marks(run.config.checkpoint.every * per_epoch, total)
    turns = run.teacher_schedule
    steps = sorted(evaluations | saves | {*turns})
    return [Event(step, step in evaluations, turns.get(step), step in saves) for step in steps if step > first]


def _marks(every: float, total: int) -> set[int]:
    """The whole steps nearest to the multiples of `every`, and the last one."""
    multiples = range(1, int(total / every) + 1) if every > 0 else range(0)
    return {min(max(round(i * every), 1), total) for i in multiples} | {total}


def head(split: str, run: run_spec.RunSpec, step: int) -> metric_writers.MetricsRow:
    """How a line of metrics begins."""
    return {"split": split, "epoch": round(run.epoch(step), 6), "step": step}


def lines(run: run_spec.RunSpec, steps: range, metrics: Mapping[str, np.ndarray]) -> list[metric_writers.MetricsRow]:
    """Metrics [most] of the calls' steps as JSON values, a line for each step, network by network in the topology's
    order (JAX sorts by name).

    Args:
      run: the plan.
      steps: their global steps, counted from 1.
      metrics: by name; rows beyond the steps mean nothing.

    Raises:
      NonFiniteError: if a step was not finite, unless such steps are skipped: their split is 'skipped', and in place of
        metrics they have the names of those networks.
    """
    owners = [*run.topology.nodes, *map(pair_name, run.pairs)]
    ordered = sorted(metrics, key=lambda name: owners.index(name.partition("/")[0]))
    values = {name: metrics[name].tolist() for name in ordered}
    flags = [name for name in ordered if name.endswith("/finite")]
    made = []
    for i, step in enumerate(steps):
        line = {**head("train", run, step), **{name: value[i] for name, value in values.items() if name not in flags}}
        if bad := [name.removesuffix("/finite") for name in flags if not values[name][i]]:
            if run.config.on_nonfinite == "stop":
                raise NonFiniteError(_cause(bad, line), step)
            line = {**head("skipped", run, step), "networks": bad}
        made.append(line)
    return made


def _cause(bad: list[str], line: metric_writers.MetricsRow) -> str:
    """Of the networks that are not finite one that is so by itself, not for what it hears of the others."""
    return next((name for name in bad if not np.isfinite(line[f"{name}/cross_entropy"])), bad[0])


class NonFiniteError(Exception):
    """A loss or gradient that is not finite.

    Attributes:
      network: the one where it began.
      step: from 1.
    """

    def __init__(self, network: str, step: int):
        super().__init__(f"network {network!r}: its loss or gradient is not finite at step {step}")
        self.network, self.step = network, step
