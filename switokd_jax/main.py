"""Trains the networks of a config: python -m switokd_jax.main --config=configs/digits.py --workdir=runs/digits"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import jax
from absl import flags, logging
from ml_collections import config_flags

from switokd_jax import loop
from switokd_jax.config import ConfigError

_CONFIG = config_flags.DEFINE_config_file("config", help_string="A config file, such as configs/digits.py.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for checkpoints, metrics, summary and figures.")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print the plan of the run and train nothing.")


def main(argv: list[str]) -> None:
    """Runs one config; a setting that cannot be used ends it with one line and status 1."""
    if len(argv) > 1:
        raise ConfigError(f"{argv[1]!r} is not a flag; flags begin with --config, --workdir or --dry_run")
    if _CONFIG.value is None:
        raise ConfigError("--config is missing; give a file, such as --config=configs/digits.py")
    if _DRY_RUN.value:
        print(loop.dry_run(_CONFIG.value))
        return
    if not _WORKDIR.value:
        raise ConfigError("--workdir is missing; give a folder, such as --workdir=runs/digits")
    loop.train_and_evaluate(_CONFIG.value, _WORKDIR.value)


def use_compilation_cache() -> None:
    """Keeps compiled programs in the user's cache folder, unless JAX_COMPILATION_CACHE_DIR names another."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(home / "switokd_jax" / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def _one_line(error: BaseException) -> str:
    return f"switokd_jax: {' '.join(str(error).split())}"


def cli() -> None:
    """Entry point: flags first, so that a bad one is answered like any other bad setting."""
    logging.set_verbosity(logging.WARNING)
    logging.use_absl_handler()
    try:
        argv = flags.FLAGS(sys.argv)
        use_compilation_cache()
        main(argv)
    except (ConfigError, flags.Error, AttributeError, TypeError, OSError) as error:
        sys.exit(_one_line(error))


if __name__ == "__main__":
    cli()
