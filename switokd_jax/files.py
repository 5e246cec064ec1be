"""Atomic writes, and the user's cache folder."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from switokd_jax.errors import UserError


def cache_dir() -> Path:
    """Returns the folder for files that can be made again: $XDG_CACHE_HOME/switokd_jax or ~/.cache/switokd_jax.

    A user without a home folder has one in the folder of temporary files.
    """
    if folder := os.environ.get("XDG_CACHE_HOME"):
        return Path(folder) / "switokd_jax"
    try:
        return Path.home() / ".cache" / "switokd_jax"
    except RuntimeError:  # a user without an entry in the password file and without $HOME, as in some containers
        return Path(tempfile.gettempdir()) / f"switokd_jax_{os.getuid()}"


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
    """Writes indented JSON, atomically; see `to_json`."""
    atomic_write(path, lambda p: p.write_text(to_json(value, indent=2) + "\n", encoding="utf-8"))


def to_json(value: Any, indent: int | None = None) -> str:
    """Formats a value as JSON. JSON has no NaN and no infinity: they become null.

    >>> to_json({"loss": float("nan"), "top1": [50.0]})
    '{"loss": null, "top1": [50.0]}'
    """
    try:
        return json.dumps(value, indent=indent, allow_nan=False)
    except ValueError:
        return json.dumps(_non_finite_to_none(value), indent=indent, allow_nan=False)


def _non_finite_to_none(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {name: _non_finite_to_none(each) for name, each in value.items()}
    return [_non_finite_to_none(each) for each in value] if isinstance(value, list | tuple) else value


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
      UserError: naming the file, if it cannot be read or holds anything else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError):  # other text, bytes that are no text, or brackets by the thousand
        raise UserError(f"{path} is not JSON") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} holds no JSON object")
    return value
