"""Trains one config with several seeds and settings:

python -m switokd_jax.sweep --config=configs/digits.py --workdir=runs/sweep --seeds 0 1 2 \\
    --over switokd.epsilon=adaptive,0,1 --over batch_size=32,64 --jobs=2 -- --config.epochs=5

Every combination is a run; flags after `--` hold for all of them. Runs that are done are skipped, and one that was cut
short goes on. Writes WORKDIR/table.md, .csv and .tex: mean and standard deviation over the seeds.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from switokd_jax import cli
from switokd_jax.analysis import job_runner, tables
from switokd_jax.analysis.tables import Cell, MeanStd, Table
from switokd_jax.errors import UserError


def jobs(
    config: str, over: Mapping[str, Sequence[str]], seeds: Sequence[int], flags: Sequence[str]
) -> dict[tuple[str, ...], list[job_runner.Job]]:
    """A job for each combination of values and seed, by the values.

    Args:
      config: the config file.
      over: values by the field's dotted name.
      seeds: of every combination.
      flags: of all runs.
    """
    made = {}
    for values in itertools.product(*over.values()):
        own = tuple(f"--config.{field}={value}" for field, value in zip(over, values, strict=True))
        name = "_".join(f"{field.split('.')[-1]}={value}" for field, value in zip(over, values, strict=True))
        made[values] = [
            job_runner.Job(
                name=_folder_name(f"{name}_seed={seed}" if name else f"seed={seed}"),
                config=config,
                flags=(*flags, *own, f"--config.seed={seed}"),
            )
            for seed in seeds
        ]
    return made


def _folder_name(text: str) -> str:
    return "".join(c if c.isalnum() or c in "._=-" else "-" for c in text)


def table(
    title: str, over: Sequence[str], results: Mapping[tuple[str, ...], Sequence[Mapping[str, Any]]], note: str
) -> Table:
    """A row for each combination, and the networks' scores over its seeds."""
    names = [*next(made for made in results.values() if made)[0]["networks"]]
    rows = [
        (*values, *(cell for name in names for cell in scores(made, name)), expert_share(made))
        for values, made in results.items()
    ]
    head = [text for name in names for text in (f"{name} final %", f"{name} best %")]
    return Table(title, (*over, *head, "expert steps %"), tuple(rows), note)


def scores(made: Sequence[Mapping[str, Any]], network: str) -> tuple[MeanStd, MeanStd]:
    """Final and best top-1 of a network over seeds."""
    of = [summary["networks"][network] for summary in made]
    return MeanStd(tuple(each["final_top1"] for each in of)), MeanStd(tuple(each["best_top1"] for each in of))


def expert_share(made: Sequence[Mapping[str, Any]]) -> Cell:
    """Share of expert steps in percent, the mean over a run's pairs; None where nothing switches."""
    shares = [[100.0 * pair["expert_fraction"] for pair in summary["switch"].values()] for summary in made]
    return MeanStd(tuple(statistics.fmean(each) for each in shares if each), digits=1) if any(shares) else None


def run_and_tabulate(
    jobs: Sequence[job_runner.Job], folder: Path, max_parallel: int, make: Callable[[Mapping[str, Any]], Table]
) -> str:
    """Runs what is not done and writes FOLDER/table.md, .csv and .tex of what is.

    Args:
      jobs: as `job_runner.run` takes them.
      folder: of all runs.
      max_parallel: runs side by side.
      make: summaries by job name, to the table.

    Returns:
      The table as wide as the terminal, and the files' names.

    Raises:
      ConfigError: if a run failed, after all others and the table are made.
    """
    failed = job_runner.run(jobs, folder, max_parallel)
    results = {job.name: made for job in jobs if (made := job_runner.result(job, folder))}
    if not results:
        raise UserError(f"no run succeeded; {_said(failed)}")
    table = make(results)
    paths = tables.write(table, folder / "table")
    shown = tables.console(table, shutil.get_terminal_size().columns)
    if failed:
        print(shown)
        raise UserError(f"{len(failed)} of {len(jobs)} runs failed; {_said(failed)}")
    return "\n".join([shown, *(f"wrote {path}" for path in paths)])


def _said(failed: Mapping[str, str]) -> str:
    name, reason = next(iter(failed.items()))
    return f"{name}: {reason}"


def _over(text: str) -> tuple[str, list[str]]:
    field, equals, values = text.partition("=")
    if not equals or not field or not values:
        raise argparse.ArgumentTypeError(f"{text!r} is not FIELD=VALUE,VALUE such as switokd.epsilon=adaptive,0,1")
    return field.removeprefix("config."), values.split(",")


def main() -> None:
    """Reads flags, trains, writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="a config file")
    parser.add_argument("--workdir", type=Path, required=True, help="a folder for all runs")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--over", action="append", type=_over, default=[], metavar="FIELD=VALUE,VALUE")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--plan", action="store_true", help="print what would run")
    parser.add_argument("flags", nargs="*", help="flags of main for all runs, after --")
    given = parser.parse_args()
    over = dict(given.over)
    by_values = jobs(given.config, over, given.seeds, given.flags)
    flat = [job for of in by_values.values() for job in of]
    if given.plan:
        cli.run(lambda: job_runner.plan(flat, given.workdir, given.jobs))
        return

    def made(results: Mapping[str, Any]) -> Table:
        rows = {values: [results[job.name] for job in of if job.name in results] for values, of in by_values.items()}
        return table(f"{Path(given.config).stem}, seeds {', '.join(map(str, given.seeds))}", [*over], rows, "")

    cli.run(lambda: run_and_tabulate(flat, given.workdir, given.jobs, made))


if __name__ == "__main__":
    main()
