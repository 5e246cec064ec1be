"""Trains a queue of full recipes in pieces of a few minutes, for an accelerator that is lent for so long at a time.

python experiments/card.py --state=card --seconds=540 -- --config.data.dir=DIR   # repeat until it says that all is done
python experiments/card.py --state=card --smoke --seconds=60                    # on digits

A piece starts where the one before it stopped: before its time is up the run saves and ends (exit status 75), and the
state folder, all that has to be carried from one machine to the next, is made small. It holds a workdir of the run that
goes on, and of each finished run curves/NAME.json (config, versions, data fingerprint, summary and curves) and the
final networks as weights/NAME_NETWORK.safetensors. A piece that is killed loses what came after its last checkpoint.

The queue: the pair of configs/cifar100_wrn16_2_mobilenetv2.py in bfloat16, seed 0 of switokd, dml, vanilla, uniokd and
kdcl, then the other seeds.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import shutil
import signal
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1])]

from experiments import table_cifar
from experiments.grids import Setting, jobs
from switokd_jax import cli
from switokd_jax.analysis import job_runner
from switokd_jax.analysis.jobs import Job
from switokd_jax.errors import EXIT_STATUS, UserError
from switokd_jax.files import atomic_write, read_json
from switokd_jax.interop import pytorch
from switokd_jax.workdir import restore
from switokd_jax.workdir.layout import Workdir
from switokd_jax.workdir.metric_writers import MetricsRow, read_metrics

ORDER = ("switokd", "dml", "vanilla", "uniokd", "kdcl")
# Test top-1 moves little between two of every tenth epochs, and an evaluation takes as long as a fifth of an epoch.
FLAGS = ("--config.dtype=bfloat16", "--config.eval_every=10")
KEEP_ONE = ("--config.checkpoint.keep=1",)


def queue(setting: Setting, seeds: Iterable[int], state: Path, flags: Sequence[str]) -> list[Job]:
    """Returns the runs in their order, each with the file of its curves."""
    # Without the offline arms, for which the teacher's run would keep more checkpoints.
    setting = dataclasses.replace(setting, arms={arm: setting.arms[arm] for arm in ORDER})
    return [
        dataclasses.replace(job, kept=state / "curves" / f"{job.name}.json")
        for seed in seeds
        for arm in ORDER
        for job in jobs([setting], [arm], [seed], state, flags=(*KEEP_ONE, *flags))
    ]


def run_piece(queued: Sequence[Job], state: Path, seconds: float) -> bool:
    """Trains until the time is up.

    Args:
      queued: in the order of training; finished ones are skipped.
      state: folder of all runs.
      seconds: after which the run that goes on is told to save.

    Returns:
      Whether all runs are done.

    Raises:
      UserError: if a run cannot be trained; it names the run and says why.
      KeyboardInterrupt: at a stop signal; the run has saved.
    """
    try:
        failed = job_runner.run(queued, state, seconds=seconds)
    except TimeoutError:
        return False
    finally:
        tidy(queued, state)
    if failed:
        name, reason = next(iter(failed.items()))
        raise UserError(f"{name} failed: {reason}; its log is {state / 'logs' / name}.txt")
    return True


def tidy(queued: Iterable[Job], state: Path) -> None:
    """Makes the state folder small: final weights in place of finished workdirs, means of the epochs in place of steps.

    Args:
      queued: as of `run_piece`.
      state: likewise.
    """
    for job in queued:
        workdir = Workdir(state / job.name)
        if job_runner.read_result(job, state) is None:
            if workdir.metrics.exists():
                rows = average_epochs(read_metrics(workdir.metrics))
                text = "".join(json.dumps(row) + "\n" for row in rows)
                atomic_write(workdir.metrics, lambda path, text=text: path.write_text(text))  # type: ignore[misc]
        elif workdir.root.exists():
            weights = state / "weights"
            weights.mkdir(exist_ok=True)
            for network in read_json(workdir.summary)["networks"]:
                variables = restore.load_variables(workdir.root, network, "latest")
                pytorch.write(weights / f"{job.name}_{network}.safetensors", variables)
            shutil.rmtree(workdir.root)


def average_epochs(rows: Sequence[MetricsRow]) -> list[MetricsRow]:
    """Replaces the training rows of each completed epoch by one with their means, at the step of the last.

    >>> step = {"split": "train", "expert": True}
    >>> average_epochs([{**step, "step": 1, "epoch": 0.5, "loss": 1.0}, {**step, "step": 2, "epoch": 1.0, "loss": 3.0}])
    [{'split': 'train', 'expert': 1.0, 'step': 2, 'epoch': 1.0, 'loss': 2.0}]
    """
    result, epoch_rows = list[MetricsRow](), list[MetricsRow]()
    for row in rows:
        if row["split"] != "train":
            result += [*epoch_rows, row]
            epoch_rows = []
            continue
        epoch_rows.append(row)
        if math.isclose(row["epoch"], round(row["epoch"]), abs_tol=1e-6):
            numbers = {key: sum(r[key] for r in epoch_rows) / len(epoch_rows) for key in row if key != "split"}
            result.append({**row, **numbers, "step": row["step"], "epoch": row["epoch"]})
            epoch_rows = []
    return [*result, *epoch_rows]


def main() -> None:
    """Reads the flags and trains one piece."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--state", type=Path, required=True, help="folder that goes from piece to piece")
    parser.add_argument("--seconds", type=float, default=540.0, help="of one piece, until the run saves (540)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="in this order (0 1 2)")
    parser.add_argument("--smoke", action="store_true", help="small networks on digits")
    parser.add_argument("flags", nargs="*", help="flags of main for all runs, after --: -- --config.data.dir=DIR")
    args = parser.parse_args()
    state = args.state.expanduser()

    def command() -> str:
        if not args.seconds > 0.0:
            raise UserError(f"--seconds is {args.seconds:g}; it must be a number above 0")
        setting = table_cifar.STUDY.smoke[0] if args.smoke else table_cifar.STUDY.full[0]
        queued = queue(setting, args.seeds, state, (*(() if args.smoke else FLAGS), *args.flags))
        if not run_piece(queued, state, args.seconds):
            print(f"the time is up; carry {state} along and repeat the command", flush=True)
            sys.exit(EXIT_STATUS[signal.SIGTERM])
        return f"all {len(queued)} runs are done: {state / 'curves'} and {state / 'weights'}"

    cli.run(command)


if __name__ == "__main__":
    main()
