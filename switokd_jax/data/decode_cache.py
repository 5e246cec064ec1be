"""Decoded splits, kept in the user's cache folder: decoding takes longer than all else in a second start."""

from __future__ import annotations

import hashlib
import json
import logging
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from switokd_jax.files import atomic_write, cache_dir

Arrays = tuple[np.ndarray, np.ndarray]


def decoded(title: str, shards: Sequence[Any], read: Callable[[], Arrays]) -> Arrays:
    """Images and labels of a split, as kept by an earlier run from the same files, or read and kept.

    Args:
      title: of the split.
      shards: its files; known by path, size and time of the last change.
      read: reads and decodes them.
    """
    kept = cache_dir() / "decoded" / f"{_fingerprint(title, shards)}.npz"
    if (arrays := _load(kept)) is not None:
        return arrays
    images, labels = read()
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(kept, lambda path: np.savez(path, images=images, labels=labels))
    except OSError as error:
        logging.getLogger(__name__).warning("%s will be decoded again at the next start: %s", title, error)
    return images, labels


def _fingerprint(title: str, shards: Sequence[Any]) -> str:
    facts = [(str(shard), (stat := Path(shard).stat()).st_size, stat.st_mtime_ns) for shard in shards]
    return hashlib.sha256(json.dumps([title, facts]).encode()).hexdigest()[:32]


def _load(kept: Path) -> Arrays | None:
    try:
        with np.load(kept) as file:
            return file["images"], file["labels"]
    # Whatever a damaged file makes of itself; it is written anew.
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile):
        return None
