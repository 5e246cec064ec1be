"""Train, evaluate, save, draw: one run from a config to its summary."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import serialization
from ml_collections import ConfigDict

from switokd_jax import checkpoint, distribution, figures, initialise, logs, plan, scoring, summary
from switokd_jax import config as configs
from switokd_jax.data import resident, sources
from switokd_jax.files import write_json
from switokd_jax.state import TrainState, pair_name
from switokd_jax.workdir import check_workdir, open_workdir

Best = dict[str, dict[str, float]]


def train_and_evaluate(
    config: ConfigDict, workdir: str | Path, devices: Sequence[jax.Device] | None = None
) -> dict[str, Any]:
    """Trains the networks of a config, or goes on where an earlier call with the same workdir stopped.

    Args:
      config: as `config.default()` makes it.
      workdir: a folder for config.json, metrics.jsonl, summary.json, checkpoints/, figures/.
      devices: the devices to use; all that JAX sees unless given.

    Returns:
      The summary, as it stands in summary.json.

    Raises:
      ConfigError: one line that names the field, file or network at fault; nothing has been trained.
    """
    parsed, folder = configs.parse(config), Path(workdir)
    with jax.enable_x64(parsed.dtype == "float64"):
        check_workdir(folder, config)
        dataset, run = prepare(parsed, devices)
        open_workdir(folder, config)
        return _train(_open(run, dataset, folder))


def dry_run(config: ConfigDict) -> str:
    """The plan of a run as text: networks, shapes, steps, memory. Trains and writes nothing."""
    parsed = configs.parse(config)
    with jax.enable_x64(parsed.dtype == "float64"):
        dataset, run = prepare(parsed)
        return summary.describe(run, dataset, initialise.initial(run))


def prepare(parsed: configs.Config, devices: Sequence[jax.Device] | None = None) -> tuple[sources.Dataset, plan.Plan]:
    """Loads the data set and builds the plan; nothing is written or compiled."""
    plan.make_topology(parsed)  # before the data is read: it is the likelier mistake
    data = parsed.data
    dataset = sources.load(data.name, data.dir, data.validation_fraction, parsed.seed)
    run = plan.make(parsed, dataset.num_classes, dataset.image_shape, len(dataset.train), dataset.preprocess, devices)
    return dataset, run


@dataclasses.dataclass(frozen=True)
class _Run:
    """What stays while a run trains: the plan, the compiled steps, the data on the devices."""

    plan: plan.Plan
    dataset: sources.Dataset
    folder: Path
    step: distribution.Compiled
    score: distribution.Compiled
    train: resident.Resident
    scored: Mapping[str, tuple[resident.Resident, int]]  # split: (data, examples)
    checkpoints: checkpoint.Checkpoints
    writer: logs.Writer

    @property
    def selected_on(self) -> str:
        """The split whose best epoch counts: validation where there is one."""
        return next(iter(self.scored))


def _open(run: plan.Plan, dataset: sources.Dataset, folder: Path) -> _Run:
    config, place = run.config, run.devices.place
    splits = {"validation": dataset.validation, "test": dataset.test}
    return _Run(
        plan=run,
        dataset=dataset,
        folder=folder,
        step=run.devices.compile(plan.make_step(run), donate=True),
        score=run.devices.compile(plan.make_score(run), donate=False),
        train=place(resident.resident(dataset.train)),
        scored={name: (place(resident.resident(split)), len(split)) for name, split in splits.items() if len(split)},
        checkpoints=checkpoint.open_checkpoints(folder, run.topology.nodes, config.checkpoint, run.steps_per_epoch),
        writer=logs.open_writer(folder, config.log.tensorboard and distribution.is_main_process()),
    )


def _train(run: _Run) -> dict[str, Any]:
    config, devices, total = run.plan.config, run.plan.devices, run.plan.total_steps
    host, clock, best = initialise.initial(run.plan), logs.Clock(), Best()
    if restored := run.checkpoints.restore(host, devices.template(serialization.to_state_dict(host))):
        host, progress = restored
        clock, best = logs.Clock(progress["seconds"], progress["examples"]), progress["best"]
    first = int(host.step)
    main = distribution.is_main_process()
    if main:
        logs.drop_beyond(run.folder / "metrics.jsonl", first)
    bar = logs.Progress(total, first, run.plan.epoch(total), shown=config.log.progress and main)
    bar.say(summary.describe(run.plan, run.dataset, host))
    if first:
        bar.say(f"resuming {run.folder} at step {first} of {total}")
    bar.head(run.plan.topology.nodes)
    indices = resident.batches(config.seed, len(run.dataset.train), config.batch_size, first)
    state, timed = devices.place(host), _timed(run.step, clock)
    for stop, evaluate, save in _events(run.plan, first):
        for after, lines in _steps(run, timed, state, indices, range(first, stop)):
            state = after
            clock.lap()
            _write(run, lines)
            bar.step(lines[-1], _pace(run, clock, lines[-1]["step"], _share(lines)))
        clock.stop()
        first = stop
        if evaluate:
            best = _evaluate(run, state, stop, best, bar, clock)
        if save:
            progress = {"seconds": clock.seconds, "examples": clock.examples, "best": best}
            run.checkpoints.save_latest(stop, devices.one(state), progress)
    run.checkpoints.close()
    run.writer.close()
    bar.close()
    result = summary.summarise(run.plan, devices.one(state), run.selected_on, best, clock, run.folder)
    if main:
        write_json(run.folder / "summary.json", result)
        drawn = figures.draw_run(run.folder)
        bar.say(summary.closing(result, run.folder, drawn))
    return result


def _events(run: plan.Plan, first: int) -> list[tuple[int, bool, bool]]:
    """(step, evaluate, save) after `first`, in order; the last step does both."""
    evaluations = _marks(run.config.eval_every * run.steps_per_epoch, run.total_steps)
    saves = _marks(run.config.checkpoint.every * run.steps_per_epoch, run.total_steps)
    return [(s, s in evaluations, s in saves) for s in sorted(evaluations | saves) if s > first]


def _marks(every: float, total: int) -> set[int]:
    """The whole steps nearest to the multiples of `every`, and the last one."""
    multiples = range(1, int(total / every) + 1) if every > 0 else range(0)
    return {min(max(round(i * every), 1), total) for i in multiples} | {total}


def _timed(step: distribution.Compiled, clock: logs.Clock) -> Callable[..., Any]:
    """The step with its examples counted and its time taken, but for calls that compile."""
    seen: set[int] = set()

    def call(state: TrainState, data: resident.Resident, batch: np.ndarray) -> Any:
        if len(batch) in seen:
            clock.start()
            clock.examples += len(batch)
            return step.call(state, data, batch)
        jax.block_until_ready(state)
        clock.stop()
        seen.add(len(batch))
        return jax.block_until_ready(step.call(state, data, batch))

    return call


def _steps(
    run: _Run, step: Callable[..., Any], state: TrainState, indices: Iterator[np.ndarray], steps: range
) -> Iterator[tuple[TrainState, list[logs.Line]]]:
    """Takes the steps; yields at each log interval with the lines since the last one."""
    waiting: list[Any] = []
    for number in steps:
        state, metrics = step(state, run.train, next(indices))
        waiting.append(metrics)
        done = number + 1
        if done % run.plan.config.log.every == 0 or done == steps.stop:
            host = jax.device_get([run.plan.devices.one(metrics) for metrics in waiting])
            yield (
                state,
                [
                    {**_head("train", run.plan, done - len(host) + 1 + i), **_numbers(run.plan, metrics)}
                    for i, metrics in enumerate(host)
                ],
            )
            waiting = []


def _evaluate(run: _Run, state: TrainState, step: int, best: Best, bar: logs.Progress, clock: logs.Clock) -> Best:
    """Scores all networks on all splits, writes the lines and saves each network that is better than before."""
    one, names = run.plan.devices.one, run.plan.topology.nodes
    variables = {name: state.networks[name].evaluated for name in names}
    scores = {
        split: scoring.score(run.score.call, one, variables, data, examples, run.plan.config.batch_size)
        for split, (data, examples) in run.scored.items()
    }
    lines = [{**_head(split, run.plan, step), **scoring.as_line(by_name, names)} for split, by_name in scores.items()]
    _write(run, lines)
    shares = [*logs.expert_shares(jax.device_get(one(state.expert_steps)), step).values()]
    for line in lines:
        bar.evaluated(line, _pace(run, clock, step, float(np.mean(shares)) if shares else None))
    better = {
        name: {"score": score["top1"], "step": step, "top1": scores["test"][name]["top1"]}
        for name, score in scores[run.selected_on].items()
        if name not in best or score["top1"] > best[name]["score"]
    }
    for name in better:
        run.checkpoints.save_best(name, step, jax.tree.map(np.array, jax.device_get(one(variables[name]))))
    return best | better


def _write(run: _Run, lines: list[logs.Line]) -> None:
    if distribution.is_main_process():
        run.writer.write(lines)


def _head(split: str, run: plan.Plan, step: int) -> logs.Line:
    return {"split": split, "epoch": round(run.epoch(step), 6), "step": step}


def _pace(run: _Run, clock: logs.Clock, step: int, expert: float | None) -> logs.Pace:
    examples = (run.plan.total_steps - step) * len(run.dataset.train) / run.plan.steps_per_epoch
    return logs.Pace(clock.rate, examples / clock.rate if clock.rate else 0.0, expert)


def _share(lines: list[logs.Line]) -> float | None:
    keys = [key for key in lines[-1] if key.endswith("/expert")]
    return float(np.mean([[line[key] for key in keys] for line in lines])) if keys else None


def _numbers(run: plan.Plan, metrics: Mapping[str, Any]) -> dict[str, float | bool]:
    # JAX sorts the keys of a dict; people read the networks in the topology's order.
    owners = [*run.topology.nodes, *map(pair_name, run.pairs)]
    ordered = sorted(metrics, key=lambda name: owners.index(name.partition("/")[0]))
    return {name: bool(metrics[name]) if metrics[name].dtype == bool else float(metrics[name]) for name in ordered}
