"""Lists of configs, methods, networks and data sets in --help."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from switokd_jax import cli_help
from switokd_jax.data.dataset import SOURCES
from switokd_jax.methods import METHODS
from switokd_jax.models import MODELS

ROOT = Path(__file__).parents[1]


def networks() -> dict[str, str]:
    return {name: line for names, line in cli_help.models().items() for name in names.split(", ")}


def test_all_methods_are_listed() -> None:
    assert {*METHODS} == {*cli_help.methods()}


def test_all_networks_are_listed() -> None:
    assert {*MODELS} == {*networks()}


def test_all_data_sets_are_listed() -> None:
    assert {*SOURCES} < {*cli_help.data_sets()}


def test_all_configs_are_listed() -> None:
    files = {str(path) for path in (ROOT / "configs").glob("*.py")}
    assert files
    assert {*cli_help.configs(ROOT / "configs")} == files


@pytest.mark.parametrize(
    "entries", [cli_help.methods, cli_help.data_sets, lambda: cli_help.configs(ROOT / "configs"), networks]
)
def test_every_entry_has_a_sentence(entries: Callable[[], dict[str, str]]) -> None:
    for name, line in entries().items():
        assert len(line) > 10, name
        assert line.endswith("."), name


def test_a_config_that_is_no_python_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("def (")
    (tmp_path / "good.py").write_text('"""A good one.\n\nMore."""\nraise SystemExit')
    assert cli_help.configs(tmp_path) == {
        str(tmp_path / "bad.py"): "cannot be read: invalid syntax, line 1",
        str(tmp_path / "good.py"): "A good one.",
    }


@pytest.mark.slow
@pytest.mark.parametrize("flag", ["--help", "-h", "--helpshort"])
def test_help_lists_names_and_flags_without_importing_tensorflow(flag: str) -> None:
    process = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "switokd_jax.main", flag],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in ("  digits: ", "switokd:", "wrn_D_K", "folder:", "--workdir", "--[no]dry_run"):
        assert name in process.stdout
    assert "one_layer" not in process.stdout
    assert max(len(line) for line in process.stdout.splitlines()[1:]) <= 110
    assert not re.search(r"\| +tensorflow$", process.stderr, re.MULTILINE)


def test_configs_of_the_package_are_listed_by_name_and_others_by_path(tmp_path: Path) -> None:
    assert "\n  digits: SwitOKD on scikit-learn" in cli_help.text(tmp_path)
    (tmp_path / "mine.py").write_text('"""A config of my own."""')
    text = cli_help.text(tmp_path)
    assert "\n  digits: SwitOKD on scikit-learn" in text
    assert "mine.py: A config of my own." in " ".join(text.split())
