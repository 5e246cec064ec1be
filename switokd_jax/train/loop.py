"""Train, evaluate, save, draw: one run from a config to its summary."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import serialization
from ml_collections import ConfigDict

from switokd_jax import config as configs
from switokd_jax import figures
from switokd_jax.data.dataset import Dataset, load_dataset
from switokd_jax.files import write_json
from switokd_jax.metrics import expert_share
from switokd_jax.parallel import mesh
from switokd_jax.state import TrainState
from switokd_jax.train import evaluator, init_state, preemption, progress, run_spec, summary
from switokd_jax.train.session import NonFiniteError, Session, events, head, lines, open_session, timed
from switokd_jax.workdir import metric_writers, provenance
from switokd_jax.workdir.checkpointer import SaveError
from switokd_jax.workdir.resume import check_workdir, open_workdir

Best = dict[str, dict[str, float]]
TRACED = 3  # steps of a profile
AHEAD = 1  # calls that wait while the devices are at one


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
      Stopped: after SIGTERM or Ctrl-C, once all is saved.
      NonFiniteError: naming the network and the step; no checkpoint knows of that step.
      SaveError: if the last save failed.
    """
    parsed, folder = configs.parse(config), Path(workdir)
    with numerics(parsed):
        check_workdir(folder, config)
        dataset, run = prepare(parsed, devices)
        start = init_state.initial(run)
        if mesh.is_main_process():
            open_workdir(folder, config)
        session = open_session(run, dataset, folder)
        try:
            with preemption.listening() as notice:
                return _train(session, start, notice)
        except NonFiniteError as error:
            error.add_note(
                f"the newest checkpoint is that of step {session.checkpoints.latest_step}, before it; go on from there "
                f"with --config.on_nonfinite=skip, or in another workdir with a lower config.networks.{error.network}."
                "learning_rate or a clip_norm"
            )
            raise


def dry_run(config: ConfigDict) -> str:
    """The plan of a run as text: networks, shapes, steps, memory. Trains and writes nothing."""
    parsed = configs.parse(config)
    with numerics(parsed):
        dataset, run = prepare(parsed)
        return summary.describe(run, dataset, init_state.shapes(run))


@contextlib.contextmanager
def numerics(parsed: configs.Config) -> Iterator[None]:
    """How JAX computes while the context lasts."""
    with jax.enable_x64(parsed.dtype == "float64"), jax.default_matmul_precision(parsed.precision):
        yield


def prepare(parsed: configs.Config, devices: Sequence[jax.Device] | None = None) -> tuple[Dataset, run_spec.RunSpec]:
    """Loads the data set and builds the plan; nothing is written or compiled."""
    run_spec.make_topology(parsed)  # before the data is read: it is the likelier mistake
    dataset = load_dataset(parsed.data, parsed.seed)
    return dataset, run_spec.make(parsed, dataset.info, devices)


def _train(run: Session, host: TrainState, notice: preemption.StopSignal) -> dict[str, Any]:
    config, devices, total = run.plan.config, run.plan.distribution, run.plan.total_steps
    clock, best = progress.Clock(), Best()
    if restored := run.checkpoints.restore(host, devices.abstract_state(serialization.to_state_dict(host))):
        host, saved_progress = restored
        clock, best = progress.Clock(saved_progress["seconds"], saved_progress["examples"]), saved_progress["best"]
    first = int(host.step)
    main = mesh.is_main_process()
    if main:
        metric_writers.truncate_after(run.folder / "metrics.jsonl", first)
        provenance.append_start(run.folder, run.record, first)
    bar = progress.Progress(total, first, run.plan.epoch(total), shown=config.log.progress and main)
    bar.say(summary.describe(run.plan, run.dataset, host))
    if first:
        bar.say(f"resuming {run.folder} at step {first} of {total}")
    bar.head(run.plan.topology.nodes)
    reading = run.train.train_batches(first, total)
    happenings = events(run.plan, first)
    stops = {event.step for event in happenings} | ({first + TRACED} if config.log.profile else set())
    call = timed(run.step, clock, run.folder / "profile" if config.log.profile else None)
    state = devices.device_put(host)
    with contextlib.ExitStack() as open_until_then:
        for each in (bar, run.writer, run.checkpoints, reading):
            open_until_then.callback(each.close)
        coming = run.training(reading, first, stops)
        for stop, evaluate, anchor, save in happenings:
            for after, seen in _steps(run, call, state, coming, first, stop, notice):
                state, first = after, seen[-1]["step"]
                clock.lap()
                run.write(seen)
                run.show(bar, clock, seen)
            clock.stop()
            if first == stop and evaluate:
                best = _evaluate(run, state, stop, best, bar, clock)
                state = _refresh(run, state)
            if first == stop and anchor:
                state = _turn(run, state, anchor)
            if (save or notice.asked) and not run.write([]):  # a checkpoint never knows more than metrics.jsonl
                run.checkpoints.report_failed_save("lines of metrics.jsonl wait for room")
            elif save or notice.asked:
                saved_progress = {"seconds": clock.seconds, "examples": clock.examples, "best": best}
                run.checkpoints.save_latest(first, devices.unreplicate(state), saved_progress)
            if notice.asked:
                break
    if notice.asked and first < total:
        raise preemption.Stopped(notice.asked, first, total, run.folder)
    if unsaved := [name for name in run.plan.topology.nodes if name not in best]:
        raise SaveError(f"network {unsaved[0]!r} was never saved; start the same command again in another --workdir")
    result = summary.summarise(run.plan, devices.unreplicate(state), run.selected_on, best, clock, run.folder)
    result["record"] = dict(run.record)
    if main:
        try:
            write_json(run.folder / "summary.json", result)
            drawn = figures.draw_run(run.folder)
        except OSError as error:
            raise SaveError(f"{run.folder}: {error.strerror}; make room and start the same command again") from error
        bar.say(summary.closing(result, run.folder, drawn))
    return result


def _steps(
    run: Session,
    call: Callable[..., Any],
    state: TrainState,
    coming: Iterator[mesh.DeviceBatches],
    done: int,
    stop: int,
    notice: preemption.StopSignal,
) -> Iterator[tuple[TrainState, list[metric_writers.MetricsRow]]]:
    """Takes the steps after `done` up to `stop` unless asked to stop; yields at each log interval, with its lines."""
    waiting: list[tuple[range, Any]] = []
    while done < stop:
        batches = next(coming)
        state, metrics = call(state, run.train.device_data, batches)
        waiting.append((range(done + 1, done + batches.count + 1), run.plan.distribution.unreplicate(metrics)))
        done += batches.count
        if len(waiting) > AHEAD:
            # No further ahead of the devices: who asks to stop waits for all that has been sent to them.
            jax.block_until_ready(waiting[-1 - AHEAD][1])
        if (asked := notice.look(waiting[-1][0])) or done % run.plan.config.log.every == 0 or done == stop:
            fetched = jax.device_get([metrics for _, metrics in waiting])
            taken = [steps for steps, _ in waiting]
            yield state, [line for each in zip(taken, fetched, strict=True) for line in lines(run.plan, *each)]
            waiting = []
        if asked:
            return


def _evaluate(
    run: Session, state: TrainState, step: int, best: Best, bar: progress.Progress, clock: progress.Clock
) -> Best:
    """Scores all networks on all splits, writes the lines and saves each network that is better than before."""
    one, names = run.plan.distribution.unreplicate, run.plan.topology.nodes
    variables = {name: state.networks[name].evaluated for name in names}
    scores = {
        split: evaluator.score(run.score.call, one, variables, make_loader.device_data, run.scoring(make_loader))
        for split, make_loader in run.scored.items()
    }
    updates = {f"{name}/updates": int(one(state.networks[name].updates)) for name in names}
    scored = [
        {**head(split, run.plan, step), **evaluator.as_line(by_name, names), **updates}
        for split, by_name in scores.items()
    ]
    run.write(scored)
    shares = [*expert_share(jax.device_get(one(state.expert_steps)), step).values()]
    for line in scored:
        bar.evaluated(line, run.pace(clock, step, float(np.mean(shares)) if shares else None))
    better = {
        name: {"score": score["top1"], "step": step, "top1": scores["test"][name]["top1"]}
        for name, score in scores[run.selected_on].items()
        if name not in best or score["top1"] > best[name]["score"]
    }
    saved = {name for name in better if run.checkpoints.save_best(name, step, one(variables[name]))}
    return best | {name: better[name] for name in saved}


def _refresh(run: Session, state: TrainState) -> TrainState:
    """Gives a method that weighs the networks on held-out data its new weights."""
    refresh = run.plan.method.update_memory_at_eval(run.plan.config.hyperparameters)
    if run.correlate is None or refresh is None:
        return state
    held_out = run.scored["validation"]
    variables = {name: state.networks[name].evaluated for name in run.plan.topology.nodes}
    correlation = evaluator.error_correlation(
        run.correlate.call,
        run.plan.distribution.unreplicate,
        variables,
        held_out.device_data,
        run.scoring(held_out),
        held_out.num_examples,
    )
    memory = refresh(jax.numpy.asarray(correlation))
    return dataclasses.replace(state, memory=run.plan.distribution.device_put(memory))


def _turn(run: Session, state: TrainState, anchor: str) -> TrainState:
    """Makes the frozen networks what they were at another checkpoint."""
    networks = dict(state.networks)
    for name, network in run.plan.networks.items():
        if network.frozen:
            like = run.plan.distribution.unreplicate(networks[name].evaluated)
            read = init_state.read_anchor(run.plan, name, anchor, like)
            networks[name] = dataclasses.replace(networks[name], **run.plan.distribution.device_put(read))
    return dataclasses.replace(state, networks=networks)
