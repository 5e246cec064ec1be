"""What a run says of itself: the plan with CLU's parameter tables before it, the scores after it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
from clu import parameter_overview

from switokd_jax.data.dataset import Dataset, Split
from switokd_jax.metrics import expert_share
from switokd_jax.models import flops
from switokd_jax.state import TrainState, pair_name
from switokd_jax.train.progress import Clock
from switokd_jax.train.run_spec import RunSpec
from switokd_jax.workdir.layout import Workdir
from switokd_jax.workdir.metric_writers import read_metrics


@dataclasses.dataclass(frozen=True)
class _Row:
    """One module of a network in the parameter table."""

    module: str
    arrays: int
    parameters: int


def count(params: Any) -> int:
    """Number of parameters."""
    return sum(x.size for x in jax.tree.leaves(params))


def describe(plan: RunSpec, dataset: Dataset, state: TrainState) -> str:
    """The run plan: data, devices, steps, who learns from whom, parameters and memory."""
    config = plan.config
    height, width, channels = dataset.image_spec.shape
    sizes = f"{len(dataset.train)} train, {len(dataset.validation)} validation, {len(dataset.test)} test"
    devices = f"{plan.distribution.device_count} x {plan.distribution.platform}"
    rows = [
        ("data", f"{dataset.name}: {sizes}"),
        ("", f"{height}x{width}x{channels} pixels, {len(dataset.classes)} classes"),
        ("devices", f"{devices}, {config.parallelism}, {config.dtype}"),
        ("steps", f"{plan.total_steps}: {plan.epoch(plan.total_steps):g} epochs of {plan.steps_per_epoch}"),
        ("batch", f"{config.batch_size} over all devices"),
        ("method", config.method),
    ]
    hyperparameters = dataclasses.asdict(config.hyperparameters)
    rows += [("", f"{name} = {'adaptive' if value is None else value}") for name, value in hyperparameters.items()]
    for edge in plan.topology.edges if plan.method.switches else ():
        gate = ", in learning mode" if edge.gate else ""
        rows.append(("edge", f"{edge.learner} learns from {edge.source}, weight {edge.weight:g}{gate}"))
    memory = plan.distribution.bytes_per_device(state) / 2**20
    splits = (dataset.train, dataset.validation, dataset.test)
    images = sum(split.images.nbytes for split in splits if isinstance(split, Split)) / 2**20
    rows.append(("memory", f"{memory:.1f} MiB state and {images:.1f} MiB images on each device"))
    table = "\n".join(f"{head:<9}{row}" for head, row in rows)
    return "\n".join([table, *(_parameters(name, plan, state.networks[name].params) for name in plan.topology.nodes)])


def _parameters(name: str, plan: RunSpec, params: Any) -> str:
    # One row for each top-level module: a row for each array would run over several screens.
    rows = [_Row(module, len(jax.tree.leaves(tree)), count(tree)) for module, tree in params.items()]
    table = parameter_overview.make_table(rows)
    return f"network  {name}: {plan.config.networks[name].model}, {count(params):,} parameters\n{table}"


def summarise(
    plan: RunSpec, final: TrainState, selected_on: str, best: dict[str, Any], clock: Clock, workdir: Workdir
) -> dict[str, Any]:
    """What summary.json holds; see the README for its fields."""
    last = [line for line in read_metrics(workdir.metrics) if line["split"] == "test"][-1]
    steps = int(final.step)
    shares = expert_share(final.expert_steps, steps)
    networks = {name: _network(name, plan, final, last, best[name]) for name in plan.topology.nodes}
    examples = plan.epoch(steps) * plan.dataset_info.train_examples
    return {
        "steps": steps,
        "epochs": round(plan.epoch(steps), 6),
        "seconds": round(clock.seconds, 3),
        "examples_per_second": round(clock.rate, 1),
        "peak_bytes_per_device": plan.distribution.peak_bytes,
        "best_selected_on": selected_on,
        "examples": round(examples),
        "training_flops": flops.training_flops(networks, steps, examples),
        "networks": networks,
        "switch": {pair: {"expert_fraction": shares[pair]} for pair in map(pair_name, plan.pairs)},
    }


def _network(name: str, plan: RunSpec, final: TrainState, last: dict[str, Any], best: dict[str, Any]) -> dict[str, Any]:
    counted = flops.count_flops_per_image(plan.networks[name].module, plan.dataset_info.image_shape)
    return {
        "model": plan.config.networks[name].model,
        "parameters": count(final.networks[name].params),
        "final_top1": last[f"{name}/top1"],
        "best_top1": best["top1"],
        "best_epoch": round(plan.epoch(int(best["step"])), 6),
        "final_loss": last[f"{name}/loss"],
        "updates": int(final.networks[name].updates),
        "forward_flops": counted.forward,
        "backward_flops": counted.backward,
    }


def closing(result: dict[str, Any], workdir: Workdir, pictures: list[Path]) -> str:
    """The last lines of a run."""
    out = [
        f"{name}: final top-1 {scores['final_top1']:.2f} %, best {scores['best_top1']:.2f} % "
        f"({result['best_selected_on']}), {scores['updates']} of {result['steps']} updates"
        for name, scores in result["networks"].items()
    ]
    out += [f"{pair}: {100 * s['expert_fraction']:.1f} % expert steps" for pair, s in result["switch"].items()]
    out.append(f"{result['examples_per_second']:.0f} images/s over {result['seconds']:.1f} s of training")
    out += [f"wrote {path}" for path in (workdir.summary, *pictures)]
    return "\n".join(out)
