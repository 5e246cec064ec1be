"""Common part of the table scripts: reads flags, trains a grid, and tabulates it beside published numbers."""

from __future__ import annotations

import argparse
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax

from experiments.grids import DATA_SIZES, DataSize, GridPoint, Setting, jobs, parse_config
from switokd_jax import cli, models, sweep
from switokd_jax import config as configs
from switokd_jax.analysis import job_runner
from switokd_jax.analysis.jobs import Job
from switokd_jax.analysis.tables import Cell, MeanStd, Table
from switokd_jax.errors import UserError
from switokd_jax.models import flops

# FLOP/s of training for `--plan`, measured with the CIFAR-100 pair: on 2 CPU cores in float32, on an H200 in bfloat16.
MEASURED_FLOPS_PER_SECOND = {"cpu": 95e9, "gpu": 2e13}


@dataclasses.dataclass(frozen=True)
class Study:
    """Definition of a table.

    Attributes:
      title: its first line.
      full: the settings as published.
      smoke: a small version of the same grid that takes minutes.
      smoke_seeds: seeds of the small version, unless others are given.
      columns: whether networks share a column by their name or by their model.
      make_table: builds another table than `table`, from the study, the grid points by job, the summaries by job name
        and the folder of all runs.
      finish: writes further files from the folder of the runs once all have finished, and returns their paths.
    """

    title: str
    full: tuple[Setting, ...]
    smoke: tuple[Setting, ...]
    smoke_seeds: tuple[int, ...] = (0, 1, 2)
    columns: Literal["name", "model"] = "name"
    make_table: Callable[..., Table] | None = None
    finish: Callable[[Path], list[Path]] = lambda folder: []


def main(study: Study, doc: str | None) -> None:
    """Reads the flags; prints the plan, or trains and writes the table."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, help="a folder for all runs (runs/NAME, or runs/NAME_smoke)")
    parser.add_argument("--smoke", action="store_true", help="the whole grid in minutes, on scikit-learn's digits")
    parser.add_argument("--plan", action="store_true", help="print what would run, and how long it would take")
    parser.add_argument("--seeds", nargs="+", type=int, default=[], help="0 1 2 if not given; --smoke may have fewer")
    parser.add_argument("--settings", nargs="+", default=[], help="only these")
    parser.add_argument("--arms", nargs="+", default=[], help="only these (and those that they need)")
    sweep.add_execution_flags(parser)
    parser.add_argument("--epochs", type=float, help="shorter or longer runs; milestones are scaled")
    parser.add_argument("--gflops", type=float, help="for --plan: the machine's GFLOP/s in training")
    parser.add_argument("flags", nargs="*", help="flags of main for all runs, after --: -- --config.data.dir=DIR")
    args = parser.parse_args()
    name = Path(parser.prog).stem
    folder = args.workdir.expanduser() if args.workdir else Path("runs") / (f"{name}_smoke" if args.smoke else name)

    seeds = args.seeds or (study.smoke_seeds if args.smoke else (0, 1, 2))

    def command() -> str:
        if len({*seeds}) < len(seeds):
            raise UserError(f"--seeds {' '.join(map(str, seeds))} names a seed twice; give each once")
        if args.epochs is not None and not 0.0 < args.epochs < float("inf"):
            raise UserError(f"--epochs is {args.epochs}; it must be a number above 0")
        settings = _select(study.smoke if args.smoke else study.full, args.settings)
        points = jobs(settings, args.arms, seeds, folder, args.epochs, args.flags)
        if args.plan:
            with_flops = [dataclasses.replace(job, flops=run_flops(parse_config(job))) for job in points]
            measured = MEASURED_FLOPS_PER_SECOND.get(jax.default_backend(), MEASURED_FLOPS_PER_SECOND["gpu"])
            rate = args.gflops * 1e9 if args.gflops else measured
            return sweep.plan(with_flops, folder, sweep.execution(args), rate)
        for job in points:
            parse_config(job)  # finds a mistake before the first run, not after hours

        def make_table(results: Mapping[str, Any]) -> Table:
            return (
                study.make_table(study, points, results, folder) if study.make_table else table(study, points, results)
            )

        text = sweep.run_and_tabulate([*points], folder, sweep.execution(args), make_table)
        if job_runner.unfinished_jobs([*points], folder):  # on a cluster, or of another part
            return text
        return "\n".join([text, *(f"wrote {path}" for path in study.finish(folder))])

    cli.run(command)


def _select(settings: Sequence[Setting], names: Sequence[str]) -> list[Setting]:
    known = [setting.name for setting in settings]
    if unknown := [name for name in names if name not in known]:
        raise UserError(f"--settings {unknown[0]!r} is none of {', '.join(known)}")
    return [setting for setting in settings if not names or setting.name in names]


def run_flops(config: configs.Config) -> float:
    """Returns the floating-point operations of a run in which no network pauses."""
    size = DATA_SIZES[config.data.name]
    examples = config.epochs * (config.data.train_examples or size.train)
    counts = [
        (_count_flops(network.model, network.branches, network.branch_from, size), network.frozen)
        for network in config.networks.values()
    ]
    return examples * sum(count.forward + (0.0 if frozen else count.backward) for count, frozen in counts)


@functools.cache
def _count_flops(model: str, branches: int, branch_from: str, size: DataSize) -> flops.FlopCount:
    module = models.create(model, size.classes, branches=branches, branch_from=branch_from)
    return flops.count_flops_per_image(module, size.shape)


def table(study: Study, points: Mapping[Job, GridPoint], results: Mapping[str, Any]) -> Table:
    """Builds the table: a row for each setting and arm.

    A row has the final and best top-1 of every network beside the published one, the share of expert steps, the
    training cost, what the pauses saved of it, and the time.

    Args:
      study: definition of the table.
      points: the combination of each job.
      results: summaries of the finished runs by job name; at least one.
    """
    summaries: dict[tuple[str, str], list[Any]] = {}
    settings = {point.setting.name: point.setting for point in points.values()}
    for job, point in points.items():
        seeds = summaries.setdefault((point.setting.name, point.arm), [])
        if job.name in results:
            seeds.append(results[job.name])
    finished = [summary for seeds in summaries.values() for summary in seeds]
    names = [*dict.fromkeys(name for summary in finished for name in _columns(study, summary)["networks"])]
    published = {name for setting in settings.values() for arm in setting.published.values() for name in arm}
    head = ["setting", "arm"]
    for name in names:
        head += [f"{name} final %", f"{name} best %", *([f"{name} published %"] if name in published else [])]
    unit, size = flops.unit(max(summary["training_flops"] for summary in finished))
    rows = []
    for (setting, arm), seeds in summaries.items():
        cells: list[Cell] = [setting, arm]
        for name in names:
            by_column = [_columns(study, summary) for summary in seeds]
            cells += sweep.scores([summary for summary in by_column if name in summary["networks"]], name)
            if name in published:
                cells.append(settings[setting].published.get(arm, {}).get(name))
        cells += [sweep.expert_share(seeds), MeanStd(tuple(summary["training_flops"] / size for summary in seeds))]
        cells += [sweep.saved_share(seeds), MeanStd(tuple(summary["seconds"] for summary in seeds), digits=0)]
        rows.append(tuple(cells))
    return Table(study.title, (*head, "expert steps %", unit, "saved %", "seconds"), tuple(rows), note(points, unit))


def _columns(study: Study, summary: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a summary whose networks have the names of the table's columns."""
    if study.columns == "name":
        return dict(summary)
    return {**summary, "networks": {network["model"]: network for network in summary["networks"].values()}}


def note(points: Mapping[Job, GridPoint], unit: str) -> str:
    """Describes the size of the runs and the meaning of the columns."""
    sizes: dict[str, dict[str, None]] = {}
    held_out: dict[str, None] = {}
    for job, point in points.items():
        c = parse_config(job)
        train = c.data.train_examples or DATA_SIZES[c.data.name].train
        size = f"{c.epochs:g} epochs of {train:,} images of {c.data.name} in batches of {c.batch_size}"
        sizes.setdefault(size, {})[point.setting.name] = None
        if c.data.validation_fraction:
            held_out[point.arm] = None
    seeds = sorted({point.seed for point in points.values()})
    runs = "; ".join(f"{', '.join(names)}: {size}" if len(sizes) > 1 else size for size, names in sizes.items())
    chosen = f", for {', '.join(held_out)} of the one that is best on images held out of training" if held_out else ""
    return (
        f"Mean and standard deviation of seeds {', '.join(map(str, seeds))}. {runs}. 'final' is the test top-1 after "
        f"the last epoch, 'best' that of the best one (as published numbers are){chosen}; {unit} what training really "
        "spent, 'saved' the part that the pauses of teachers avoided; seconds are of training, to be compared only "
        "between runs that had the machine to themselves."
    )
