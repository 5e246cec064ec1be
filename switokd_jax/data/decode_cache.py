"""Cache of decoded splits in the user's cache folder: decoding takes most of the time of a second start."""

from __future__ import annotations

import hashlib
import json
import logging
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from switokd_jax.files import atomic_write, cache_dir

Arrays = tuple[np.ndarray, np.ndarray]
"""Images [n, height, width, channels] uint8 and labels [n] int32."""


def load_or_decode(name: str, shard_paths: Sequence[str | Path], decode: Callable[[], Arrays]) -> Arrays:
    """Loads a split from the cache, or decodes it and caches the result.

    Args:
      name: name of the data set and split.
      shard_paths: files of the split. An entry is valid while their paths, sizes and times of change are the same.
      decode: reads and decodes the split.
    """
    cache_path = cache_dir() / "decoded" / f"{_fingerprint(name, shard_paths)}.npz"
    if (arrays := _load(cache_path)) is not None:
        return arrays
    images, labels = decode()
    try:
        cache_path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(cache_path, lambda path: np.savez(path, images=images, labels=labels))
    except OSError as error:
        logging.getLogger(__name__).warning("%s will be decoded again at the next start: %s", name, error)
    return images, labels


def _fingerprint(name: str, shard_paths: Sequence[str | Path]) -> str:
    stats = [(str(path), (stat := Path(path).stat()).st_size, stat.st_mtime_ns) for path in shard_paths]
    return hashlib.sha256(json.dumps([name, stats]).encode()).hexdigest()[:32]


def _load(cache_path: Path) -> Arrays | None:
    try:
        with np.load(cache_path) as file:
            return file["images"], file["labels"]
    # A missing entry, and all that NumPy raises for a damaged one: the split is decoded and written again.
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile):
        return None
