"""What the processes of a run compare of their code."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tiny_runs
from switokd_jax.data.dataset import Dataset, Split
from switokd_jax.data.image_records import ImageSpec
from switokd_jax.data.mixing import mixup
from switokd_jax.data.transforms import cutout, random_crop_and_flip
from switokd_jax.errors import UserError
from switokd_jax.methods import METHODS
from switokd_jax.parallel import agreement
from switokd_jax.train import process_checks
from switokd_jax.workdir import provenance


def own_transform(images: Any) -> Any:
    """Stands for code of a user."""
    return images


@pytest.mark.parametrize("what", ["data", "code"])
def test_processes_with_other_data_or_code_are_named(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In two starts of one process; test_multihost has the real exchange."""
    images = np.zeros((4, *tiny_runs.SHAPE), np.uint8)
    run = tiny_runs.tiny_plan(tiny_runs.tiny_config("one_layer", "one_layer"), 64)
    config = tiny_runs.tiny_config().to_dict()
    records = []
    for start in (0, 1):
        if what == "data":
            images = images + np.uint8(start)
        split = Split(images, np.zeros(4, np.int32))
        dataset = Dataset(
            "own", ("a", "b"), ImageSpec(tiny_runs.SHAPE, resized=False), split, split, split, tiny_runs.PREPROCESS
        )
        code = [own_transform] if what == "code" and start else []
        records.append(provenance.collect(run.distribution.device_info, 0, dataset, code))
    facts: list[dict[str, Any]] = []

    def gather(own: dict[str, Any]) -> list[dict[str, Any]]:
        facts.append(own)
        return facts

    monkeypatch.setattr(agreement, "gather", gather)
    monkeypatch.setattr("jax.process_count", lambda: 2)
    process_checks.check_processes(config, records[0])
    with pytest.raises(
        UserError, match=rf"^process 1 has fingerprint of the {what} = '\w+', and process 0 has '\w+'; "
    ):
        process_checks.check_processes(config, records[1])


def test_entries_with_options_count_as_the_functions_that_they_name() -> None:
    entries: dict[str, Any] = {
        "data.transforms": ("random_crop_and_flip", "cutout(size=2)"),
        "data.mix": ("mixup(0.4)",),
    }
    run = tiny_runs.tiny_plan(tiny_runs.tiny_config("one_layer", "one_layer", method="dml", **entries), 64)
    code = process_checks.own_code(run)
    assert {METHODS["dml"].apply, random_crop_and_flip, cutout, mixup} <= {*code}
