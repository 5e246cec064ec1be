"""The folder of a run: made on the first start, recognised on the next ones."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from switokd_jax.fields import ConfigError
from switokd_jax.files import write_json

# A run may go on with other values of these; anything else would make it another run.
MAY_CHANGE = ("log", "checkpoint", "data.dir", "parallelism", "sharding")


def open_workdir(folder: Path, config: ConfigDict) -> Path:
    """Makes the folder with its config.json, or checks that it holds a run of the same config.

    Raises:
      ConfigError: if it cannot be written, or another run lives there; nothing in it has changed then.
    """
    new, path = json.loads(config.to_json_best_effort()), folder / "config.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if path.exists():
            _check_same(_flat(json.loads(path.read_text())), _flat(new), folder)
        write_json(path, new)
    except OSError as error:
        raise ConfigError(f"--workdir {folder} cannot be written ({error.strerror}); choose another folder") from None
    except json.JSONDecodeError:
        raise ConfigError(f"{path} is not JSON; choose another --workdir or remove that file") from None
    return folder


def _check_same(old: dict[str, Any], new: dict[str, Any], folder: Path) -> None:
    for name in sorted(old.keys() | new.keys()):
        if any(name == free or name.startswith(f"{free}.") for free in MAY_CHANGE) or old.get(name) == new.get(name):
            continue
        raise ConfigError(
            f"--workdir {folder} holds a run with config.{name} = {old.get(name)!r}, not {new.get(name)!r}; "
            "choose another folder, or that value to go on with the run"
        )


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in tree.items():
        out |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return out
