"""Checksums of a folder's files."""

from __future__ import annotations

from pathlib import Path

from switokd_jax.workdir import checksums


def test_a_folder_without_checksums_passes(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    assert checksums.verify(tmp_path) is None


def test_unchanged_files_pass(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a").write_text("1")
    checksums.write(tmp_path)
    assert checksums.verify(tmp_path) is None


def test_a_changed_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    checksums.write(tmp_path)
    (tmp_path / "a").write_text("2")
    assert checksums.verify(tmp_path) == f"{tmp_path / 'a'} has changed since it was written"


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    checksums.write(tmp_path)
    (tmp_path / "a").unlink()
    assert checksums.verify(tmp_path) == f"{tmp_path / 'a'} cannot be read (No such file or directory)"


def test_checksums_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    (tmp_path / checksums.NAME).write_text("{")
    assert "checksums.json cannot be read" in str(checksums.verify(tmp_path))


def test_the_metadata_that_orbax_writes_last_is_excluded(tmp_path: Path) -> None:
    checksums.write(tmp_path)
    (tmp_path / checksums.EXCLUDED).write_text("{}")
    checksums.write(tmp_path)
    (tmp_path / checksums.EXCLUDED).write_text('{"commit": 1}')
    assert checksums.verify(tmp_path) is None
