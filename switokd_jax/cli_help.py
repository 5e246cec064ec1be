"""Lists of available configs, methods, networks and data sets, for `python -m switokd_jax.main --help`."""

from __future__ import annotations

import ast
import functools
import inspect
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from switokd_jax.config_files import package_configs
from switokd_jax.data.dataset import SOURCES
from switokd_jax.methods import METHODS
from switokd_jax.models import MODELS

WIDTH = 80


def configs(folder: Path, pattern: str = "*.py") -> dict[str, str]:
    """Returns the config files of a folder: the first paragraph of each docstring, by path. The files are not run."""
    descriptions = {}
    for path in sorted(folder.glob(pattern)):
        try:
            descriptions[str(path)] = _first_paragraph(ast.get_docstring(ast.parse(path.read_text())))
        except SyntaxError as error:
            descriptions[str(path)] = f"cannot be read: {error.msg}, line {error.lineno}"
    return descriptions


def methods() -> dict[str, str]:
    """Returns the methods: the first paragraph of the docstring of each one's module, by name."""
    return {name: _first_paragraph(sys.modules[method.apply.__module__].__doc__) for name, method in METHODS.items()}


def models() -> dict[str, str]:
    """Returns the networks: the first paragraph of the docstring of each class, by the names of its variants."""
    names_by_class: dict[Any, list[str]] = {}
    for name, create in MODELS.items():
        cls = create.func if isinstance(create, functools.partial) else create
        names_by_class.setdefault(cls, []).append(name)
    return {", ".join(names): _first_paragraph(inspect.getdoc(cls)) for cls, names in names_by_class.items()}


def data_sets() -> dict[str, str]:
    """Returns the data sets: the first paragraph of the docstring of each source, and those of TFDS."""
    sources = {name: _first_paragraph(inspect.getdoc(source)) for name, source in SOURCES.items()}
    return {
        **sources,
        "tiny_imagenet_200": "Tiny-ImageNet, prepared by a TFDS builder of ours.",
        "cifar10, cifar100, ...": "Any image-classification set of TensorFlow Datasets, by its name.",
    }


def text(folder: Path = Path("configs")) -> str:
    """Returns all lists as text of 80 columns; `folder` holds configs beside those of the package."""
    packaged = package_configs()
    files = {path.stem: text for path in packaged for text in configs(path.parent, path.name).values()}
    if not packaged or folder.resolve() != packaged[0].parent.resolve():
        files |= configs(folder)
    return "\n".join(
        [
            _section("configs (--config=NAME, or a Python file whose get_config() returns one)", files),
            _section("methods (--config.method=NAME)", methods()),
            _section("networks (--config.networks.NAME.model=NAME; D, K and W stand for numbers)", models()),
            _section("data sets (--config.data.name=NAME)", data_sets()),
        ]
    )


def _section(title: str, entries: Mapping[str, str]) -> str:
    lines = [f"{title}:"]
    for name, description in entries.items():
        lines += textwrap.wrap(f"{name}: {description}", WIDTH, initial_indent="  ", subsequent_indent="      ")
    return "\n".join(lines) + "\n"


def _first_paragraph(doc: str | None) -> str:
    """Returns the first paragraph of a docstring in one line.

    >>> _first_paragraph("One\\ntwo.\\n\\nThree.")
    'One two.'
    """
    return " ".join((doc or "").strip().split("\n\n")[0].split())
