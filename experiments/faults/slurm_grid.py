"""Trains six runs on digits on a Slurm cluster of one node, requeues one in the middle, and compares with this machine.

python experiments/faults/slurm_grid.py            # as root, with munge, slurmctld and slurmd installed; ten minutes

It starts the daemons itself, with a configuration in a scratch folder: two cores, two runs at a time. One run gets
SIGTERM after its first checkpoint. Metrics, checkpoints and summaries must equal those of `sweep --jobs=2` without a
cluster, in float64. Exit status 1 if they do not, or if the run was not requeued.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2])]

from experiments.faults import storm
from switokd_jax import cli
from switokd_jax.errors import UserError
from switokd_jax.files import read_json
from switokd_jax.workdir.layout import Workdir

ROOT = Path(__file__).parents[2]
CORES = 2
SEEDS = (0, 1, 2)
METHODS = ("dml", "switokd")
STOPPED = "method=switokd_seed=0"  # the run that is requeued
TIMEOUT_S = 1800.0
# One node, whose name is that of the machine. Processes are followed by their parents: no control groups are needed. A
# run is bound to its core, as by `sweep --jobs=2`: another number of threads adds in another order.
SLURM_CONF = """
ClusterName=one_node
SlurmctldHost={host}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
ProctrackType=proctrack/linuxproc
TaskPlugin=task/affinity
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
NodeName={host} CPUs={cores} State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


@contextlib.contextmanager
def one_node_cluster(folder: Path) -> Iterator[None]:
    """Runs the daemons of a cluster inside the context.

    Args:
      folder: for its configuration, state and logs.

    Raises:
      UserError: if a daemon is missing or does not start.
    """
    host = socket.gethostname()
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
    (folder / "slurm.conf").write_text(SLURM_CONF.format(host=host, folder=folder, cores=CORES))
    key = folder / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(os.urandom(128))
    files = {"key-file": key, "seed-file": folder / "munge.seed", "pid-file": folder / "munged.pid"}
    munged = ["munged", "--force", "--foreground", f"--socket={folder}/munge.socket"]
    munged += [f"--{name}={path}" for name, path in files.items()]
    daemons = []
    try:
        for command in (munged, ["slurmctld", "-D"], ["slurmd", "-D"]):
            log = (folder / f"{command[0]}.txt").open("w")
            try:
                daemons.append(subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT))
            except FileNotFoundError:
                raise UserError(
                    f"{command[0]} is missing: apt-get install munge slurmctld slurmd slurm-client"
                ) from None
            time.sleep(3.0)
            if daemons[-1].poll() is not None:
                raise UserError(f"{command[0]} did not start; see {log.name}")
        yield
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
            daemon.wait()


def sweep(folder: Path, *flags: str) -> str:
    """Runs the command for the grid and returns its output.

    Raises:
      UserError: if it fails.
    """
    command = [sys.executable, "-m", "switokd_jax.sweep", "--config=configs/digits.py", f"--workdir={folder}"]
    command += ["--seeds", *map(str, SEEDS), "--over", f"method={','.join(METHODS)}", *flags]
    command += ["--", "--config.epochs=3", "--config.dtype=float64", "--config.checkpoint.every=1"]
    command += ["--config.networks.teacher.model=resnet14", "--config.networks.student.model=resnet8"]
    command += ["--config.log.tensorboard=False"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"the sweep failed: {done.stderr.strip()}")
    return done.stdout


def wait_for(done: str, condition: Callable[[], bool]) -> None:
    """Waits until a condition holds.

    Raises:
      UserError: naming what did not come in time.
    """
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        if time.monotonic() > deadline:
            raise UserError(f"not in {TIMEOUT_S:.0f} s: {done}")
        time.sleep(0.5)


def prove(folder: Path) -> str:
    """Runs the grid in both ways and compares them.

    Raises:
      UserError: if a run is missing, was not requeued, or differs.
    """
    cluster, local = folder / "cluster", folder / "local"
    with one_node_cluster(folder / "slurm"):
        grid = ("--launcher=slurm", "--time=60", "--cpus=1", "--array-parallelism=2")
        print(sweep(cluster, "--plan", *grid) + sweep(cluster, *grid))
        wait_for("a checkpoint", lambda: any(Workdir(cluster / STOPPED).checkpoints.glob("*")))
        job_id = read_json(cluster / "slurm" / "ids.json")[STOPPED]
        # It repeats the signal while the job is being requeued, and reports that this failed.
        subprocess.run(["scancel", "--signal=TERM", job_id], capture_output=True, check=False)
        count = len(SEEDS) * len(METHODS)
        wait_for("all results", lambda: len([*(cluster / "results").glob("*.json")]) == count)
        table = sweep(cluster, *grid)
    log = (cluster / "logs" / f"{STOPPED}.txt").read_text()
    if "stopped by SIGTERM" not in log or "resuming" not in log:
        raise UserError(f"{STOPPED} was not stopped and resumed; its log is {cluster}/logs")
    sweep(local, f"--jobs={CORES}")
    names = [result.stem for result in sorted((cluster / "results").glob("*.json"))]
    if different := [f"{name}: {line}" for name in names for line in storm.differences(local / name, cluster / name)]:
        raise UserError(f"runs differ: {'; '.join(different)}")
    return f"{table}\n{count} runs are the same bit for bit as with --jobs={CORES}; {STOPPED} was requeued"


def main() -> None:
    """Reads the flags and runs the proof."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, help="a new folder (a temporary one)")
    args = parser.parse_args()

    def command() -> str:
        with tempfile.TemporaryDirectory() as temporary:
            return prove((args.workdir or Path(temporary)).resolve())

    cli.run(command)


if __name__ == "__main__":
    main()
