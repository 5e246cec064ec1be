"""--help lists what there is."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from switokd_jax import cli_help
from switokd_jax.data.dataset import SOURCES
from switokd_jax.methods import METHODS
from switokd_jax.models import MODELS

ROOT = Path(__file__).parents[1]


def test_everything_is_listed_with_a_line() -> None:
    networks = {name: line for names, line in cli_help.models().items() for name in names.split(", ")}
    assert {*METHODS} <= {*cli_help.methods()}
    # Those of tests/runs.py have no name of their own in the package.
    assert {*MODELS} == {*networks}
    assert {*SOURCES} < {*cli_help.data_sets()}
    assert {Path(name).name for name in cli_help.configs(ROOT / "configs")} == {
        path.name for path in (ROOT / "configs").glob("*.py")
    }
    for found in (cli_help.methods(), cli_help.data_sets(), cli_help.configs(ROOT / "configs"), networks):
        for name, line in found.items():
            assert len(line) > 10, name
            assert line.endswith("."), name


def test_a_config_that_is_no_python_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("def (")
    (tmp_path / "good.py").write_text('"""A good one.\n\nMore."""\nraise SystemExit')
    assert cli_help.configs(tmp_path) == {
        str(tmp_path / "bad.py"): "cannot be read: invalid syntax, line 1",
        str(tmp_path / "good.py"): "A good one.",
    }


@pytest.mark.parametrize("flag", ["--help", "-h", "--helpshort"])
def test_help(flag: str) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "switokd_jax.main", flag],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in ("configs/digits.py", "switokd:", "wrn_D_K", "folder:", "--workdir", "--[no]dry_run"):
        assert name in done.stdout
    assert "one_layer" not in done.stdout
    assert max(len(line) for line in done.stdout.splitlines()[1:]) <= 110
    assert not re.search(r"\| +tensorflow$", done.stderr, re.MULTILINE)


def test_elsewhere_it_says_what_a_config_is(tmp_path: Path) -> None:
    assert "none in" in cli_help.text(tmp_path)
