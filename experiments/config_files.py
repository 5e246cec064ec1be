"""Config files as modules, for scripts and tests that have no flags."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any


def config_module(path: Path) -> Any:
    """The module of a config file; its get_config() makes the config."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.exists():
        sys.exit(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # where dataclasses look for the module that they are defined in
    spec.loader.exec_module(module)
    return module
