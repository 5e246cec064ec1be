"""What the processes of a run compare of their code."""

from __future__ import annotations

from typing import Any

import tiny_runs
from switokd_jax.data.mixing import mixup
from switokd_jax.data.transforms import cutout, random_crop_and_flip
from switokd_jax.methods import METHODS
from switokd_jax.train import process_checks


def test_entries_with_options_count_as_the_functions_that_they_name() -> None:
    entries: dict[str, Any] = {
        "data.transforms": ("random_crop_and_flip", "cutout(size=2)"),
        "data.mix": ("mixup(0.4)",),
    }
    run = tiny_runs.tiny_plan(tiny_runs.tiny_config("one_layer", "one_layer", method="dml", **entries), 64)
    code = process_checks.own_code(run)
    assert {METHODS["dml"].apply, random_crop_and_flip, cutout, mixup} <= {*code}
