"""The record of a run's starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from switokd_jax.errors import UserError
from switokd_jax.workdir import provenance
from switokd_jax.workdir.layout import Workdir


def start(fingerprint: str = "f", **data: Any) -> dict[str, Any]:
    return {"seed": 0, "data": {"name": "digits", "fingerprint": fingerprint, **data}}


def test_every_start_is_appended(tmp_path: Path) -> None:
    workdir = Workdir(tmp_path)
    provenance.append_start(workdir, start(), 0)
    provenance.append_start(workdir, start(), 20)
    assert [each["step"] for each in json.loads(workdir.record.read_text())["starts"]] == [0, 20]


def test_a_run_without_a_record_may_resume(tmp_path: Path) -> None:
    provenance.check(Workdir(tmp_path), start())


def test_the_same_data_may_resume(tmp_path: Path) -> None:
    provenance.append_start(Workdir(tmp_path), start(), 0)
    provenance.check(Workdir(tmp_path), start())


def test_other_data_is_refused(tmp_path: Path) -> None:
    provenance.append_start(Workdir(tmp_path), start(), 0)
    with pytest.raises(
        UserError, match=r"holds a run on other images or labels of 'digits' .* correct config.data.dir"
    ):
        provenance.check(Workdir(tmp_path), start("g"))


def test_data_set_info_is_that_of_the_last_start(tmp_path: Path) -> None:
    provenance.append_start(Workdir(tmp_path), start(), 0)
    info: dict[str, Any] = {"image_shape": [8, 8, 1], "preprocess": {"mean": [0.5], "std": [0.25]}}
    provenance.append_start(Workdir(tmp_path), start(classes=["a", "b"], **info), 5)
    assert provenance.read_dataset_info(Workdir(tmp_path))["classes"] == ["a", "b"]


def test_a_record_without_data_set_info_is_named(tmp_path: Path) -> None:
    provenance.append_start(Workdir(tmp_path), start(), 0)
    with pytest.raises(UserError, match=r"record.json lacks the classes, image shape or normalization of its run"):
        provenance.read_dataset_info(Workdir(tmp_path))


def test_a_record_that_is_not_ours_is_named(tmp_path: Path) -> None:
    (tmp_path / "record.json").write_text("{}")
    with pytest.raises(UserError, match=r"record.json is not a record of this program; remove it"):
        provenance.check(Workdir(tmp_path), start())


def test_a_package_that_pip_does_not_know_has_no_version() -> None:
    assert provenance.version("switokd_jax_is_not_called_so") is None
