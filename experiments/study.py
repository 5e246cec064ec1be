"""What the tables have in common: from flags to runs, and to a table beside published numbers."""

from __future__ import annotations

import argparse
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax

from experiments.grids import IMAGES, Images, Place, Setting, jobs, parsed
from switokd_jax import cli, models, sweep
from switokd_jax import config as configs
from switokd_jax.analysis import job_runner
from switokd_jax.analysis.tables import Cell, MeanStd, Table
from switokd_jax.errors import UserError
from switokd_jax.models import flops

# Of `--plan`, FLOP/s of training as measured: the CIFAR-100 pair on 2 CPU cores in float32, and on an H200 in bfloat16.
MEASURED = {"cpu": 95e9, "gpu": 2e13}


@dataclasses.dataclass(frozen=True)
class Study:
    """A table.

    Attributes:
      title: its first line.
      full: as published.
      smoke: the same grid in minutes.
      columns: what a column stands for, the networks' names or their models.
      finish: draws more from the folder of the runs, once all are done.
    """

    title: str
    full: tuple[Setting, ...]
    smoke: tuple[Setting, ...]
    columns: Literal["name", "model"] = "name"
    finish: Callable[[Path], list[Path]] = lambda folder: []


def main(study: Study, doc: str | None) -> None:
    """Reads flags; plans, or trains and writes the table."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, help="a folder for all runs (runs/NAME, or runs/NAME_smoke)")
    parser.add_argument("--smoke", action="store_true", help="the whole grid in minutes, on scikit-learn's digits")
    parser.add_argument("--plan", action="store_true", help="print what would run, and how long")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--settings", nargs="+", default=[], help="only these")
    parser.add_argument("--arms", nargs="+", default=[], help="only these (and what they need)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--epochs", type=float, help="shorter or longer runs; milestones move along")
    parser.add_argument("--gflops", type=float, help="of --plan: the machine's GFLOP/s in training")
    parser.add_argument("flags", nargs="*", help="flags of main for all runs, after --: -- --config.data.dir=DIR")
    given = parser.parse_args()
    name = Path(parser.prog).stem
    folder = given.workdir or Path("runs") / (f"{name}_smoke" if given.smoke else name)

    def command() -> str:
        settings = _chosen(study.smoke if given.smoke else study.full, given.settings)
        places = jobs(settings, given.arms, given.seeds, folder, given.epochs, given.flags)
        if given.plan:
            counted = [dataclasses.replace(job, flops=run_flops(parsed(job))) for job in places]
            rate = given.gflops * 1e9 if given.gflops else MEASURED.get(jax.default_backend(), MEASURED["gpu"])
            return job_runner.plan(counted, folder, given.jobs, rate)
        for job in places:
            parsed(job)  # a mistake is found before the first run, not after hours
        said = sweep.run_and_tabulate([*places], folder, given.jobs, lambda results: table(study, places, results))
        return "\n".join([said, *(f"wrote {path}" for path in study.finish(folder))])

    cli.run(command)


def _chosen(settings: Sequence[Setting], names: Sequence[str]) -> list[Setting]:
    known = [setting.name for setting in settings]
    if unknown := [name for name in names if name not in known]:
        raise UserError(f"--settings {unknown[0]!r} is none of {', '.join(known)}")
    return [setting for setting in settings if not names or setting.name in names]


def run_flops(config: configs.Config) -> float:
    """Of a run without a pause."""
    images = IMAGES[config.data.name]
    seen = config.epochs * (config.data.train_examples or images.train)
    each = [(_cost(network.model, images), network.frozen) for network in config.networks.values()]
    return seen * sum(of.forward + (0.0 if frozen else of.backward) for of, frozen in each)


@functools.cache
def _cost(model: str, images: Images) -> flops.FlopCount:
    return flops.count_flops_per_image(models.create(model, images.classes), images.shape)


def table(study: Study, places: Mapping[job_runner.Job, Place], results: Mapping[str, Any]) -> Table:
    """A row for each setting and arm: every network's final and best top-1 beside the published one, the share of
    expert steps, and what training cost."""
    rows: dict[tuple[str, str], list[Any]] = {}
    settings = {place.setting.name: place.setting for place in places.values()}
    for job, place in places.items():
        rows.setdefault((place.setting.name, place.arm), [])
        if job.name in results:
            made = dict(results[job.name])
            if study.columns == "model":
                made["networks"] = {of["model"]: of for of in made["networks"].values()}
            rows[place.setting.name, place.arm].append(made)
    names = [*dict.fromkeys(name for made in rows.values() for each in made for name in each["networks"])]
    with_published = {name for s in settings.values() for arm in s.published.values() for name in arm}
    head = ["setting", "arm"]
    for name in names:
        head += [f"{name} final %", f"{name} best %", *([f"{name} published %"] if name in with_published else [])]
    unit, size = flops.unit(max(each["training_flops"] for made in rows.values() for each in made))
    table = []
    for (setting, arm), summaries in rows.items():
        cells: list[Cell] = [setting, arm]
        for name in names:
            there = [each for each in summaries if name in each["networks"]]
            cells += sweep.scores(there, name)
            if name in with_published:
                cells.append(settings[setting].published.get(arm, {}).get(name))
        cells += [sweep.expert_share(summaries), MeanStd(tuple(each["training_flops"] / size for each in summaries))]
        table.append(tuple(cells))
    return Table(study.title, (*head, "expert steps %", unit), tuple(table), _note(places, unit))


def _note(places: Mapping[job_runner.Job, Place], unit: str) -> str:
    """The size of the runs."""
    sizes: dict[str, dict[str, None]] = {}
    held_out: dict[str, None] = {}
    for job, place in places.items():
        c = parsed(job)
        train = c.data.train_examples or IMAGES[c.data.name].train
        size = f"{c.epochs:g} epochs of {train:,} images of {c.data.name} in batches of {c.batch_size}"
        sizes.setdefault(size, {})[place.setting.name] = None
        if c.data.validation_fraction:
            held_out[place.arm] = None
    seeds = sorted({place.seed for place in places.values()})
    runs = "; ".join(f"{', '.join(names)}: {size}" if len(sizes) > 1 else size for size, names in sizes.items())
    chosen = f", for {', '.join(held_out)} of the one that is best on images held out of training" if held_out else ""
    return (
        f"Mean and standard deviation of seeds {', '.join(map(str, seeds))}. {runs}. 'final' is the test top-1 after "
        f"the last epoch, 'best' that of the best one (as published numbers are){chosen}; {unit} what training really "
        "spent."
    )
