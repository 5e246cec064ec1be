"""What all commands have in common: how they end, where compiled programs are kept, and what a run may have added."""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from switokd_jax.errors import UserError
from switokd_jax.files import cache_dir


def use_compilation_cache() -> None:
    """Keeps compiled programs in the user's cache folder, unless JAX_COMPILATION_CACHE_DIR names another."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def make_parser(doc: str | None, prog: str | None = None) -> argparse.ArgumentParser:
    """The parser of a command that reads runs; `run` does what its `--config` says."""
    parser = argparse.ArgumentParser(prog=prog, description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--config", metavar="FILE", help="the run's config file, where that adds a method, network or data set"
    )
    return parser


def run(command: Callable[[], str], config: str | None = None) -> None:
    """Runs a command and prints what it answers; what cannot be used ends it with one line and status 1.

    Args:
      command: what to do.
      config: a config file to import first, for what it enters into the package's dicts.
    """
    use_compilation_cache()
    try:
        if config:
            config_module(Path(config))
        print(command())
    except UserError as error:
        sys.exit(f"switokd_jax: {error}")
    except KeyboardInterrupt:
        sys.exit("switokd_jax: stopped by Ctrl-C")


def config_module(path: Path) -> Any:
    """The module of a config file; its get_config() makes the config.

    Raises:
      ConfigError: if there is no such file.
    """
    name = f"config_{path.stem}"  # hides no other module
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not path.exists():
        raise UserError(f"--config {path} is not a Python file")
    made = importlib.util.module_from_spec(spec)
    sys.modules[name] = made  # where dataclasses look for the module that they are defined in
    spec.loader.exec_module(made)
    return made
