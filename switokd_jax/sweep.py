"""Trains one config with several seeds and settings:

python -m switokd_jax.sweep --config=configs/digits.py --workdir=runs/sweep --seeds 0 1 2 \\
    --over switokd.epsilon=adaptive,0,1 --over batch_size=32,64 --jobs=2 -- --config.epochs=5

Every combination is a run; flags after `--` hold for all of them. Finished runs are skipped, interrupted ones resume.
Writes WORKDIR/table.md, .csv and .tex: mean and standard deviation over the seeds.
"""

from __future__ import annotations

from switokd_jax import stop_signals

if __name__ == "__main__":
    stop_signals.exit_on_stop_signals()  # before the imports, which take seconds

import argparse
import dataclasses
import itertools
import shutil
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from switokd_jax import cli
from switokd_jax.analysis import job_runner, slurm, tables
from switokd_jax.analysis.job_workers import Workers, make_workers, parse_count
from switokd_jax.analysis.jobs import Job, parse_part, take_part
from switokd_jax.analysis.tables import Cell, MeanStd, Table
from switokd_jax.errors import UserError
from switokd_jax.main import make_thread_command
from switokd_jax.metrics import expert_share_of_summary
from switokd_jax.models import flops

Summary = Mapping[str, Any]
"""Content of a summary.json."""


def jobs(
    config: str, param_grid: Mapping[str, Sequence[str]], seeds: Sequence[int], flags: Sequence[str]
) -> dict[tuple[str, ...], list[Job]]:
    """Builds the jobs of a sweep: by combination of values, one job for each seed.

    Args:
      config: the config file.
      param_grid: values by the dotted name of a config field.
      seeds: of every combination.
      flags: of all runs.

    Raises:
      UserError: if a field is set in two ways, of which one would win in silence.

    >>> [job.name for job in jobs("digits.py", {"switokd.epsilon": ["0", "1"]}, [7], [])["1",]]
    ['epsilon=1_seed=7']
    """
    _check_grid(param_grid, flags)
    jobs_by_values = {}
    for values in itertools.product(*param_grid.values()):
        settings = [*zip(param_grid, values, strict=True)]
        name = "_".join(f"{field.split('.')[-1]}={value}" for field, value in settings)
        jobs_by_values[values] = [
            Job(
                name=_folder_name(f"{name}_seed={seed}" if name else f"seed={seed}"),
                config=config,
                flags=(
                    *flags,
                    *(f"--config.{field}={value}" for field, value in settings),
                    f"--config.seed={seed}",
                ),
            )
            for seed in seeds
        ]
    return jobs_by_values


def _check_grid(param_grid: Mapping[str, Sequence[str]], flags: Sequence[str]) -> None:
    if "seed" in param_grid:
        raise UserError("--over seed=... has no effect beside --seeds; give the seeds there")
    for field, values in param_grid.items():
        if len({*values}) < len(values):
            raise UserError(f"--over {field}={','.join(values)} names a value twice; give each once")
    set_flags = {flag.lstrip("-").partition("=")[0] for flag in flags}
    for field in ("config", "workdir", "config.seed", *(f"config.{field}" for field in param_grid)):
        if field in set_flags:
            raise UserError(f"--{field} after -- is set by the sweep itself; leave it out")


def _folder_name(text: str) -> str:
    return "".join(c if c.isalnum() or c in "._=-" else "-" for c in text)


def table(
    title: str, fields: Sequence[str], summaries: Mapping[tuple[str, ...], Sequence[Summary]], note: str
) -> Table:
    """Builds the table of a sweep: a row for each combination of values, with the scores of every network.

    Args:
      title: of the table.
      fields: names of the swept config fields, in the order of the values.
      summaries: of the finished runs, one for each seed, by combination of values; at least one in all.
      note: below the table.
    """
    names = [*next(runs for runs in summaries.values() if runs)[0]["networks"]]
    rows = [
        (*values, *(cell for name in names for cell in scores(runs, name)), expert_share(runs))
        for values, runs in summaries.items()
    ]
    head = [text for name in names for text in (f"{name} final %", f"{name} best %")]
    return Table(title, (*fields, *head, "expert steps %"), tuple(rows), note)


def scores(summaries: Sequence[Summary], network: str) -> tuple[MeanStd, MeanStd]:
    """Returns the final and the best top-1 of a network, in percent, over the runs of several seeds."""
    networks = [summary["networks"][network] for summary in summaries]
    return MeanStd(tuple(n["final_top1"] for n in networks)), MeanStd(tuple(n["best_top1"] for n in networks))


def expert_share(summaries: Sequence[Summary]) -> Cell:
    """Returns the share of expert steps in percent over the runs of several seeds; the mean over the pairs of each run.

    None if no run has a pair that switches.
    """
    by_pair = [expert_share_of_summary(summary) for summary in summaries]
    shares = tuple(statistics.fmean(100.0 * share for share in pairs.values()) for pairs in by_pair if pairs)
    return MeanStd(shares, digits=1) if shares else None


def saved_share(summaries: Sequence[Summary]) -> Cell:
    """Returns the share of training's operations that pauses saved, in percent, over the runs of several seeds.

    None if no run has a pair that switches.
    """
    shares = tuple(
        100.0 * flops.saved_fraction(summary["networks"], {pair.partition("->")[0] for pair in pairs}, summary["steps"])
        for summary in summaries
        if (pairs := expert_share_of_summary(summary))
    )
    return MeanStd(shares, digits=1) if shares else None


def run_and_tabulate(
    jobs: Sequence[Job], folder: Path, execution: Execution, make_table: Callable[[Mapping[str, Any]], Table]
) -> str:
    """Runs or submits the jobs that have not finished, and writes FOLDER/table.md, .csv and .tex of those that have.

    Args:
      jobs: of the whole grid, as `job_runner.run` takes them.
      folder: of all runs.
      execution: which of the jobs run, and where.
      make_table: builds the table from the summaries by job name.

    Returns:
      The table, as wide as the terminal, and the names of the files; of a cluster also what is in its queue.

    Raises:
      UserError: if a run failed; all others have run by then, and the table is written.
    """
    own_jobs, failed, queue = take_part(jobs, *execution.part), dict[str, str](), ""
    if not own_jobs:
        part, count = execution.part
        raise UserError(f"--part={part}/{count} has no runs; give a COUNT of at most the runs that do not need others")
    if isinstance(execution.runner, slurm.Resources):
        queue = slurm.submit(own_jobs, folder, execution.runner)
    else:
        failed = job_runner.run(own_jobs, folder, execution.runner)
    summaries = {job.name: summary for job in jobs if (summary := job_runner.read_result(job, folder))}
    if queue and not summaries:
        return queue
    if not summaries:
        raise UserError(f"no run succeeded; {_first_failure(failed)}")
    table = make_table(summaries)
    paths = tables.write(table, folder / "table")
    text = tables.to_console(table, shutil.get_terminal_size().columns)
    if failed:
        print(text)
        raise UserError(f"{len(failed)} of {len(jobs)} runs failed; {_first_failure(failed)}")
    return "\n".join([text, *(f"wrote {path}" for path in paths), *([queue] if queue else [])])


def plan(jobs: Sequence[Job], folder: Path, execution: Execution, flops_per_second: float | None = None) -> str:
    """Describes what `run_and_tabulate` would do: the state and time of each run, and the arrays of a cluster.

    Args:
      jobs: as `run_and_tabulate` takes them.
      folder: likewise.
      execution: likewise.
      flops_per_second: as `job_runner.plan` takes it.
    """
    own_jobs = take_part(jobs, *execution.part)
    if isinstance(execution.runner, slurm.Resources):
        states = job_runner.plan(own_jobs, folder, execution.runner.parallelism or len(own_jobs), flops_per_second)
        return f"{states}\n{slurm.plan(own_jobs, folder, execution.runner)}"
    return job_runner.plan(own_jobs, folder, execution.runner.count, flops_per_second)


@dataclasses.dataclass(frozen=True)
class Execution:
    """How the jobs of a grid run.

    Attributes:
      runner: the workers of this machine, or what each job asks of a Slurm cluster.
      part: which part of the grid runs, from 1, and the number of parts.
    """

    runner: Workers | slurm.Resources
    part: tuple[int, int] = (1, 1)


def add_execution_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that `execution` reads."""
    parser.add_argument(
        "--jobs", type=parse_count, default=1, metavar="N|auto", help="runs at the same time; auto: one for each device"
    )
    parser.add_argument("--devices-per-job", type=int, metavar="N", help="devices of each run (an equal part of all)")
    parser.add_argument(
        "--workers",
        choices=("auto", "processes", "threads"),
        default="auto",
        help="what a run is; auto: a thread on TPUs and on a CPU that JAX divides into several, else a process",
    )
    parser.add_argument("--part", default="1/1", metavar="PART/COUNT", help="of several machines: 2/4 for the second")
    parser.add_argument("--launcher", choices=("local", "slurm"), default="local", help="slurm: submit job arrays")
    cluster = parser.add_argument_group("of each run, with --launcher=slurm")
    cluster.add_argument("--time", metavar="LIMIT", help="minutes, 12:00:00 or 1-12:00:00")
    cluster.add_argument("--partition", default="")
    cluster.add_argument("--gpus", type=int, default=0, metavar="N")
    cluster.add_argument("--cpus", type=int, default=0, metavar="N")
    cluster.add_argument("--array-parallelism", type=int, default=0, metavar="N", help="runs at the same time (all)")


def execution(args: argparse.Namespace) -> Execution:
    """Returns what the flags of `add_execution_flags` describe.

    Raises:
      UserError: naming the flag that cannot be used.
    """
    part = parse_part(args.part)
    minutes = slurm.parse_minutes(args.time) if args.time else 0
    resources = slurm.Resources(minutes, args.partition, args.gpus, args.cpus, args.array_parallelism)
    if args.launcher == "slurm":
        if (args.jobs, args.devices_per_job, args.workers) != (1, None, "auto"):
            raise UserError("--jobs, --devices-per-job and --workers divide this machine; leave them out on a cluster")
        if not minutes:
            raise UserError("--launcher=slurm needs --time, the time limit of one start, such as --time=12:00:00")
        if min(args.gpus, args.cpus, args.array_parallelism) < 0:
            raise UserError("--gpus, --cpus and --array-parallelism must not be below 0")
        return Execution(resources, part)
    if resources != slurm.Resources(0):
        raise UserError("--time, --partition, --gpus, --cpus and --array-parallelism need --launcher=slurm")
    devices = jax.local_devices()
    workers = make_workers(args.workers, args.jobs, args.devices_per_job, devices, make_thread_command())
    return Execution(workers, part)


def _first_failure(failed: Mapping[str, str]) -> str:
    name, reason = next(iter(failed.items()))
    return f"{name}: {reason}"


def _field_and_values(text: str) -> tuple[str, list[str]]:
    field, equals, values = text.partition("=")
    if not equals or not field or not values:
        raise argparse.ArgumentTypeError(f"{text!r} is not FIELD=VALUE,VALUE such as switokd.epsilon=adaptive,0,1")
    return field.removeprefix("config."), values.split(",")


def main() -> None:
    """Reads the flags, trains, and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="a config file")
    parser.add_argument("--workdir", type=Path, required=True, help="a folder for all runs")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--over", action="append", type=_field_and_values, default=[], metavar="FIELD=VALUE,VALUE")
    add_execution_flags(parser)
    parser.add_argument("--plan", action="store_true", help="print what would run")
    parser.add_argument("flags", nargs="*", help="flags of main for all runs, after --")
    args = parser.parse_args()
    cli.run(lambda: _sweep(args))


def _sweep(args: argparse.Namespace) -> str:
    param_grid, workdir = dict(args.over), args.workdir.expanduser()
    if len(param_grid) < len(args.over):
        raise UserError("--over names a field twice; give all its values at once: --over FIELD=VALUE,VALUE")
    jobs_by_values = jobs(args.config, param_grid, args.seeds, args.flags)
    all_jobs = [job for seeds in jobs_by_values.values() for job in seeds]
    if args.plan:
        return plan(all_jobs, workdir, execution(args))

    def make_table(summaries: Mapping[str, Any]) -> Table:
        by_values = {
            values: [summaries[job.name] for job in seeds if job.name in summaries]
            for values, seeds in jobs_by_values.items()
        }
        title = f"{Path(args.config).stem}, seeds {', '.join(map(str, args.seeds))}"
        return table(title, [*param_grid], by_values, "")

    return run_and_tabulate(all_jobs, workdir, execution(args), make_table)


if __name__ == "__main__":
    main()
