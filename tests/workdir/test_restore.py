"""Addresses of checkpoints. tests/train/test_loop.py reads those of a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from switokd_jax.errors import UserError
from switokd_jax.workdir import restore


@pytest.mark.parametrize(
    ("uri", "parsed"),
    [
        ("runs/a:student@best", ("runs/a", "student", "best")),
        ("runs/a:student", ("runs/a", "student", "best")),
        ("runs/a:student@latest", ("runs/a", "student", "latest")),
        ("runs/a:student@900", ("runs/a", "student", "900")),
        ("gs:/runs/a:student@9", ("gs:/runs/a", "student", "9")),
    ],
)
def test_a_checkpoint_uri_is_parsed(uri: str, parsed: tuple[str, str, str]) -> None:
    assert restore.parse_checkpoint_uri(uri) == parsed


def test_an_unknown_version_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"after '@' is 'best', 'latest' or a saved step, not 'newest'"):
        restore.load_variables(tmp_path, "student", "newest")


@pytest.mark.parametrize("version", ["best", "latest", "3"])
def test_a_folder_without_checkpoints_is_named(tmp_path: Path, version: str) -> None:
    with pytest.raises(UserError, match=rf"'{tmp_path}:student@{version}': .* holds no finished checkpoint"):
        restore.load_variables(tmp_path, "student", version)
