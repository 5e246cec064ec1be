"""What it takes to do a run again: versions, devices, commit, seed and data, of every start of it."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import switokd_jax
from switokd_jax.data.dataset import Dataset, Split
from switokd_jax.data.image_records import RecordSplit
from switokd_jax.errors import UserError
from switokd_jax.files import write_json
from switokd_jax.train.run_spec import RunSpec

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "tensorflow-datasets", "grain")
NAME = "record.json"
SAMPLED = 32  # records of an encoded split that its fingerprint reads


def collect(run: RunSpec, dataset: Dataset) -> dict[str, Any]:
    """JSON values: 'versions' by package (None where pip knows none), 'python', 'devices', 'commit' (None outside a git
    checkout; ends in '+' where files have changed since), 'seed', 'data': its name and fingerprint, and what a trained
    network needs of it."""
    return {
        "versions": {"switokd_jax": switokd_jax.__version__, **{name: version(name) for name in PACKAGES}},
        "python": platform.python_version(),
        "devices": run.distribution.device_info,
        "commit": commit(),
        "seed": run.config.seed,
        "data": {
            "name": dataset.name,
            "fingerprint": fingerprint(dataset),
            "classes": [*dataset.classes],
            "image_shape": [*dataset.image_spec.shape],
            "preprocess": dataset.preprocess.to_json(),
        },
    }


def check(folder: Path, start: Mapping[str, Any]) -> None:
    """Checks that a run goes on with the data that it began with.

    Raises:
      ConfigError: if it would not.
    """
    for earlier in _starts(folder)[-1:]:
        if earlier["data"]["fingerprint"] != start["data"]["fingerprint"]:
            raise UserError(
                f"--workdir {folder} holds a run on other images or labels of {earlier['data']['name']!r} than config."
                "data finds now; mend config.data.dir, or choose another folder"
            )


def append_start(folder: Path, start: Mapping[str, Any], step: int) -> None:
    """Adds a start, and the step that it went on from, to the workdir's record.json."""
    write_json(folder / NAME, {"starts": [*_starts(folder), {"step": step, **start}]})


def read_dataset_info(folder: Path) -> dict[str, Any]:
    """What 'data' was at the last start.

    Raises:
      ConfigError: if there is no record, or one of before it said what networks need.
    """
    starts = _starts(folder)
    if not starts or "classes" not in starts[-1]["data"]:
        raise UserError(
            f"{folder / NAME} does not say what the classes and images of its run are; start the run's command again, "
            "which adds that"
        )
    found: dict[str, Any] = starts[-1]["data"]
    return found


def _starts(folder: Path) -> list[dict[str, Any]]:
    """Of a run so far; none of one from before there were records."""
    path = folder / NAME
    try:
        starts: list[dict[str, Any]] = json.loads(path.read_text())["starts"] if path.exists() else []
    except (ValueError, KeyError) as error:
        raise UserError(f"{path} is not what this program writes; remove it, or choose another --workdir") from error
    return starts


def version(package: str) -> str | None:
    """Of an installed package; None where pip knows none, as of a folder on PYTHONPATH."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def commit() -> str | None:
    """The git commit of this package."""
    here = Path(__file__).parent
    try:
        found = subprocess.run(
            ["git", "-C", str(here), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    tracked = subprocess.run(["git", "-C", str(here), "ls-files", "--error-unmatch", __file__], capture_output=True)
    return found.stdout.strip() if tracked.returncode == 0 else None


def fingerprint(dataset: Dataset) -> str:
    """SHA-256 of all images and labels, or, where they stay on disk, of a sample of them."""
    digest = hashlib.sha256()
    for split in (dataset.train, dataset.validation, dataset.test):
        digest.update(f"{len(split)};".encode())
        for array in _arrays(split):
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _arrays(split: Split | RecordSplit) -> list[Any]:
    if isinstance(split, Split):
        return [split.images, split.labels]
    places = split.record_indices[np.linspace(0, len(split) - 1, min(SAMPLED, len(split)), dtype=int)]
    records = [split.records[int(place)] for place in places]
    images = [np.frombuffer(image, np.uint8) if isinstance(image, bytes) else image for image, _ in records]
    return [split.record_indices, *images, np.array([label for _, label in records], np.int32)]
