"""Evaluates the networks of a run on a split, or on another data set with the same classes:

python -m switokd_jax.evaluate --workdir=runs/digits
python -m switokd_jax.evaluate --workdir=runs/cifar100 --data=folder --data_dir=my_images --split=test
"""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from switokd_jax import cli
from switokd_jax.analysis import trained_network
from switokd_jax.data import resident
from switokd_jax.data.dataset import load_dataset
from switokd_jax.data.loader import make_loader
from switokd_jax.data.sampling import ProcessShard
from switokd_jax.errors import UserError
from switokd_jax.files import write_json
from switokd_jax.losses import cross_entropy
from switokd_jax.metrics import top_k_correct

SPLITS = ("test", "validation", "train")
BATCH = 128
BINS = 15  # of the calibration error, as in its source


def evaluate(
    workdir: str | Path, which: str = "best", split: str = "test", data: str = "", data_dir: str = ""
) -> dict[str, Any]:
    """Scores every network of a run on every example of a split, without augmentation.

    Args:
      workdir: of the run.
      which: of its saves: 'best', 'latest', or a step.
      split: one of `SPLITS`.
      data: name of another data set whose classes and images are alike; the run's own unless given.
      data_dir: where that lies.

    Returns:
      {'examples': int, 'networks': {name: {'top1', 'top5' (percent), 'loss', 'calibration_error'}}, 'agreement':
      {'one, other': percent of examples that both put into the same class}}

    Raises:
      ConfigError: naming what cannot be read, or does not fit the run.
    """
    config = trained_network.read_config(Path(workdir))
    networks = {name: trained_network.read(workdir, name, which) for name in config.networks}
    spec = dataclasses.replace(config.data, name=data or config.data.name, dir=data_dir or config.data.dir)
    dataset = load_dataset(spec, config.seed)
    for network in networks.values():
        if (dataset.classes, dataset.image_spec.shape) != (network.facts.classes, network.facts.image_shape):
            raise UserError(
                f"--data {spec.name!r} has {len(dataset.classes)} classes and images of {dataset.image_spec.shape}, "
                f"the run has {len(network.facts.classes)} and {network.facts.image_shape}; names, order "
                "and sizes have to be alike"
            )
    chosen = getattr(dataset, split)
    if not len(chosen):
        raise UserError(f"--split {split}: the run held no images out (config.data.validation_fraction); take 'test'")
    fed = make_loader(chosen, dataset.image_spec, spec, config.seed, BATCH, ProcessShard())
    steps = {name: _step(network) for name, network in networks.items()}
    seen: dict[str, list[Any]] = {name: [] for name in networks}
    for _, batch in fed.eval_batches():
        images, labels = resident.gather_batch(fed.device_data, batch)
        there = np.asarray(batch.mask, bool)  # the rest fills the last batch
        for name, step in steps.items():
            seen[name].append(jax.tree.map(lambda x, there=there: np.asarray(x)[there], step(images, labels)))
    whole = {name: jax.tree.map(lambda *parts: np.concatenate(parts), *parts) for name, parts in seen.items()}
    return {
        "examples": len(chosen),
        "networks": {
            name: {
                "top1": 100.0 * float(of["top1"].mean()),
                "top5": 100.0 * float(of["top5"].mean()),
                "loss": float(of["loss"].mean()),
                "calibration_error": calibration_error(of["confidence"], of["top1"]),
            }
            for name, of in whole.items()
        },
        "agreement": {
            f"{one}, {other}": 100.0 * float((whole[one]["choice"] == whole[other]["choice"]).mean())
            for one, other in itertools.combinations(networks, 2)
        },
    }


def calibration_error(confidence: np.ndarray, hit: np.ndarray, bins: int = BINS) -> float:
    """Expected calibration error: the mean over examples of |accuracy - confidence| of their bin.

    Source: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017 (arXiv 1706.04599), equation 3.

    Args:
      confidence: [n], the probability of the class that was chosen.
      hit: [n], 1 where that class was right and 0 elsewhere.
      bins: of equal width, each open below and closed above.
    """
    place = np.clip(np.ceil(np.asarray(confidence, np.float64) * bins).astype(int) - 1, 0, bins - 1)
    gaps = [abs(float((hit[place == i] - confidence[place == i].astype(np.float64)).sum())) for i in range(bins)]
    return sum(gaps) / len(hit)


def _step(network: trained_network.TrainedNetwork) -> Any:
    """(images, labels) -> what counts of each example, compiled."""

    def step(images: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
        logits = network.logits(images)
        return {
            "loss": cross_entropy(logits, labels),
            "top1": top_k_correct(logits, labels),
            "top5": top_k_correct(logits, labels, 5),
            "confidence": jnp.max(jax.nn.softmax(logits), axis=-1),
            "choice": jnp.argmax(logits, axis=-1),
        }

    return jax.jit(step)


def table(found: dict[str, Any]) -> str:
    """For people, within 80 columns."""
    lines = [f"{found['examples']} examples", f"{'network':<20} {'top-1 %':>8} {'top-5 %':>8} {'loss':>8} {'ECE':>8}"]
    lines += [
        f"{name:<20} {of['top1']:>8.2f} {of['top5']:>8.2f} {of['loss']:>8.4f} {of['calibration_error']:>8.4f}"
        for name, of in found["networks"].items()
    ]
    lines += [f"{pair} agree on {share:.2f} %" for pair, share in found["agreement"].items()]
    return "\n".join(lines)


def main() -> None:
    """Reads flags, evaluates, prints."""
    parser = cli.make_parser(__doc__)
    parser.add_argument("--workdir", required=True, help="of a run")
    parser.add_argument("--which", default="best", help="best, latest, or a saved step")
    parser.add_argument("--split", default="test", choices=SPLITS)
    parser.add_argument("--data", default="", help="another data set with the same classes, by its name")
    parser.add_argument("--data_dir", default="", help="where that lies")
    parser.add_argument("--json", type=Path, help="write the figures there")
    given = parser.parse_args()

    def command() -> str:
        found = evaluate(given.workdir, given.which, given.split, given.data, given.data_dir)
        if given.json:
            write_json(given.json, found)
        return table(found)

    cli.run(command, given.config)


if __name__ == "__main__":
    main()
