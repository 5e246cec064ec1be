"""Groups of finished runs by their settings, also of runs that were trained by earlier versions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tiny_runs
from switokd_jax.analysis.runs import Run, differences, group_by_settings
from switokd_jax.workdir import resume


def run(name: str, **changes: Any) -> Run:
    return Run(Path(name), resume.to_json(tiny_runs.tiny_config(**changes)), {})


def older(run: Run) -> Run:
    """Returns the run with a config of before some fields and a method existed."""
    config = {name: value for name, value in run.config.items() if name not in ("gradient_accumulation", "crd")}
    config["data"] = {name: value for name, value in config["data"].items() if name != "workers"}
    config["networks"]["student"] = {k: v for k, v in config["networks"]["student"].items() if k != "remat"}
    return Run(run.folder, config, run.summary)


def test_a_run_of_before_a_field_existed_is_in_the_group_of_new_ones() -> None:
    runs = [older(run("a", seed=0)), run("b", seed=1)]
    assert group_by_settings(runs) == {"switokd": runs}
    assert differences(runs) == {}


def test_a_missing_field_differs_from_another_value_by_its_default() -> None:
    runs = [older(run("a")), run("b", gradient_accumulation=2)]
    assert differences(runs) == {"gradient_accumulation": [1, 2]}


def test_seeds_checkpoints_and_unused_methods_make_no_difference() -> None:
    other = run("b", **{"seed": 5, "log.every": 7, "networks.teacher.init_from": "runs/a:teacher"})
    other.config["dml"]["temperature"] = 9.0
    assert differences([run("a"), other]) == {}


def test_runs_of_a_method_that_is_not_registered_are_grouped_by_raw_values() -> None:
    """A report of such runs does not need the user's config file."""
    configs = [
        {"method": "own", "seed": seed, "own": {"sharpness": sharpness}, "log": {"every": seed}, "dml": {"beta": seed}}
        for seed, sharpness in ((0, 1.0), (1, 1.0), (2, 3.0))
    ]
    runs = [Run(Path(str(i)), config, {}) for i, config in enumerate(configs)]
    assert group_by_settings(runs) == {"own, sharpness=1.0": runs[:2], "own, sharpness=3.0": runs[2:]}
