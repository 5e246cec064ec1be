"""Text and JSON about a run: the plan with CLU's parameter tables before it, the summary after it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
from clu import parameter_overview

from switokd_jax.data.dataset import Dataset, Split
from switokd_jax.errors import UserError
from switokd_jax.metrics import expert_share
from switokd_jax.models import flops
from switokd_jax.state import TrainState, pair_name
from switokd_jax.train.run_spec import RunSpec
from switokd_jax.train.timer import TrainingClock
from switokd_jax.workdir.layout import Workdir
from switokd_jax.workdir.metric_writers import last_row


@dataclasses.dataclass(frozen=True)
class _Row:
    """One row of the parameter table: a module of a network."""

    module: str
    arrays: int
    parameters: int


def count_parameters(params: Any) -> int:
    """Counts the parameters of a tree of arrays."""
    return sum(x.size for x in jax.tree.leaves(params))


def describe_plan(run: RunSpec, dataset: Dataset, state: TrainState) -> str:
    """Formats the plan of a run: data, devices, steps, edges, parameters and memory."""
    config = run.config
    height, width, channels = dataset.image_spec.shape
    sizes = f"{len(dataset.train)} train, {len(dataset.validation)} validation, {len(dataset.test)} test"
    devices = f"{run.distribution.device_count} x {run.distribution.platform}"
    rows = [
        ("data", f"{dataset.name}: {sizes}"),
        ("", f"{height}x{width}x{channels} pixels, {len(dataset.classes)} classes"),
        ("devices", f"{devices}, {config.parallelism}, {config.dtype}"),
        ("steps", f"{run.total_steps}: {run.epoch(run.total_steps):g} epochs of {run.steps_per_epoch}"),
        ("batch", f"{config.batch_size} over all devices"),
        ("method", config.method),
    ]
    hyperparameters = dataclasses.asdict(config.hyperparameters)
    rows += [("", f"{name} = {'adaptive' if value is None else value}") for name, value in hyperparameters.items()]
    for edge in run.topology.edges if run.method.switches else ():
        gate = ", in learning mode" if edge.gate else ""
        rows.append(("edge", f"{edge.learner} learns from {edge.source}, weight {edge.weight:g}{gate}"))
    memory = run.distribution.bytes_per_device(state) / 2**20
    splits = (dataset.train, dataset.validation, dataset.test)
    images = sum(split.images.nbytes for split in splits if isinstance(split, Split)) / 2**20
    rows.append(("memory", f"{memory:.1f} MiB state and {images:.1f} MiB images on each device"))
    table = "\n".join(f"{head:<9}{row}" for head, row in rows)
    return "\n".join([table, *(_parameters(name, run, state.networks[name].params) for name in run.networks)])


def _parameters(name: str, run: RunSpec, params: Any) -> str:
    # One row for each top-level module: a row for each array would run over several screens.
    rows = [_Row(module, len(jax.tree.leaves(tree)), count_parameters(tree)) for module, tree in params.items()]
    table = parameter_overview.make_table(rows)
    return f"network  {name}: {run.config.networks[name].model}, {count_parameters(params):,} parameters\n{table}"


def make_summary(
    run: RunSpec,
    final: TrainState,
    selection_split: str,
    reported_split: str,
    best: dict[str, Any],
    clock: TrainingClock,
    workdir: Workdir,
) -> dict[str, Any]:
    """Collects what summary.json holds.

    Args:
      run: all that is static in the run.
      final: the last state, single values.
      selection_split: on which the best epoch was selected.
      reported_split: 'test', or 'validation' if the data set has no test split.
      best: by network, score, step and top1 at its best evaluation.
      clock: training time and examples.
      workdir: of the run.
    """
    last = last_row(workdir.metrics, reported_split)
    if last is None:
        raise UserError(f"{workdir.metrics} lacks the last evaluation; start the same command in another --workdir")
    steps = int(final.step)
    shares = expert_share(final.expert_steps, steps)
    networks = {node: _network(node, run, final, last, best[node]) for node in run.topology.nodes}
    examples = run.epoch(steps) * run.dataset_info.train_examples
    return {
        "steps": steps,
        "epochs": round(run.epoch(steps), 6),
        "seconds": round(clock.seconds, 3),
        "examples_per_second": round(clock.examples_per_second, 1),
        "peak_bytes_per_device": run.distribution.peak_bytes,
        "best_selected_on": selection_split,
        "reported_on": reported_split,
        "examples": round(examples),
        "training_flops": flops.training_flops(networks, steps, examples),
        "networks": networks,
        "switch": {pair: {"expert_fraction": shares[pair]} for pair in map(pair_name, run.pairs)},
    }


def _network(node: str, run: RunSpec, final: TrainState, last: dict[str, Any], best: dict[str, Any]) -> dict[str, Any]:
    """Collects what summary.json holds of a node: of a branch, its parameters with those of the trunk."""
    name = run.config.network_of[node]
    network = run.networks[name]
    counted = flops.count_flops_per_image(network.module, run.input_shape(name))
    return {
        "model": run.config.networks[name].model,
        "parameters": count_parameters(run.eval_variables(final)[node]["params"]),
        "final_top1": last[f"{node}/top1"],
        "best_top1": best["top1"],
        "best_epoch": round(run.epoch(int(best["step"])), 6),
        "final_loss": last[f"{node}/loss"],
        "updates": int(final.networks[name].updates),
        # Branches share the cost of their network, so that the sum over the nodes is that of the run.
        "forward_flops": counted.forward / len(network.nodes),
        "backward_flops": counted.backward / len(network.nodes),
    }


def format_summary(result: dict[str, Any], workdir: Workdir, pictures: list[Path]) -> str:
    """Formats the last lines that a run prints."""
    lines = [
        f"{name}: final top-1 {scores['final_top1']:.2f} %, best {scores['best_top1']:.2f} % "
        f"({result['best_selected_on']}), {scores['updates']} of {result['steps']} updates"
        for name, scores in result["networks"].items()
    ]
    lines += [f"{pair}: {100 * s['expert_fraction']:.1f} % expert steps" for pair, s in result["switch"].items()]
    if result["reported_on"] != "test":
        lines.append(f"the data set has no test split: these are results on the {result['reported_on']} split")
    if result["skipped_images"]:
        lines.append(f"{result['skipped_images']} images could not be decoded: {workdir.skipped_images(0)}")
    lines.append(f"{result['examples_per_second']:.0f} images/s over {result['seconds']:.1f} s of training")
    lines += [f"wrote {path}" for path in (workdir.summary, *pictures)]
    return "\n".join(lines)
