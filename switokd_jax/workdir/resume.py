"""The folder of a run: made on the first start, recognised on the next ones."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from switokd_jax.errors import UserError
from switokd_jax.files import write_json

# A run may go on with other values of these; anything else would make it another run.
OVERRIDABLE_ON_RESUME = (
    "log",
    "checkpoint",
    "data.dir",
    "data.workers",
    "steps_per_call",
    "parallelism",
    "sharding",
    "on_nonfinite",
    "deterministic",
)


def check_workdir(folder: Path, config: ConfigDict) -> None:
    """Checks, without writing, that a folder is free or holds a run of the same config.

    Raises:
      ConfigError: if another run, or something else, lives there.
    """
    path = folder / "config.json"
    try:
        if folder.exists() and not folder.is_dir():
            raise UserError(f"--workdir {folder} is a file; choose a folder")
        old = json.loads(path.read_text()) if path.exists() else None
        if old is None and (folder / "checkpoints").exists():
            raise UserError(
                f"--workdir {folder} holds checkpoints and no config.json, so nobody knows of which run; "
                "choose another folder"
            )
    except json.JSONDecodeError:
        raise UserError(f"{path} is not JSON; choose another --workdir or remove that file") from None
    except OSError as error:
        raise UserError(f"--workdir {folder} cannot be read ({error.strerror}); choose another folder") from None
    if old is not None:
        _check_same(flatten(old), flatten(_as_json(config)), folder)


def open_workdir(folder: Path, config: ConfigDict) -> None:
    """Makes the folder with its config.json, after `check_workdir`.

    Raises:
      ConfigError: if it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "config.json", _as_json(config))
    except OSError as error:
        raise UserError(f"--workdir {folder} cannot be written ({error.strerror}); choose another folder") from None


def _as_json(config: ConfigDict) -> Any:
    return json.loads(config.to_json_best_effort())


def _check_same(old: dict[str, Any], new: dict[str, Any], folder: Path) -> None:
    for name in sorted(old.keys() | new.keys()):
        if any(name == free or name.startswith(f"{free}.") for free in OVERRIDABLE_ON_RESUME) or old.get(
            name
        ) == new.get(name):
            continue
        raise UserError(
            f"--workdir {folder} holds a run with config.{name} = {old.get(name)!r}, not {new.get(name)!r}; "
            "choose another folder, or that value to go on with the run"
        )


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested dict as one with dotted names."""
    out: dict[str, Any] = {}
    for key, value in tree.items():
        out |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return out
