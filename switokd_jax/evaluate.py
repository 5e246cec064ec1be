"""Evaluates the networks of a run on a split, or on another data set whose classes the run knows by name:

python -m switokd_jax.evaluate --workdir=runs/digits
python -m switokd_jax.evaluate --workdir=runs/cifar100 --data=folder --data_dir=my_images --split=test
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from pathlib import Path
from typing import Any

import jax

from switokd_jax import cli
from switokd_jax.analysis import trained_network
from switokd_jax.data.evaluation_split import load_evaluation_split, pixel_scale
from switokd_jax.data.image_records import ImageSpec
from switokd_jax.errors import UserError
from switokd_jax.files import write_json
from switokd_jax.models.layers import layers_of
from switokd_jax.parallel import mesh
from switokd_jax.train.evaluator import Evaluator, make_eval_step, open_device_loader

SPLITS = ("test", "validation", "train")
BATCH_SIZE = 128
METRICS = ("top1", "top5", "loss", "calibration_error")


def evaluate(
    workdir: str | Path, version: str = "best", split: str = "test", data: str = "", data_dir: str = ""
) -> dict[str, Any]:
    """Evaluates every network of a run on every example of a split, without augmentation.

    Args:
      workdir: of the run.
      version: checkpoint: 'best', 'latest', or a step.
      split: one of `SPLITS`.
      data: name of another data set, with some or all of the run's classes; the run's own unless given.
      data_dir: its folder.

    Returns:
      {'examples': int, 'networks': {name: {'top1', 'top5' (percent), 'loss', 'calibration_error'}}, 'agreement':
      {'one, other': percent of examples that both put into the same class}}, and for several networks 'ensemble', the
      same metrics of their mean probabilities.

    Raises:
      UserError: naming what cannot be read, or does not fit the run.
    """
    config = trained_network.read_config(Path(workdir))
    networks = {name: trained_network.read(workdir, name, version) for name in config.network_of}
    spec = dataclasses.replace(config.data, name=data or config.data.name, dir=data_dir or config.data.dir)
    network = next(iter(networks.values()))
    info = network.model_info
    image_spec = ImageSpec(info.image_shape, resized=config.data.image_size > 0)
    examples = load_evaluation_split(spec, split, config.seed, info.classes, image_spec)
    if not len(examples):
        raise UserError(
            f"--split {split}: the run held no images out (config.data.validation_fraction); take 'test'"
            if split == "validation"
            else f"--split {split}: data set {spec.name!r} has no such images; take another split"
        )
    distribution = mesh.create("jit", "replicated", "global", BATCH_SIZE, jax.local_devices()[:1])
    eval_step = make_eval_step(
        {name: network.module for name, network in networks.items()},
        dataclasses.replace(network.preprocess, scale=pixel_scale(spec.name)),
        layers_of(network.module).dtype,
        with_ensemble=len(networks) > 1,
    )
    evaluator = Evaluator(
        step=distribution.compile(eval_step, has_state=False),
        loader=open_device_loader(examples, image_spec, spec, config.seed, BATCH_SIZE, distribution),
        distribution=distribution,
        max_steps=1,
    )
    variables = {name: network.variables for name, network in networks.items()}
    with contextlib.closing(evaluator):
        evaluation = evaluator.run(distribution.device_put(variables))
    pairs = itertools.combinations(enumerate(networks), 2)
    result = {
        "examples": evaluation.examples,
        "networks": {name: {metric: evaluation.networks[name][metric] for metric in METRICS} for name in networks},
        "agreement": {
            f"{first}, {second}": 100.0 * float(evaluation.agreement[i, j]) for (i, first), (j, second) in pairs
        },
    }
    if evaluation.ensemble is not None:
        result["ensemble"] = {metric: evaluation.ensemble[metric] for metric in METRICS}
    return result


def format_table(result: dict[str, Any]) -> str:
    """Formats the result for the console, within 80 columns."""
    lines = [f"{result['examples']} examples", f"{'network':<20} {'top-1 %':>8} {'top-5 %':>8} {'loss':>8} {'ECE':>8}"]
    lines += [
        f"{name:<20} {metrics['top1']:>8.2f} {metrics['top5']:>8.2f} {metrics['loss']:>8.4f} "
        f"{metrics['calibration_error']:>8.4f}"
        for name, metrics in [*result["networks"].items(), *_ensemble_row(result)]
    ]
    lines += [f"{pair} agree on {share:.2f} %" for pair, share in result["agreement"].items()]
    return "\n".join(lines)


def _ensemble_row(result: dict[str, Any]) -> list[tuple[str, Any]]:
    return [("ensemble of all", result["ensemble"])] if "ensemble" in result else []


def main() -> None:
    """Parses the flags, evaluates, and prints the result."""
    parser = cli.make_parser(__doc__)
    parser.add_argument("--workdir", required=True, help="workdir of a run")
    parser.add_argument("--which", default="best", help="best, latest, or a saved step")
    parser.add_argument("--split", default="test", choices=SPLITS)
    parser.add_argument("--data", default="", help="another data set with the same classes, by its name")
    parser.add_argument("--data_dir", default="", help="its folder")
    parser.add_argument("--json", type=Path, help="write the result to this file")
    args = parser.parse_args()

    def command() -> str:
        result = evaluate(args.workdir, args.which, args.split, args.data, args.data_dir)
        if args.json:
            write_json(args.json, result)
        return format_table(result)

    cli.run(command, args.config)


if __name__ == "__main__":
    main()
