"""Trains the networks of a config: one run from the config to its summary."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import serialization
from ml_collections import ConfigDict

from switokd_jax import config as configs
from switokd_jax import figures
from switokd_jax.data.dataset import Dataset, Split, load_dataset
from switokd_jax.data.image_records import RecordSplit
from switokd_jax.data.loader import Loader
from switokd_jax.data.sampling import stack_batches
from switokd_jax.data.stream import ReportSkipped, log_skipped
from switokd_jax.errors import NonFiniteError, SaveError, Stopped
from switokd_jax.files import write_json
from switokd_jax.parallel.multihost import is_main_process, process_index
from switokd_jax.precision import DTYPES, precision_context
from switokd_jax.program_cache import LowerByName, ProgramCache, trace
from switokd_jax.state import TrainState
from switokd_jax.train import init_state, run_programs, summary
from switokd_jax.train.evaluator import (
    Evaluation,
    Evaluator,
    Interrupted,
    make_eval_step,
    open_device_loader,
)
from switokd_jax.train.events import Event, make_events
from switokd_jax.train.outputs import BestScores, Outputs, log_evaluations, log_train_steps, save_best, save_latest
from switokd_jax.train.preemption import StopSignal, handle_stop_signals
from switokd_jax.train.process_checks import check_processes, check_workdir_is_shared, own_code
from switokd_jax.train.progress import Progress
from switokd_jax.train.run_spec import RunSpec, make, make_topology, make_train_step
from switokd_jax.train.thread_context import ThreadContext
from switokd_jax.train.timer import TrainingClock
from switokd_jax.workdir import metric_writers, provenance
from switokd_jax.workdir.checkpointer import Checkpointer, open_checkpointer
from switokd_jax.workdir.layout import Workdir
from switokd_jax.workdir.resume import check_workdir, open_workdir, to_json
from switokd_jax.workdir.skipped_images import SkippedImages

# The first steps write to memory that the system has yet to provide; on CPU they can take twice as long as later ones.
PROFILE_WARMUP, PROFILE_STEPS = 3, 3
MAX_PENDING_CALLS = 1  # calls that are queued behind the one that runs


def train_and_evaluate(
    config: ConfigDict,
    workdir: str | Path,
    devices: Sequence[jax.Device] | None = None,
    thread: ThreadContext | None = None,
    programs: ProgramCache | None = None,
) -> dict[str, Any]:
    """Trains the networks of a config, or resumes an earlier call with the same workdir.

    Args:
      config: as `config.default()` makes it.
      workdir: a folder for config.json, metrics.jsonl, summary.json, checkpoints/, figures/.
      devices: the devices to use; all that JAX sees unless given.
      thread: for a run that is one of several threads of this process; None for the process's only run.
      programs: keeps traced programs for the next start; without it none are kept.

    Returns:
      The summary, the same as in summary.json.

    Raises:
      UserError: one line that names the field, file or network at fault; nothing has been trained.
      Stopped: after SIGTERM or Ctrl-C or the event of `thread`, once everything is saved.
      NonFiniteError: naming the network and the step; no checkpoint includes that step.
      SaveError: if the last save failed.
    """
    parsed, layout = configs.parse(config), Workdir(Path(workdir))
    with precision_context(parsed.dtype, parsed.precision):
        check_workdir(layout, config)
        dataset, run = prepare(parsed, devices)
        record = provenance.collect(run.distribution.device_info, parsed.seed, dataset, own_code(run))
        lower_by_name = run_programs.lower_by_name(run, to_json(config), record, programs)
        state = init_state.init_state(run, lower_by_name)
        check_processes(to_json(config), record)
        provenance.check(layout, record)
        # Nothing has been written so far: all that a user can correct has been checked.
        with open_workdir(layout, config) if is_main_process() else contextlib.nullcontext():
            check_workdir_is_shared(layout)
            return train(run, dataset, state, layout, record, thread, lower_by_name)


def dry_run(config: ConfigDict) -> str:
    """The plan of a run as text: networks, shapes, steps, memory. Trains and writes nothing."""
    parsed = configs.parse(config)
    with precision_context(parsed.dtype, parsed.precision):
        dataset, run = prepare(parsed)
        return summary.describe_plan(run, dataset, init_state.abstract_state(run))


def prepare(parsed: configs.Config, devices: Sequence[jax.Device] | None = None) -> tuple[Dataset, RunSpec]:
    """Loads the data set and builds the run; nothing is written or compiled."""
    make_topology(parsed)  # before the data is read: it is the likelier mistake
    dataset = load_dataset(parsed.data, parsed.seed)
    return dataset, make(parsed, dataset.info, devices)


def train(
    run: RunSpec,
    dataset: Dataset,
    state: TrainState,
    workdir: Workdir,
    record: Mapping[str, Any],
    thread: ThreadContext | None = None,
    lower_by_name: LowerByName = trace,
) -> dict[str, Any]:
    """Trains a run in its opened workdir. Returns and raises as `train_and_evaluate`.

    Args:
      run: all that is static in the run.
      dataset: on the host.
      state: before the first step, on the host.
      workdir: of the run.
      record: the provenance of this start.
      thread: for a run that is one of several threads of this process.
      lower_by_name: traces the run's steps, or finds them traced.
    """
    # ---------- Loaders with their data on the devices, compiled steps, evaluators, outputs.
    config, distribution = run.config, run.distribution
    skipped_images = SkippedImages(workdir.skipped_images(process_index()))
    skipped_images.add(dataset.skipped)
    train_loader = open_loader(run, dataset, dataset.train, skipped_images.add)
    train_step = distribution.compile(make_train_step(run), has_state=True, lower_by_name=lower_by_name)
    evaluators = open_evaluators(run, dataset, skipped_images.add, lower_by_name)
    distribution.barrier()  # opening an Orbax folder is the first collective operation
    save_lock = thread.save_lock if thread else None
    checkpointer = open_checkpointer(workdir, run.topology.nodes, config.checkpoint, run.steps_per_epoch, save_lock)
    writer = open_writer(workdir, config)
    with handle_stop_signals(thread.stop if thread else None) as stop_signal:
        # ---------- Resume from the latest checkpoint, if there is one.
        clock, best, event_is_due = TrainingClock(), BestScores(), False
        if restored := checkpointer.restore(state, distribution.abstract_state(serialization.to_state_dict(state))):
            state, saved = restored
            clock, best = TrainingClock(saved["seconds"], saved["examples"]), saved["best"]
            event_is_due = saved.get("event_is_due", False)  # a stop interrupted the evaluation after that step
        step = int(state.step)
        if is_main_process():
            metric_writers.truncate_after(workdir.metrics, step, keep_evaluation=not event_is_due)
            provenance.append_start(workdir, record, step)
        shown, console = config.log.progress and is_main_process(), thread.console if thread else None
        progress = Progress(run.total_steps, step, run.topology.nodes, shown=shown, file=console)
        progress.print(summary.describe_plan(run, dataset, state))
        if step:
            progress.print(f"resuming {workdir.root} at step {step} of {run.total_steps}")
        progress.print_header()
        outputs = Outputs(writer, checkpointer, progress, clock)

        # ---------- Train: calls of several steps each, none of them across an event or a log interval.
        events = make_events(run)
        profile_start = min(step + PROFILE_WARMUP, run.total_steps - 1) if config.log.profile else None
        profile_bounds = (profile_start, profile_start + PROFILE_STEPS) if profile_start is not None else ()
        state = distribution.device_put(state)
        batches = train_loader.train_batches(step, run.total_steps)
        stacks = stack_batches(
            batches,
            run.max_steps_per_call,
            step,
            lambda step: step % config.log.every == 0 or step in profile_bounds or events.get(step) is not None,
        )
        pending: list[tuple[range, Mapping[str, jax.Array]]] = []
        with contextlib.ExitStack() as on_exit, _advice_if_nonfinite(checkpointer):
            for close in (progress.close, writer.close, checkpointer.close, batches.close):
                on_exit.callback(close)
            for evaluator in evaluators.values():
                on_exit.callback(evaluator.close)
            due = [None] if event_is_due else []  # no steps before the event
            for stack in itertools.chain(due, distribution.prefetch_to_device(stacks)):
                stopping = False
                if stack is not None:
                    if not train_step.is_compiled(train_loader.device_data, stack):
                        jax.block_until_ready(state)
                        clock.stop()  # compilation is not training time
                        train_step.executable(state, train_loader.device_data, stack)
                    clock.start()
                    clock.examples += stack.size * stack.count
                    with _profile(workdir.profile, state, enabled=step == profile_start) as finish:
                        state, metrics = finish(train_step.call(state, train_loader.device_data, stack))
                    pending.append((range(step + 1, step + stack.count + 1), distribution.unreplicate(metrics)))
                    step += stack.count
                    if len(pending) > MAX_PENDING_CALLS:
                        # A stop waits for every call that has been dispatched, so dispatch no further ahead.
                        jax.block_until_ready(pending[-1 - MAX_PENDING_CALLS][1])
                    stopping = stop_signal.should_stop(pending[-1][0])
                event, event_is_due = events.get(step), False
                if not (stopping or event or step % config.log.every == 0):
                    continue

                log_train_steps(run, pending, outputs)
                pending = []
                if not (stopping or event):
                    continue

                clock.stop()
                if event:
                    try:
                        state, best = handle_event(run, event, state, step, evaluators, best, outputs, stop_signal)
                    except Interrupted:
                        stop_signal.accept()
                        stopping = event_is_due = True  # the resumed run begins with this event
                if stopping or (event and event.save):
                    save_latest(run, state, step, best, outputs, event_is_due=event_is_due)
                if stopping:
                    break
        if stop_signal.stop_requested and (step < run.total_steps or event_is_due):
            raise Stopped(stop_signal.stop_requested, step, run.total_steps, workdir.root)

    # ---------- Summary and figures: all is saved, and a signal ends the process at once.
    if unsaved := [name for name in run.topology.nodes if name not in best]:
        raise SaveError(f"network {unsaved[0]!r} was never saved; start the same command in another --workdir")
    final = distribution.unreplicate(state)
    splits = [*evaluators]
    result = summary.make_summary(run, final, splits[0], splits[-1], best, clock, workdir)
    result |= {"skipped_images": len(skipped_images), "record": dict(record)}
    if is_main_process():
        try:
            write_json(workdir.summary, result)
            pictures = figures.draw_run(workdir.root)
        except OSError as error:
            raise SaveError(f"{workdir.root}: {error.strerror}; make room and repeat the same command") from error
        progress.print(summary.format_summary(result, workdir, pictures))
    return result


def open_loader(
    run: RunSpec, dataset: Dataset, split: Split | RecordSplit, report_skipped: ReportSkipped = log_skipped
) -> Loader:
    """The loader of a split, with its data on the devices."""
    config = run.config
    loader = open_device_loader(
        split, dataset.image_spec, config.data, config.seed, config.batch_size, run.distribution
    )
    return dataclasses.replace(loader, report_skipped=report_skipped, views=run.views)


def open_evaluators(
    run: RunSpec,
    dataset: Dataset,
    report_skipped: ReportSkipped = log_skipped,
    lower_by_name: LowerByName = trace,
) -> dict[str, Evaluator]:
    """An evaluator for each split that is not empty, by its name.

    The first one selects the best epoch, and the last one is reported.
    """
    eval_step = run.distribution.compile(
        make_eval_step(run.node_modules, dataset.preprocess, DTYPES[run.config.dtype]),
        has_state=False,
        lower_by_name=lower_by_name,
    )
    splits = {"validation": dataset.validation, "test": dataset.test}
    return {
        name: Evaluator(
            eval_step, open_loader(run, dataset, split, report_skipped), run.distribution, run.max_steps_per_call
        )
        for name, split in splits.items()
        if len(split)
    }


def open_writer(workdir: Workdir, config: configs.Config) -> metric_writers.Writer:
    """The metrics writer. Only the first process writes TensorBoard events and to Weights & Biases."""
    main = is_main_process()
    shown = json.loads(workdir.config.read_text()) if main and config.log.wandb else {}
    return metric_writers.open_writer(workdir, main and config.log.tensorboard, config.log.wandb if main else "", shown)


def handle_event(
    run: RunSpec,
    event: Event,
    state: TrainState,
    step: int,
    evaluators: Mapping[str, Evaluator],
    best: BestScores,
    outputs: Outputs,
    stop_signal: StopSignal,
) -> tuple[TrainState, BestScores]:
    """Does what is due after a step, but for saving the state.

    Args:
      run: all that is static in the run.
      event: what is due.
      state: after the step, on the devices.
      step: global, counted from 1.
      evaluators: by split.
      best: the best scores so far.
      outputs: of the run.
      stop_signal: of the run.

    Returns:
      The state with the method's new memory and the frozen networks' next weights, and the best scores.

    Raises:
      Interrupted: if a signal comes while the networks are evaluated; nothing has been written then.
    """
    if event.evaluate:
        evaluations = evaluate(run, state, evaluators, stop_signal)
        log_evaluations(run, state, step, evaluations, outputs)
        best = save_best(run, state, step, evaluations, best, outputs)
        state = update_method_memory(run, state, evaluations)
    if event.teacher:
        state = load_next_teacher(run, state, event.teacher)
    return state, best


def evaluate(
    run: RunSpec, state: TrainState, evaluators: Mapping[str, Evaluator], stop_signal: StopSignal
) -> dict[str, Evaluation]:
    """Evaluates all networks on every split.

    Raises:
      Interrupted: if a signal comes meanwhile.
    """
    variables = run.eval_variables(state)
    return {
        split: evaluator.run(variables, lambda: stop_signal.interrupts_evaluation)
        for split, evaluator in evaluators.items()
    }


def update_method_memory(run: RunSpec, state: TrainState, evaluations: Mapping[str, Evaluation]) -> TrainState:
    """Updates the memory of a method that weights the networks by their errors on held-out images."""
    update = run.method.update_memory_at_eval(run.config.hyperparameters)
    if update is None:
        return state
    memory = update(jnp.asarray(evaluations["validation"].error_correlation))
    return dataclasses.replace(state, memory=run.distribution.device_put(memory))


def load_next_teacher(run: RunSpec, state: TrainState, source: str) -> TrainState:
    """Loads another checkpoint into the frozen networks."""
    networks = dict(state.networks)
    for name, network in run.networks.items():
        if network.frozen:
            target = run.distribution.unreplicate(networks[name].eval_variables)
            variables = init_state.load_scheduled_teacher(run, name, source, target)
            networks[name] = dataclasses.replace(networks[name], **run.distribution.device_put(variables))
    return dataclasses.replace(state, networks=networks)


@contextlib.contextmanager
def _profile(folder: Path, state: TrainState, *, enabled: bool) -> Iterator[Callable[[Any], Any]]:
    """Writes a trace of what runs inside the context, if enabled; yields the function that waits for its results.

    Before that it waits for the state, which earlier steps may still compute.
    """
    if not enabled:
        yield lambda results: results
        return
    jax.block_until_ready(state)
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # a trace holds a million events, and Python's would fill it
    with jax.profiler.trace(str(folder), profiler_options=options):
        yield jax.block_until_ready


@contextlib.contextmanager
def _advice_if_nonfinite(checkpointer: Checkpointer) -> Iterator[None]:
    """Adds to a `NonFiniteError` how to resume."""
    try:
        yield
    except NonFiniteError as error:
        error.add_note(
            f"the newest checkpoint is that of step {checkpointer.latest_step}, before it; resume from there with "
            "--config.on_nonfinite=skip, or start in another workdir with a lower "
            f"config.networks.{error.network}.learning_rate or a clip_norm"
        )
        raise
