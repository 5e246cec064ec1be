"""Where the results of a run go: rows to metrics.jsonl and the console, networks and states to checkpoints."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import jax

from switokd_jax.metrics import expert_share, expert_share_of_rows
from switokd_jax.parallel.multihost import is_main_process
from switokd_jax.state import TrainState, pair_name
from switokd_jax.train.evaluator import Evaluation, metrics_row
from switokd_jax.train.metric_rows import fetch_rows, row_prefix
from switokd_jax.train.progress import Progress, ProgressStats
from switokd_jax.train.run_spec import RunSpec
from switokd_jax.train.timer import TrainingClock
from switokd_jax.workdir.checkpointer import Checkpointer
from switokd_jax.workdir.metric_writers import MetricsRow, Writer

# Of each network at its best evaluation: score (top-1 on the selection split), top1 (on the test split), step.
BestScores = dict[str, dict[str, float]]


@dataclasses.dataclass(frozen=True)
class Outputs:
    """Writers of a run.

    Attributes:
      writer: of metrics.jsonl, TensorBoard and Weights & Biases.
      checkpointer: of the latest state and each network's best.
      progress: the console table.
      clock: of training time.
    """

    writer: Writer
    checkpointer: Checkpointer
    progress: Progress
    clock: TrainingClock

    def write(self, rows: list[MetricsRow]) -> bool:
        """Writes rows of metrics, in the first process only; returns False if some rows wait for disk space."""
        return not is_main_process() or self.writer.write(rows)


def log_train_steps(run: RunSpec, calls: list[tuple[range, Mapping[str, jax.Array]]], outputs: Outputs) -> None:
    """Writes a row for each step of the calls, and shows the last one.

    Raises:
      NonFiniteError: see `metric_rows`.
    """
    rows = fetch_rows(run, calls)
    outputs.clock.update()
    outputs.write(rows)
    if train_rows := [row for row in rows if row["split"] == "train"]:
        shares = [expert_share_of_rows(train_rows, pair_name(pair)) for pair in run.pairs]
        stats = progress_stats(run, outputs.clock, train_rows[-1]["step"], shares)
        outputs.progress.update(train_rows[-1], stats)


def log_evaluations(
    run: RunSpec, state: TrainState, step: int, evaluations: Mapping[str, Evaluation], outputs: Outputs
) -> None:
    """Writes and shows a row for each split."""
    names, unreplicate = run.topology.nodes, run.distribution.unreplicate
    network_of = run.config.network_of
    updates = {f"{name}/updates": int(unreplicate(state.networks[network_of[name]].updates)) for name in names}
    rows = [
        {**row_prefix(split, run, step), **metrics_row(evaluation, names), **updates}
        for split, evaluation in evaluations.items()
    ]
    outputs.write(rows)
    counts = jax.device_get(unreplicate(state.expert_steps))
    stats = progress_stats(run, outputs.clock, step, [*expert_share(counts, step).values()])
    for row in rows:
        outputs.progress.add_eval_row(row, stats)


def save_best(
    run: RunSpec,
    state: TrainState,
    step: int,
    evaluations: Mapping[str, Evaluation],
    best: BestScores,
    outputs: Outputs,
) -> BestScores:
    """Saves each network that is better than ever before; returns the best scores of those that are saved."""
    selection, reported = (list(evaluations.values())[i].networks for i in (0, -1))
    saved, variables = dict(best), run.eval_variables(state)
    for name in run.topology.nodes:
        score = selection[name]["top1"]
        if name in best and score <= best[name]["score"]:
            continue
        if outputs.checkpointer.save_best(name, step, run.distribution.unreplicate(variables[name])):
            saved[name] = {"score": score, "step": step, "top1": reported[name]["top1"]}
    return saved


def save_latest(
    run: RunSpec, state: TrainState, step: int, best: BestScores, outputs: Outputs, *, event_is_due: bool = False
) -> None:
    """Saves the whole state, once metrics.jsonl has its rows: a checkpoint must not be ahead of its metrics.

    Args:
      run: all that is static in the run.
      state: after the step, on the devices.
      step: global, counted from 1.
      best: the best scores so far.
      outputs: of the run.
      event_is_due: whether a stop interrupted the evaluation after the step.
    """
    # Of several processes all save, or none: they do not know whether the first one has written its rows.
    if not outputs.write([]) and run.distribution.process_shard.shard_count == 1:
        outputs.checkpointer.report_failed_save("rows of metrics.jsonl wait for disk space")
        return
    if step == outputs.checkpointer.latest_step:
        return  # saved when a stop interrupted the evaluation after this step
    clock = outputs.clock
    progress = {"seconds": clock.seconds, "examples": clock.examples, "best": best, "event_is_due": event_is_due}
    outputs.checkpointer.save_latest(step, run.distribution.unreplicate(state), progress)


def progress_stats(run: RunSpec, clock: TrainingClock, step: int, shares: Sequence[float]) -> ProgressStats:
    """Returns speed, time to go, and the mean of the pairs' expert shares for the console."""
    examples = (run.total_steps - step) * run.dataset_info.train_examples / run.steps_per_epoch
    rate = clock.examples_per_second
    share = sum(shares) / len(shares) if shares else None
    return ProgressStats(run.epoch(run.total_steps), rate, examples / rate if rate else 0.0, share)
