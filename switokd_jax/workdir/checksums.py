"""Checksums of a checkpoint's files, kept within it: neither Orbax nor the file system detects a flipped bit."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from switokd_jax.files import write_json

NAME = "checksums.json"
EXCLUDED = "_CHECKPOINT_METADATA"  # Orbax writes its commit time there after the checksums are made


def write(folder: Path) -> None:
    """Writes the SHA-256 of every file below a folder into the folder."""
    write_json(folder / NAME, {str(path.relative_to(folder)): _sha256(path) for path in _files(folder)})


def verify(folder: Path) -> str | None:
    """Compares the files of a checkpoint with its checksums.

    Returns:
      The problem in one line, or None if there is none. A checkpoint without checksums (of an early version) passes.
    """
    try:
        expected = json.loads((folder / NAME).read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        return f"{folder / NAME} cannot be read ({error})"
    for name, checksum in expected.items():
        try:
            if _sha256(folder / name) != checksum:
                return f"{folder / name} has changed since it was written"
        except OSError as error:
            return f"{folder / name} cannot be read ({error.strerror})"
    return None


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in (NAME, EXCLUDED))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
