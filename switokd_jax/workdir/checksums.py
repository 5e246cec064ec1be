"""Checksums of a checkpoint's files, kept within it: neither Orbax nor the file system notices a flipped bit."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from switokd_jax.files import write_json

NAME = "checksums.json"
LATER = "_CHECKPOINT_METADATA"  # Orbax enters the time of its commit last of all


def write(folder: Path) -> None:
    """Notes the SHA-256 of every file below a folder."""
    write_json(folder / NAME, {str(path.relative_to(folder)): _sum(path) for path in _files(folder)})


def verify(folder: Path) -> str | None:
    """What is wrong with a checkpoint, or None. One without checksums, of an earlier version, is taken as it is."""
    try:
        noted = json.loads((folder / NAME).read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        return f"{folder / NAME} cannot be read ({error})"
    for name, checksum in noted.items():
        try:
            if _sum(folder / name) != checksum:
                return f"{folder / name} has changed since it was written"
        except OSError as error:
            return f"{folder / name} cannot be read ({error.strerror})"
    return None


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in (NAME, LATER))


def _sum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
