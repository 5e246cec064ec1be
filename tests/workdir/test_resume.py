"""Which runs may start or resume in a workdir."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ml_collections import ConfigDict

import tiny_runs
from switokd_jax import config, config_fields, methods
from switokd_jax.errors import UserError
from switokd_jax.workdir import resume
from switokd_jax.workdir.layout import Workdir


@pytest.fixture
def workdir(tmp_path: Path) -> Workdir:
    """A workdir with the config.json of `tiny_config()`."""
    workdir = Workdir(tmp_path / "run")
    with resume.open_workdir(workdir, tiny_runs.tiny_config()):
        pass
    return workdir


def edit_config(workdir: Workdir, edit: Callable[[dict[str, Any]], Any]) -> None:
    values = json.loads(workdir.config.read_text())
    edit(values)
    workdir.config.write_text(json.dumps(values))


def test_a_new_folder_is_accepted_and_not_created(tmp_path: Path) -> None:
    resume.check_workdir(Workdir(tmp_path / "new"), tiny_runs.tiny_config())
    assert not (tmp_path / "new").exists()


def test_the_same_config_resumes(workdir: Workdir) -> None:
    resume.check_workdir(workdir, tiny_runs.tiny_config())


def test_custom_edges_are_compared_as_json(tmp_path: Path) -> None:
    """Their tuples of tuples are lists of lists in config.json."""
    c = tiny_runs.tiny_config(**{"topology.kind": "custom"})
    c.topology.edges = (("student", "teacher", None, 1.0),)
    workdir = Workdir(tmp_path / "run")
    with resume.open_workdir(workdir, c):
        pass
    resume.check_workdir(workdir, c)


def test_a_config_of_before_a_field_existed_resumes(workdir: Workdir) -> None:
    def remove_fields(values: dict[str, Any]) -> None:
        del values["gradient_accumulation"], values["data"]["workers"], values["log"]["wandb"]
        del values["networks"]["student"]["remat"], values["switokd"]["paused_batch_stats"], values["crd"]

    edit_config(workdir, remove_fields)
    resume.check_workdir(workdir, tiny_runs.tiny_config())


def test_a_missing_field_has_its_default(workdir: Workdir) -> None:
    edit_config(workdir, lambda values: values.pop("gradient_accumulation"))
    with pytest.raises(UserError, match=r"a run with config\.gradient_accumulation = 1, not 2; choose another folder"):
        resume.check_workdir(workdir, tiny_runs.tiny_config(gradient_accumulation=2))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 3}, "config.seed = 0, not 3"),
        ({"networks.student.learning_rate": 0.05}, "config.networks.student.learning_rate = 0.1, not 0.05"),
        ({"networks.student.milestones": (5,)}, r"config.networks.student.milestones = \[.*\], not \[5\]"),
        ({"switokd.epsilon": 0.5}, "config.switokd.epsilon = 'adaptive', not 0.5"),
        ({"method": "dml"}, "config.method = 'switokd', not 'dml'"),
    ],
)
def test_another_setting_is_refused_and_named(workdir: Workdir, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"--workdir {workdir.root} holds a run with {message}; choose another folder"):
        resume.check_workdir(workdir, tiny_runs.tiny_config(**changes))


def test_a_network_that_is_gone_is_named(workdir: Workdir) -> None:
    c = tiny_runs.tiny_config()
    del c.networks.teacher
    with pytest.raises(UserError, match=r"holds a run with config\.networks\.teacher\.\w+ = .*, not None"):
        resume.check_workdir(workdir, c)


@pytest.mark.parametrize(
    "changes",
    [
        {"log.every": 7},
        {"log.wandb": "project"},
        {"checkpoint.keep": 9},
        {"data.dir": "elsewhere"},
        {"data.workers": 1},
        {"steps_per_call": 3},
        {"parallelism": "pmap"},
        {"sharding": "fsdp"},
        {"on_nonfinite": "skip"},
        {"deterministic": True},
    ],
)
def test_settings_that_do_not_change_the_numbers_may_differ(workdir: Workdir, changes: dict[str, Any]) -> None:
    resume.check_workdir(workdir, tiny_runs.tiny_config(**changes))


def test_the_block_of_an_unused_method_may_differ(workdir: Workdir) -> None:
    c = tiny_runs.tiny_config()
    c.dml.temperature = 2.0
    resume.check_workdir(workdir, c)


def test_the_block_of_an_unused_method_may_be_invalid(workdir: Workdir) -> None:
    edit_config(workdir, lambda values: values["dml"].update(dropped_field=1))
    resume.check_workdir(workdir, tiny_runs.tiny_config())


def test_an_unknown_field_is_named(workdir: Workdir) -> None:
    edit_config(workdir, lambda values: values.update(colour="red"))
    with pytest.raises(UserError, match=r"config\.json: config\.colour is not a field; .*; choose another --workdir"):
        resume.check_workdir(workdir, tiny_runs.tiny_config())


def test_checkpoints_without_a_config_are_refused(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match=r"holds checkpoints and no config\.json, so their run is unknown"):
        resume.check_workdir(Workdir(tmp_path), tiny_runs.tiny_config())


@pytest.mark.parametrize(("text", "message"), [("{", "is not JSON"), ("[1]", "holds no JSON object")])
def test_a_config_that_cannot_be_read_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=rf"config\.json {message}; choose another --workdir or remove that file"):
        resume.check_workdir(Workdir(tmp_path), tiny_runs.tiny_config())


def test_a_file_is_no_workdir(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--workdir \S+ is a file; choose a folder"):
        resume.check_workdir(Workdir(tmp_path / "file"), tiny_runs.tiny_config())


def test_a_folder_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, **_: Any) -> bool:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "exists", refuse)
    with pytest.raises(UserError, match=r"--workdir \S+ cannot be read \(Permission denied\)"):
        resume.check_workdir(Workdir(tmp_path), tiny_runs.tiny_config())


def test_a_folder_that_cannot_be_created_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--workdir \S+/file/run cannot be written \(Not a directory\)"):
        resume.open_workdir(Workdir(tmp_path / "file" / "run"), tiny_runs.tiny_config()).__enter__()


def test_config_json_holds_the_config_as_given(workdir: Workdir) -> None:
    """Not the parsed one: with the blocks of all methods."""
    values = json.loads(workdir.config.read_text())
    assert values == json.loads(tiny_runs.tiny_config().to_json_best_effort())
    assert {*methods.METHODS} <= {*values}


def test_settings_do_not_depend_on_missing_fields() -> None:
    values = resume.to_json(tiny_runs.tiny_config())
    old = {name: value for name, value in values.items() if name not in ("precision", "on_nonfinite", "checkpoint")}
    assert resume.settings(old) == resume.settings(values)


def test_settings_are_those_of_the_run_s_method() -> None:
    settings = resume.settings(resume.to_json(tiny_runs.tiny_config(method="dml")))
    blocks = {name.partition(".")[0] for name in settings} & {*methods.METHODS}
    assert blocks == {"dml"}


@pytest.mark.usefixtures("own_additions")
def test_a_user_s_method_is_compared_by_its_own_fields(tmp_path: Path) -> None:
    @dataclasses.dataclass(frozen=True)
    class Hyperparameters:
        sharpness: float = config_fields.number(1.0)

    methods.METHODS["own"] = dataclasses.replace(methods.METHODS["vanilla"], hyperparameters=Hyperparameters)
    c: ConfigDict = config.default()
    c.method = "own"
    workdir = Workdir(tmp_path / "run")
    with resume.open_workdir(workdir, c):
        pass
    c.own.sharpness = 2.0
    with pytest.raises(UserError, match=r"config\.own\.sharpness = 1\.0, not 2\.0"):
        resume.check_workdir(workdir, c)
