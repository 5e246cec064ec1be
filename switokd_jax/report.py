"""What a run says of itself: the plan with CLU's parameter tables before it, the scores after it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
from clu import parameter_overview

from switokd_jax.data.sources import Dataset
from switokd_jax.plan import Plan
from switokd_jax.state import TrainState


def count(params: Any) -> int:
    """Number of parameters."""
    return sum(x.size for x in jax.tree.leaves(params))


def describe(plan: Plan, dataset: Dataset, state: TrainState) -> str:
    """The run plan: data, devices, steps, who learns from whom, parameters and memory."""
    config = plan.config
    height, width, channels = dataset.image_shape
    sizes = f"{len(dataset.train)} train, {len(dataset.validation)} validation, {len(dataset.test)} test"
    devices = f"{plan.devices.device_count} x {jax.devices()[0].platform}"
    out = [
        f"data      {dataset.name}: {sizes}, {height}x{width}x{channels}, {dataset.num_classes} classes",
        f"devices   {devices}, parallelism {config.parallelism}, {config.dtype}",
        f"steps     {plan.total_steps} ({plan.epoch(plan.total_steps):g} epochs of {plan.steps_per_epoch}), "
        f"batch {config.batch_size}",
        f"method    {config.method} {config.hyperparameters}".replace("Hyperparameters", ""),
    ]
    for edge in plan.topology.edges:
        gate = " while that pair is in learning mode" if edge.gate else ""
        out.append(f"edge      {edge.learner} learns from {edge.source}, weight {edge.weight:g}{gate}")
    memory = sum(x.nbytes for x in jax.tree.leaves(state))
    data = sum(split.images.nbytes for split in (dataset.train, dataset.validation, dataset.test))
    out.append(f"memory    {memory / 2**20:.1f} MiB state, {data / 2**20:.1f} MiB images on each device")
    for name, network in state.networks.items():
        out.append(f"network   {name}: {config.networks[name].model}, {count(network.params):,} parameters")
    return "\n".join(out)


def parameter_tables(plan: Plan, state: TrainState) -> str:
    """CLU's table of every parameter, network by network."""
    return "\n".join(
        f"{name} ({plan.config.networks[name].model})\n"
        + parameter_overview.get_parameter_overview(network.params, include_stats=False)
        for name, network in state.networks.items()
    )


def closing(summary: dict[str, Any], pictures: list[Path], folder: Path) -> str:
    """The last lines of a run."""
    out = []
    for name, scores in summary["networks"].items():
        out.append(
            f"{name}: final top-1 {scores['final_top1']:.2f} %, best {scores['best_top1']:.2f} % "
            f"(selected on {summary['best_selected_on']}), {scores['updates']} of {summary['steps']} updates"
        )
    out += [f"{pair}: {100 * s['expert_fraction']:.1f} % expert steps" for pair, s in summary["switch"].items()]
    out.append(f"{summary['examples_per_second']:.0f} images/s over {summary['seconds']:.1f} s of training")
    out.append(f"{folder}: summary.json, metrics.jsonl, checkpoints/, {', '.join(map(str, pictures))}")
    return "\n".join(out)
