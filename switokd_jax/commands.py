"""What all commands have in common: how they end, and where compiled programs are kept."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

import jax

from switokd_jax.fields import ConfigError
from switokd_jax.files import user_cache


def use_compilation_cache() -> None:
    """Keeps compiled programs in the user's cache folder, unless JAX_COMPILATION_CACHE_DIR names another."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(user_cache() / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def run(command: Callable[[], str]) -> None:
    """Runs a command and prints what it answers; what cannot be used ends it with one line and status 1."""
    use_compilation_cache()
    try:
        print(command())
    except ConfigError as error:
        sys.exit(f"switokd_jax: {error}")
