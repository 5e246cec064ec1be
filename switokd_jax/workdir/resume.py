"""Checks whether a run may start or resume in a workdir."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from switokd_jax import config as configs
from switokd_jax.config_fields import ADAPTIVE
from switokd_jax.errors import UserError
from switokd_jax.files import read_json, write_json
from switokd_jax.methods import METHODS
from switokd_jax.workdir.layout import Workdir
from switokd_jax.workdir.lock import check_unlocked, lock

PATTERN_CHARACTERS = frozenset("*?[]\\")
# Fields that may have another value when a run resumes; any other difference would make it another run.
OVERRIDABLE_ON_RESUME = (
    "log",
    "checkpoint",
    "data.dir",
    "data.workers",
    "data.on_bad_image",
    "steps_per_call",
    "parallelism",
    "sharding",
    "on_nonfinite",
    "deterministic",
)


def check_workdir(workdir: Workdir, config: ConfigDict) -> None:
    """Checks, without writing, that a folder is free or holds a run of the same config.

    Raises:
      UserError: if another process trains in it, if it holds a run of another config or something else, or if its name
        makes Orbax lose checkpoints.
    """
    try:
        str(workdir.root.resolve()).encode()
    except UnicodeEncodeError:  # bytes of a file name that are no text; Orbax hands the path to C++ as UTF-8
        raise UserError(
            f"--workdir {str(workdir.root)!a} is not valid UTF-8, which checkpoints need; choose another name"
        ) from None
    # Orbax looks for checkpoints by pattern. A folder 'run[1]' would match 'run1' only, and no checkpoint be found.
    if special := PATTERN_CHARACTERS & {*str(workdir.root.resolve())}:
        raise UserError(
            f"--workdir {workdir.root.resolve()} contains {min(special)!r}, with which no checkpoint is found again; "
            "choose a folder without it"
        )
    check_unlocked(workdir.lock)
    _check_content(workdir, config)


def _check_content(workdir: Workdir, config: ConfigDict) -> None:
    try:
        if workdir.root.exists() and not workdir.root.is_dir():
            raise UserError(f"--workdir {workdir.root} is a file; choose a folder")
        old = _read_config(workdir) if workdir.config.exists() else None
        if old is None and workdir.checkpoints.exists():
            raise UserError(
                f"--workdir {workdir.root} holds checkpoints and no {workdir.config.name}, so their run is unknown; "
                "choose another folder"
            )
        for folder in (workdir.checkpoints, workdir.latest_checkpoints):
            if folder.exists() and not folder.is_dir():
                raise UserError(
                    f"{folder} is a file, and holds a run's checkpoints; remove it or choose another --workdir"
                )
        for path in (workdir.metrics, workdir.record, workdir.summary):
            if path.exists() and not path.is_file():
                raise UserError(f"{path} is no file; remove it or choose another --workdir")
    except OSError as error:
        raise UserError(f"--workdir {workdir.root} cannot be read ({error.strerror}); choose another folder") from None
    if old is not None:
        _check_same(old, to_json(config), workdir)


def _read_config(workdir: Workdir) -> dict[str, Any]:
    try:
        return read_json(workdir.config)
    except UserError as error:
        raise UserError(f"{error}; choose another --workdir or remove that file") from None


@contextlib.contextmanager
def open_workdir(workdir: Workdir, config: ConfigDict) -> Iterator[None]:
    """Creates the folder and writes its config.json, after `check_workdir`; locks it within the context.

    Raises:
      UserError: if it cannot be written, or another process trains in it.
    """
    with contextlib.ExitStack() as on_exit:
        try:
            workdir.root.mkdir(parents=True, exist_ok=True)
            on_exit.enter_context(lock(workdir.lock))
            _check_content(workdir, config)  # again: another run may have begun and ended since
            write_json(workdir.config, to_json(config))
        except OSError as error:
            raise UserError(
                f"--workdir {workdir.root} cannot be written ({error.strerror}); choose another folder"
            ) from None
        yield


def to_json(config: ConfigDict) -> Any:
    """Converts a config to the JSON values of config.json: tuples become lists."""
    return json.loads(config.to_json_best_effort())


def settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings of a run by dotted name: parsed, and with the defaults of missing fields.

    A config that was written before a field existed therefore has the same settings as one with that field's default.

    Args:
      config: content of a config.json. Blocks of methods that the run does not use are ignored.

    Returns:
      Values by name, such as 'networks.student.learning_rate' and 'switokd.alpha', as they are written in a config:
      lists, and 'adaptive'.

    Raises:
      UserError: naming a field that is unknown or has an invalid value.
    """
    method = config.get("method", configs.Config.method)
    parsed = configs.parse({name: value for name, value in config.items() if name not in METHODS or name == method})
    values = dataclasses.asdict(parsed)
    # Validation turns 'adaptive' into None.
    hyperparameters = {
        name: ADAPTIVE if value is None else value for name, value in values.pop("hyperparameters").items()
    }
    flat = flatten({**values, parsed.method: hyperparameters})
    return {name: [*value] if isinstance(value, tuple) else value for name, value in flat.items()}


def is_overridable(name: str) -> bool:
    """Returns whether a resumed run may have another value of this field.

    >>> is_overridable("log.every"), is_overridable("logs")
    (True, False)
    """
    return any(name == field or name.startswith(f"{field}.") for field in OVERRIDABLE_ON_RESUME)


def _check_same(old_config: Mapping[str, Any], new_config: Mapping[str, Any], workdir: Workdir) -> None:
    try:
        old = settings(old_config)
    except UserError as error:
        raise UserError(f"{workdir.config}: {error}; choose another --workdir") from None
    new = settings(new_config)
    # The method first: with another one its hyperparameters differ as well.
    for name in sorted(old.keys() | new.keys(), key=lambda name: (name != "method", name)):
        if not is_overridable(name) and old.get(name) != new.get(name):
            raise UserError(
                f"--workdir {workdir.root} holds a run with config.{name} = {old.get(name)!r}, not {new.get(name)!r}; "
                "choose another folder, or use that value to resume the run"
            )


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flattens a nested dict to dotted names.

    >>> flatten({"a": 1, "b": {"c": 2}})
    {'a': 1, 'b.c': 2}
    """
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat
