"""Configs read from their files, as `--config` does."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from ml_collections import ConfigDict


def read_config(path: Path) -> ConfigDict:
    """What the file's get_config() returns."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.exists():
        sys.exit(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made: ConfigDict = module.get_config()
    return made
