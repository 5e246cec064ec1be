"""Trains the networks of a config: python -m switokd_jax.main --config=configs/digits.py --workdir=runs/digits"""

from __future__ import annotations

import os
import sys

from absl import flags
from ml_collections import ConfigDict, config_flags

from switokd_jax import cli as command_line
from switokd_jax import cli_help
from switokd_jax.errors import UserError
from switokd_jax.parallel import multihost
from switokd_jax.train import loop

# New fields are accepted here, because `config.parse` reports unknown ones better than the flag library does.
_CONFIG = config_flags.DEFINE_config_file(
    "config", help_string="A config file, such as configs/digits.py.", lock_config=False, accept_new_attributes=True
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for checkpoints, metrics, summary and figures.")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print the plan of the run and train nothing.")
_COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, for a run of several processes.")
_NUM_PROCESSES = flags.DEFINE_integer(
    "num_processes", None, "Number of processes, unless Slurm, Open MPI or a TPU provide it."
)
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Index of this process, from 0, likewise.")


def main(config: ConfigDict, workdir: str | None, dry_run: bool) -> None:
    """Trains the networks of a config, or prints the plan.

    Raises:
      UserError: for a setting that cannot be used.
    """
    if dry_run:
        print(loop.dry_run(config))
        return
    if not workdir:
        raise UserError("--workdir is missing; give a folder, such as --workdir=runs/digits")
    loop.train_and_evaluate(config, workdir)


def cli() -> None:
    """Entry point: reads the flags and trains. An error of the user ends it with one line and status 1."""
    command_line.configure_logging()
    if command_line.is_help_requested(sys.argv):
        print(f"{__doc__}\n\n{cli_help.text()}\nflags:\n{flags.FLAGS.main_module_help()}")
        return
    with command_line.exit_on_error():
        config = command_line.parse_flags(sys.argv, _CONFIG)
        command_line.use_compilation_cache()
        cluster = multihost.detect_cluster(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value, os.environ)
        with command_line.exit_on_error(cluster):
            if cluster:
                multihost.initialize(cluster)
            main(config, _WORKDIR.value, _DRY_RUN.value)


if __name__ == "__main__":
    cli()
