"""Provenance of a run: versions, devices, commit, seed and data set, recorded at each of its starts."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import inspect
import platform
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

import switokd_jax
from switokd_jax.data.dataset import Dataset, Split
from switokd_jax.data.decode import ImageError
from switokd_jax.data.image_records import RecordSplit
from switokd_jax.data.normalization import Preprocess
from switokd_jax.errors import UserError
from switokd_jax.files import read_json, write_json
from switokd_jax.workdir.layout import Workdir

PACKAGE_DIR = Path(switokd_jax.__file__).parent
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "tensorflow-datasets", "grain")
NUM_FINGERPRINT_RECORDS = 32  # of a split that stays on disk, whose fingerprint reads a sample


def collect(device_info: Mapping[str, Any], seed: int, dataset: Dataset, code: Iterable[Any] = ()) -> dict[str, Any]:
    """Collects the provenance of one start.

    Args:
      device_info: `Distribution.device_info`.
      seed: of the run.
      dataset: of the run.
      code: functions and classes that the run uses and that may be a user's own.

    Returns:
      JSON values: 'versions' by package (None if pip knows none), 'python', 'devices', 'commit' (see `commit`), 'code'
      (see `code_fingerprint`), 'seed', and 'data': name and fingerprint of the data set, and all that its trained
      networks need to know of it.
    """
    return {
        "versions": {"switokd_jax": switokd_jax.__version__, **{name: version(name) for name in PACKAGES}},
        "python": platform.python_version(),
        "devices": device_info,
        "commit": commit(),
        "code": code_fingerprint(code),
        "seed": seed,
        "data": {
            "name": dataset.name,
            "fingerprint": fingerprint(dataset),
            "classes": [*dataset.classes],
            "image_shape": [*dataset.image_spec.shape],
            "preprocess": dataset.preprocess.to_json(),
        },
    }


def check(workdir: Workdir, start: Mapping[str, Any]) -> None:
    """Checks that a run resumes with the same images and labels.

    Args:
      workdir: of the run.
      start: provenance of the new start, from `collect`.

    Raises:
      UserError: if the data set has changed.
    """
    for previous in _read_starts(workdir)[-1:]:
        if previous["data"]["fingerprint"] != start["data"]["fingerprint"]:
            raise UserError(
                f"--workdir {workdir.root} holds a run on other images or labels of {previous['data']['name']!r} than "
                "config.data finds now; correct config.data.dir, or choose another folder"
            )


def append_start(workdir: Workdir, start: Mapping[str, Any], step: int) -> None:
    """Appends the provenance of a start, and the global step that it resumes at, to the record."""
    write_json(workdir.record, {"starts": [*_read_starts(workdir), {"step": step, **start}]})


def read_dataset_info(workdir: Workdir) -> dict[str, Any]:
    """Reads what the record holds about the data set: the entry 'data' of the last start.

    Raises:
      UserError: if there is no record, or only one of an early version.
    """
    starts = _read_starts(workdir)
    if not starts or not _is_dataset_info(starts[-1]["data"]):
        raise UserError(
            f"{workdir.record} lacks the classes, image shape or normalization of its run; repeat the run's command, "
            "which adds them"
        )
    info: dict[str, Any] = starts[-1]["data"]
    return info


def _is_dataset_info(data: Mapping[str, Any]) -> bool:
    """Returns whether an entry has all that trained networks need to know, of the right types."""
    shape, classes, preprocess = (data.get(field) for field in ("image_shape", "classes", "preprocess"))
    if not isinstance(shape, list) or not isinstance(classes, list) or not isinstance(preprocess, dict):
        return False
    numbers = [*shape, preprocess.get("scale", 255.0)]
    for field in ("mean", "std"):
        numbers += preprocess[field] if isinstance(preprocess.get(field), list) else [None]
    known = {field.name for field in dataclasses.fields(Preprocess)}
    return (
        len(shape) == 3
        and all(isinstance(name, str) for name in classes)
        and all(isinstance(x, int | float) and not isinstance(x, bool) and x >= 0 for x in numbers)
        and preprocess.keys() <= known
    )


def _read_starts(workdir: Workdir) -> list[dict[str, Any]]:
    """Reads the starts so far; none if the run is new, or older than the record."""
    if not workdir.record.exists():
        return []
    starts = read_json(workdir.record).get("starts")
    if not isinstance(starts, list) or not all(map(_is_start, starts)):
        raise UserError(f"{workdir.record} is not a record of this program; remove it, or choose another --workdir")
    return starts


def _is_start(start: Any) -> bool:
    """Returns whether a JSON value is the provenance of a start, of this version or an early one."""
    if not isinstance(start, dict) or not isinstance(data := start.get("data"), dict):
        return False
    kinds = {"fingerprint": str, "name": str, "classes": list, "image_shape": list, "preprocess": dict}
    return (
        all(isinstance(data[field], kind) for field, kind in kinds.items() if field in data) and "fingerprint" in data
    )


def version(package: str) -> str | None:
    """Returns the version of an installed package; None if pip knows none, as for a folder on PYTHONPATH."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def commit() -> str | None:
    """Returns the git commit of this package, with '+' appended if files have changed since; None outside git."""
    here = Path(__file__).parent
    try:
        described = subprocess.run(
            ["git", "-C", str(here), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    tracked = subprocess.run(["git", "-C", str(here), "ls-files", "--error-unmatch", __file__], capture_output=True)
    return described.stdout.strip() if tracked.returncode == 0 else None


def code_files(code: Iterable[Any]) -> set[Path]:
    """Returns this package's source files and those that define some functions and classes."""
    files = {*PACKAGE_DIR.rglob("*.py")}
    for each in code:
        with contextlib.suppress(TypeError):  # partial functions and builtins
            if source := inspect.getsourcefile(getattr(each, "func", each)):
                files.add(Path(source))
    return files


def code_fingerprint(code: Iterable[Any]) -> str:
    """Returns the SHA-256 of the `code_files`."""
    digest = hashlib.sha256()
    for path in sorted(code_files(code), key=lambda path: (path.name, str(path))):
        with contextlib.suppress(OSError):  # a notebook's code has no file
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def fingerprint(dataset: Dataset) -> str:
    """Returns the SHA-256 of all images and labels or, for splits that stay on disk, of a sample of them."""
    digest = hashlib.sha256()
    for split in (dataset.train, dataset.validation, dataset.test):
        digest.update(f"{len(split)};".encode())
        for array in _arrays(split):
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _arrays(split: Split | RecordSplit) -> list[Any]:
    if isinstance(split, Split):
        return [split.images, split.labels]
    sample = np.linspace(0, len(split) - 1, min(NUM_FINGERPRINT_RECORDS, len(split)), dtype=int)
    records = []
    for index in split.record_indices[sample]:
        with contextlib.suppress(ImageError):  # `config.data.on_bad_image` decides about it
            records.append(split.records[int(index)])
    images = [np.frombuffer(image, np.uint8) if isinstance(image, bytes) else image for image, _ in records]
    return [split.record_indices, *images, np.array([label for _, label in records], np.int32)]
