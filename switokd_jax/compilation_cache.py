"""The persistent caches: compiled and traced programs in the user's cache folder, for the next start."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import jax

from switokd_jax import IMPORT_TIME
from switokd_jax.files import cache_dir
from switokd_jax.program_cache import ProgramCache

RESTARTED = "SWITOKD_JAX_RESTARTED"  # environment variable of a process that has emptied the cache


def enable() -> None:
    """Keeps compiled programs in the user's cache folder, unless JAX_COMPILATION_CACHE_DIR names another."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def programs() -> ProgramCache:
    """Returns the cache of traced programs, in the user's cache folder, too."""
    return ProgramCache(cache_dir() / "programs", IMPORT_TIME)


@contextlib.contextmanager
def restart_after_wrong_program() -> Iterator[None]:
    """Empties the cache and starts the command again, once, if the cache gave a program that is not the one asked for.

    JAX itself compiles anew what it cannot read, and takes any entry that it can: one that was copied or renamed by a
    tool that mixed up two folders, say.
    """
    try:
        yield
    except (AssertionError, ValueError, jax.errors.JaxRuntimeError) as error:
        folder = jax.config.values["jax_compilation_cache_dir"]
        if not (folder and is_wrong_program(error)) or RESTARTED in os.environ or jax.process_count() > 1:
            raise
        for entry in Path(folder).glob("*-cache"):
            entry.unlink(missing_ok=True)
        message = f"switokd_jax: the compilation cache {folder} held another function's program; it is empty now"
        print(f"{message}, and the command starts again", file=sys.stderr, flush=True)
        os.environ[RESTARTED] = "1"
        os.execv(sys.executable, sys.orig_argv)


def is_wrong_program(error: BaseException) -> bool:
    """Returns whether an error is that of a program that got arguments of another number or of other shapes."""
    if isinstance(error, AssertionError):  # JAX counts the arguments of a loaded program; its frames become a note
        return any("JAX has removed its internal frames" in note for note in getattr(error, "__notes__", []))
    return str(error).startswith("safe_zip() argument") or "expected parameter" in str(error)
