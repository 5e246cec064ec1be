"""Starts a run of several processes on this machine.

python experiments/launch/launch_local.py --num_processes=2 -- --config=configs/digits.py --workdir=runs/two

Process 0 has the console; lines that the others write to stderr are marked with their index. SIGTERM and Ctrl-C are
forwarded to all of them. Once a process has failed the others have a minute to end. The exit status is that of the
first that failed.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import IO

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from switokd_jax.stop_signals import PARENT_VARIABLE

GRACE_PERIOD_S = 60.0  # from the first failure to SIGKILL


def free_port() -> int:
    """Returns a port that is not in use."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port: int = probe.getsockname()[1]
        return port


def start(count: int, flags: Sequence[str]) -> list[subprocess.Popen[str]]:
    """Starts the processes of a run, in the order of their ids."""
    environment = {**os.environ, PARENT_VARIABLE: str(os.getpid())}  # they save and end if we are killed
    environment |= {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    cluster = [f"--coordinator=localhost:{free_port()}", f"--num_processes={count}"]
    return [
        subprocess.Popen(
            [sys.executable, "-m", "switokd_jax.main", *flags, *cluster, f"--process_id={index}"],
            env=environment,
            stdout=None if index == 0 else subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(count)
    ]


def print_lines(index: int, lines: IO[str]) -> None:
    """Prints lines of a process with its index."""
    for line in lines:
        sys.stderr.write(f"[{index}] {line}")
        sys.stderr.flush()


def wait(processes: Sequence[subprocess.Popen[str]]) -> int:
    """Waits for all processes; returns the status of the first that failed, or 0."""
    failed, since = 0, 0.0
    while any(process.poll() is None for process in processes):
        statuses = [process.poll() for process in processes]
        if not failed and any(statuses):
            failed, since = next(status for status in statuses if status), time.monotonic()
        if failed and time.monotonic() - since > GRACE_PERIOD_S:
            for process in processes:
                process.kill()
        time.sleep(0.05)
    return failed or next((process.returncode for process in processes if process.returncode), 0)


def main() -> None:
    """Parses the flags, starts the processes and waits for them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_processes", type=int, required=True)
    parser.add_argument("flags", nargs="+", metavar="-- FLAGS OF MAIN")
    options = parser.parse_args()
    if options.num_processes < 1:
        parser.error(f"--num_processes is {options.num_processes}; a run has at least one process")
    processes = start(options.num_processes, options.flags)
    readers = [
        threading.Thread(target=print_lines, args=(index, process.stderr), daemon=True)
        for index, process in enumerate(processes)
    ]
    for reader in readers:
        reader.start()

    def forward(number: int, frame: FrameType | None) -> None:
        for process in processes:
            process.send_signal(number)

    signal.signal(signal.SIGTERM, forward)
    signal.signal(signal.SIGHUP, forward)
    signal.signal(signal.SIGINT, lambda *_: None)  # the terminal sends Ctrl-C to every process of its group
    status = wait(processes)
    for reader in readers:
        reader.join()
    sys.exit(128 - status if status < 0 else status)


if __name__ == "__main__":
    main()
