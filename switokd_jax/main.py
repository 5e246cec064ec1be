"""Trains the networks of a config: python -m switokd_jax.main --config=configs/digits.py --workdir=runs/digits

This module imports nothing that takes long: a signal that comes while the rest is imported has a handler already.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

from switokd_jax import stop_signals

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Sequence
    from typing import TextIO

    import jax
    from absl.flags import FlagHolder, FlagValues
    from ml_collections import ConfigDict

    from switokd_jax.program_cache import ProgramCache


class Flags(NamedTuple):
    """The flags of the command line, as absl holds them; see `define_flags`."""

    config: FlagHolder[Any]
    workdir: FlagHolder[str | None]
    dry_run: FlagHolder[bool]
    coordinator: FlagHolder[str | None]
    num_processes: FlagHolder[int | None]
    process_id: FlagHolder[int | None]


def define_flags(flag_values: FlagValues, argv: Sequence[str]) -> Flags:
    """Defines the flags, once for some flag values.

    Args:
      flag_values: `absl.flags.FLAGS`, or new ones for another command line than that of the process.
      argv: the command line, in which --config.FIELD are looked up.
    """
    from absl import flags
    from ml_collections import config_flags

    return Flags(
        # New fields are accepted here, because `config.parse` reports unknown ones better than the flag library does.
        config=config_flags.DEFINE_config_file(
            "config",
            help_string="A config file, such as configs/digits.py.",
            lock_config=False,
            accept_new_attributes=True,
            flag_values=flag_values,
            sys_argv=[*argv],
        ),
        workdir=flags.DEFINE_string(
            "workdir", None, "Folder for checkpoints, metrics, summary and figures.", flag_values=flag_values
        ),
        dry_run=flags.DEFINE_bool(
            "dry_run", False, "Print the plan of the run and train nothing.", flag_values=flag_values
        ),
        coordinator=flags.DEFINE_string(
            "coordinator", None, "HOST:PORT of process 0, for a run of several processes.", flag_values=flag_values
        ),
        num_processes=flags.DEFINE_integer(
            "num_processes",
            None,
            "Number of processes, unless Slurm, Open MPI or a TPU provide it.",
            flag_values=flag_values,
        ),
        process_id=flags.DEFINE_integer(
            "process_id", None, "Index of this process, from 0, likewise.", flag_values=flag_values
        ),
    )


def main(config: ConfigDict, workdir: str | None, dry_run: bool, programs: ProgramCache | None = None) -> None:
    """Trains the networks of a config, or prints the plan.

    Args:
      config: as `config.default()` makes it.
      workdir: folder of the run; not needed for the plan.
      dry_run: whether to print the plan only.
      programs: keeps traced programs for the next start.

    Raises:
      UserError: for a setting that cannot be used.
    """
    from switokd_jax.errors import UserError
    from switokd_jax.train import loop

    if dry_run:
        print(loop.dry_run(config))
        return
    if not workdir:
        raise UserError("--workdir is missing; give a folder, such as --workdir=runs/digits")
    loop.train_and_evaluate(config, workdir, programs=programs)


def make_thread_command() -> Callable[[Sequence[str], Sequence[jax.Device], TextIO, threading.Event], int]:
    """Makes the command as a function, for threads of one process; see `analysis.job_workers.Threads`.

    Returns:
      A function of the flags, the devices to train on, the stream for all output, and an event that makes the run save
      and end. It returns the exit status that the command would have.
    """
    import threading
    import traceback

    from absl import flags

    from switokd_jax import cli as command_line
    from switokd_jax import compilation_cache
    from switokd_jax.train import loop
    from switokd_jax.train.thread_context import ThreadContext

    config_lock = threading.Lock()  # a config file may register methods and networks
    save_lock = threading.Lock()
    programs = compilation_cache.programs()

    def train(argv: Sequence[str], devices: Sequence[jax.Device], output: TextIO, stop: threading.Event) -> int:
        argv, flag_values = ["main", *argv], flags.FlagValues()
        try:
            with command_line.log_of_thread(output), command_line.exit_on_error(stderr=output):
                with config_lock:
                    defined = define_flags(flag_values, argv)
                    config = command_line.parse_flags(argv, flag_values, defined.config)
                thread = ThreadContext(output, stop, save_lock)
                loop.train_and_evaluate(config, defined.workdir.value or "", devices, thread, programs)
        except SystemExit as end:
            return int(end.code or 0)
        except Exception:  # a defect; the command would print it and end with 1, and other threads go on
            traceback.print_exc(file=output)
            return 1
        return 0

    return train


def cli() -> None:
    """Entry point: reads the flags and trains. An error of the user ends it with one line and status 1."""
    stop_signals.exit_on_stop_signals()
    stop_signals.stop_with_parent(os.environ)

    from absl import flags

    from switokd_jax import cli as command_line
    from switokd_jax import cli_help, compilation_cache
    from switokd_jax.parallel import multihost

    command_line.configure_output()
    command_line.configure_logging()
    command_line.configure_warnings(sys.warnoptions)
    defined = define_flags(flags.FLAGS, sys.argv)
    if command_line.is_help_requested(sys.argv):
        print(f"{(__doc__ or '').splitlines()[0]}\n\n{cli_help.text()}\nflags:\n{flags.FLAGS.main_module_help()}")
        return
    with command_line.exit_on_error():
        command_line.raise_open_files_limit()
        config = command_line.parse_flags(sys.argv, flags.FLAGS, defined.config)
        compilation_cache.enable()
        cluster = multihost.detect_cluster(
            defined.coordinator.value, defined.num_processes.value, defined.process_id.value, os.environ
        )
        with command_line.exit_on_error(cluster):
            if cluster:
                multihost.initialize(cluster)
            multihost.start_backend()
            with compilation_cache.restart_after_wrong_program():
                main(config, defined.workdir.value, defined.dry_run.value, compilation_cache.programs())


if __name__ == "__main__":
    cli()
