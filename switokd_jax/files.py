"""Atomic writes, and the user's cache folder."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


def cache_dir() -> Path:
    """Returns the folder for files that can be made again: $XDG_CACHE_HOME/switokd_jax or ~/.cache/switokd_jax."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "switokd_jax"


def atomic_write(path: Path, write: Callable[[Path], Any]) -> None:
    """Writes a file so that no reader ever sees half of it.

    Args:
      path: the file.
      write: fills the temporary file whose path it is given; that file is then renamed to `path`.
    """
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        write(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Writes indented JSON, atomically."""
    atomic_write(path, lambda p: p.write_text(json.dumps(value, indent=2) + "\n"))
