"""What there is to choose from, as `python -m switokd_jax.main --help` lists it: a line each."""

from __future__ import annotations

import ast
import functools
import inspect
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from switokd_jax.data.dataset import SOURCES
from switokd_jax.methods import METHODS
from switokd_jax.models import MODELS

WIDTH = 80


def configs(folder: Path) -> dict[str, str]:
    """The config files of a folder by path, with the first line of each docstring; they are read, not run."""
    found = {}
    for path in sorted(folder.glob("*.py")):
        try:
            found[str(path)] = _first(ast.get_docstring(ast.parse(path.read_text())))
        except SyntaxError as error:
            found[str(path)] = f"cannot be read: {error.msg}, line {error.lineno}"
    return found


def methods() -> dict[str, str]:
    """The methods: the first line of the module of each."""
    return {name: _first(sys.modules[method.apply.__module__].__doc__) for name, method in METHODS.items()}


def models() -> dict[str, str]:
    """The networks: the first line of the class of each; those of one class together."""
    kinds: dict[Any, list[str]] = {}
    for name, make in MODELS.items():
        kinds.setdefault(make.func if isinstance(make, functools.partial) else make, []).append(name)
    return {", ".join(names): _first(inspect.getdoc(kind)) for kind, names in kinds.items()}


def data_sets() -> dict[str, str]:
    """The data sets: the first line of the function of each, and TFDS's."""
    own = {name: _first(inspect.getdoc(source)) for name, source in SOURCES.items()}
    return {
        **own,
        "tiny_imagenet_200": "Tiny-ImageNet, prepared by a TFDS builder of ours.",
        "cifar10, cifar100, ...": "Any image-classification set of TensorFlow Datasets, by its name.",
    }


def text(folder: Path = Path("configs")) -> str:
    """All of it, within 80 columns."""
    found = configs(folder)
    note = "" if found else f"  none in {folder}/ here; a config is a Python file whose get_config() returns one\n"
    return "\n".join(
        [
            _section("configs (--config=FILE)", found) + note,
            _section("methods (--config.method=NAME)", methods()),
            _section("networks (--config.networks.NAME.model=NAME; D, K and W stand for numbers)", models()),
            _section("data sets (--config.data.name=NAME)", data_sets()),
        ]
    )


def _section(head: str, entries: Mapping[str, str]) -> str:
    lines = [f"{head}:"]
    for name, line in entries.items():
        lines += textwrap.wrap(f"{name}: {line}", WIDTH, initial_indent="  ", subsequent_indent="      ")
    return "\n".join(lines) + "\n"


def _first(doc: str | None) -> str:
    """The first paragraph of a docstring, in one line."""
    return " ".join((doc or "").strip().split("\n\n")[0].split())
