"""Fills the disk of one run at random moments and frees it again, and checks that the run continues and loses nothing.

python experiments/faults/full_disk.py --fillings=30

The disk is a tmpfs of 16 MiB (Linux, no root needed). Half of the fillings begin within a save, and each leaves a
random number of bytes: none, less than a save takes, or a little more than the run asks for. Prints each. Exit status
1 if no save follows within `TIMEOUT_S` of a freeing (the run then prints the stacks of its threads), if a save on the
disk is damaged, or if the last state or the rows of metrics.jsonl differ from those of a run with enough space.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2])]

from experiments.faults import storm
from switokd_jax.workdir import checksums, restore
from switokd_jax.workdir.layout import Workdir

SIZE_MIB = 16
TIMEOUT_S = 60.0
EPOCHS_PER_FILLING = 10
SAVE_BYTES = 3 * 2**19  # of one save, about
# In the warnings about saves that are put off.
PUT_OFF = (" left, and one takes ", "lines of metrics.jsonl wait for room")


class Unavailable(Exception):
    """No tmpfs can be mounted here."""


@contextlib.contextmanager
def small_disk(size: int = SIZE_MIB) -> Iterator[tuple[Path, list[str]]]:
    """Mounts a folder of so many MiB.

    Yields:
      Its path for this process, and a prefix for commands, which see it as /mnt.

    Raises:
      Unavailable: without user namespaces.
    """
    if shutil.which("unshare") is None:
        raise Unavailable("no command unshare")
    mount = f"mount -t tmpfs -o size={size}m small /mnt && exec sleep 86400"
    keeper = subprocess.Popen(["unshare", "--map-root-user", "--mount", "sh", "-c", mount])
    mounted = Path(f"/proc/{keeper.pid}/root/mnt")
    try:
        while not os.path.ismount(mounted):
            if keeper.poll() is not None:
                raise Unavailable("unshare or mount failed")
            time.sleep(0.05)
        enter = ["nsenter", "--target", str(keeper.pid), "--user", "--mount", "--preserve-credentials"]
        yield mounted, [*enter, f"--wd={storm.ROOT}"]
    finally:
        keeper.kill()
        keeper.wait()


def fill(path: Path, leave: int = 0) -> None:
    """Writes a file until so many bytes of its disk are free."""
    with path.open("wb", buffering=0) as file:
        while shutil.disk_usage(path.parent).free > leave:
            try:
                file.write(bytes(4096))
            except OSError as error:  # the run has taken the rest
                if error.errno != errno.ENOSPC:
                    raise


def damaged(run: Path) -> list[str]:
    """Lists the finished saves that are damaged, one line each."""
    saves = [path for path in Workdir(run).latest_checkpoints.glob("*") if path.name.isdigit()]
    return [f"{path}: {problem}" for path in saves if (problem := checksums.verify(path))]


def disturb(process: subprocess.Popen[bytes], run: Path, leave: int, within: bool, rng: random.Random) -> float:
    """Fills the run's disk at a random moment, frees it after a random time, and waits for a save.

    Returns:
      Seconds from the freeing to the first save after it.

    Raises:
      TimeoutError: after `TIMEOUT_S`; the process has then printed the stacks of its threads.
      ChildProcessError: if it has ended.
    """
    filler = run.parent / "filler"
    before, partial = storm.newest_save(run), storm.unfinished(run)
    if within:
        _wait(process, lambda: bool(storm.unfinished(run) - partial) or storm.newest_save(run) > before)
    time.sleep(rng.uniform(0.0, 0.01 if within else 0.3))
    fill(filler, leave)
    time.sleep(rng.uniform(0.0, 1.5))
    full = storm.newest_save(run)
    filler.unlink()
    begin = time.monotonic()
    _wait(process, lambda: storm.newest_save(run) > full)
    return time.monotonic() - begin


def _wait(process: subprocess.Popen[bytes], until: Callable[[], bool]) -> None:
    storm.wait(process, until, TIMEOUT_S, signal.SIGABRT)  # at which faulthandler prints every thread's stack
    if process.poll() is not None:
        raise ChildProcessError(f"the run ended with status {process.returncode}")


def run_experiment(folder: Path, fillings: int, rng: random.Random) -> list[str]:
    """Trains one run with enough space and one whose disk is filled so many times; lists the faults of the latter.

    Raises:
      Unavailable: if no small disk can be mounted.
    """
    flags = (f"--config.epochs={fillings * EPOCHS_PER_FILLING}", "--config.checkpoint.every=0.5")
    alone = folder / "alone"
    if storm.start(alone, (*storm.FLAGS, *flags)).wait(10 * storm.TIMEOUT_S):
        return ["the undisturbed run failed"]
    with small_disk() as (mounted, enter), (folder / "stderr.txt").open("wb") as log:
        run = mounted / "run"
        command = [*enter, sys.executable, "-X", "faulthandler", "-m", "switokd_jax.main", "--workdir=/mnt/run"]
        process = subprocess.Popen([*command, *storm.FLAGS, *flags], cwd=storm.ROOT, stdout=log, stderr=log)
        try:
            storm.wait(process, lambda: storm.newest_save(run) > 0)  # it compiles first
            for i in range(fillings):
                leave = rng.choice((0, rng.randrange(SAVE_BYTES), rng.randrange(SAVE_BYTES, 3 * SAVE_BYTES)))
                delay = disturb(process, run, leave, within=bool(i % 2), rng=rng)
                print(f"filling {i + 1}, {leave:,} bytes left: a save {delay:.2f} s after its end", flush=True)
            if status := process.wait(10 * storm.TIMEOUT_S):
                return [f"the run ended with status {status}; {log.name}"]
        except (TimeoutError, ChildProcessError) as error:
            return [f"{error}; {log.name}"]
        finally:
            process.kill()
        shutil.copytree(run, folder / "filled")
    warnings = [line for line in Path(log.name).read_text().splitlines() if "training continues" in line]
    half_way = [line for line in warnings if not any(reason in line for reason in PUT_OFF)]
    print(f"{len(warnings)} saves failed, {len(half_way)} of them half way")
    return damaged(folder / "filled") + differences(alone, folder / "filled")


def differences(alone: Path, run: Path) -> list[str]:
    """Lists the differences, one line each. Best checkpoints are not compared: a filling may have prevented one."""
    metrics = [Workdir(folder).metrics for folder in (alone, run)]
    lines = [] if metrics[0].read_text() == metrics[1].read_text() else [metrics[0].name]
    lines += storm.bits("latest", restore.load_state(alone), restore.load_state(run))
    return lines + [f"left behind: {path}" for path in run.rglob("*tmp*")]


if __name__ == "__main__":
    try:
        storm.prove(__doc__ or "", "fillings", run_experiment)
    except Unavailable as error:
        sys.exit(f"no tmpfs can be mounted here: {error}")
