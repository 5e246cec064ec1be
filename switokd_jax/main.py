"""Trains the networks of a config: python -m switokd_jax.main --config=configs/digits.py --workdir=runs/digits"""

from __future__ import annotations

import logging as py_logging
import os
import signal
import sys
from typing import NoReturn

import jax
from absl import flags, logging
from ml_collections import ConfigDict, config_flags

from switokd_jax import cli_help
from switokd_jax.cli import use_compilation_cache
from switokd_jax.errors import EXIT_STATUS, NonFiniteError, SaveError, Stopped, UserError
from switokd_jax.parallel import multihost
from switokd_jax.train import loop

# New fields are let in here, because `config.parse` names them better than the flag library does.
_CONFIG = config_flags.DEFINE_config_file(
    "config", help_string="A config file, such as configs/digits.py.", lock_config=False, accept_new_attributes=True
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for checkpoints, metrics, summary and figures.")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print the plan of the run and train nothing.")
_COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, for a run of several processes.")
_NUM_PROCESSES = flags.DEFINE_integer(
    "num_processes", None, "Processes of this run, unless Slurm, Open MPI or a TPU say."
)
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Of this process, from 0, likewise.")


def main(config: ConfigDict, workdir: str | None, dry_run: bool) -> None:
    """Runs one config.

    Raises:
      ConfigError: for a setting that cannot be used.
    """
    if dry_run:
        print(loop.dry_run(config))
        return
    if not workdir:
        raise UserError("--workdir is missing; give a folder, such as --workdir=runs/digits")
    loop.train_and_evaluate(config, workdir)


def parse_flags(argv: list[str]) -> ConfigDict:
    """Reads all flags and returns the config.

    Raises:
      ConfigError: for a flag, file or value that cannot be used.
    """
    try:
        rest = flags.FLAGS(argv)[1:]
        config = _CONFIG.value
        if config is not None and not isinstance(config, ConfigDict):
            config = config.get()  # a file that could not be loaded says so at the first touch
    # What absl and ml_collections raise for flags, files and values; a config file's own errors of other
    # kinds keep their traceback, which names its line.
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        where = "" if isinstance(error, flags.Error) else "--config: "
        raise UserError(where + _last_line(error)) from error
    if rest:
        raise UserError(
            f"{rest[0]!r} is not a flag; flags are --config, --config.FIELD, --workdir, --dry_run; --help has all"
        )
    if config is None:
        raise UserError("--config is missing; give a file, such as --config=configs/digits.py; --help lists them")
    return config


def _last_line(error: BaseException) -> str:
    # ml_collections puts a config file's whole traceback into the message; its end says what happened.
    message = str(error.args[0] if isinstance(error, KeyError) else error)
    return [line.strip() for line in message.splitlines() if line.strip()][-1]


def cli() -> None:
    """Entry point; a setting that cannot be used ends it with one line and status 1."""
    logging.set_verbosity(logging.WARNING)
    logging.use_absl_handler()
    # Orbax leaves tasks of a save that failed behind, and asyncio prints the traceback of each; we report the save.
    py_logging.getLogger("asyncio").setLevel(py_logging.CRITICAL)
    if any(flag.lstrip("-") in ("h", "help", "helpshort") for flag in sys.argv[1:]):
        print(f"{__doc__}\n\n{cli_help.text()}\nflags:\n{flags.FLAGS.main_module_help()}")
        return
    job = None
    try:
        config = parse_flags(sys.argv)
        use_compilation_cache()
        job = multihost.find(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value, os.environ)
        if job:
            multihost.join(job)
        main(config, _WORKDIR.value, _DRY_RUN.value)
    except (UserError, SaveError, NonFiniteError) as error:
        _end(job, "; ".join([str(error), *getattr(error, "__notes__", [])]))
    except Stopped as stopped:
        print(f"switokd_jax: {stopped}", file=sys.stderr)
        sys.exit(stopped.status)
    except BrokenPipeError:  # whoever reads the output has seen enough, such as `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains again at its end
        sys.exit(1)
    except KeyboardInterrupt:
        _end(job, "stopped by Ctrl-C; the same command goes on at the last save", EXIT_STATUS[signal.SIGINT])
    except jax.errors.JaxRuntimeError as error:
        if job is None:
            raise
        _end(job, f"{error}; if another process is gone, start all of them again: the run goes on at its last save")


def _end(job: multihost.Cluster | None, message: str, status: int = 1) -> NoReturn:
    """One line."""
    line = f"switokd_jax: {' '.join(message.split())}"
    print(line, file=sys.stderr)
    if job is None:
        sys.exit(status)
    multihost.leave(status)


if __name__ == "__main__":
    cli()
