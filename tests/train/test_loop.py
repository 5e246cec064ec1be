"""Whole runs: what they leave behind, resuming, and being killed."""

from __future__ import annotations

import json
import os
import random
import signal
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import tiny_runs
from experiments.faults import storm
from switokd_jax import config
from switokd_jax.errors import Stopped, UserError
from switokd_jax.train import init_state, loop
from switokd_jax.workdir import checkpointer, metric_writers, restore
from switokd_jax.workdir.layout import Workdir

SWITCH = ("gap", "threshold", "epsilon", "student_distance", "teacher_distance", "expert")


def two_epochs() -> Any:
    c = tiny_runs.tiny_config(batch_size=160, epochs=2.0)
    c.data.validation_fraction = 0.1
    c.checkpoint.every = 1.0
    c.log.every = 4
    c.log.tensorboard = True
    return c


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs with a validation slice: 1293 examples are 8 full batches and one of 13."""
    folder = tmp_path_factory.mktemp("run") / "made" / "on demand"
    loop.train_and_evaluate(two_epochs(), folder, jax.devices()[:1])
    return folder


def test_files_of_a_run(finished: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    assert {"config.json", "metrics.jsonl", "summary.json", "checkpoints", "figures"} <= names
    assert [name for name in names if name.startswith("events.out.tfevents")]
    assert {path.name for path in (finished / "figures").iterdir()} == {"curves.png", "switching.png"}
    assert not [path for path in finished.rglob("*") if "tmp" in path.name or path.name.startswith(".")]


def test_metrics_of_every_step(finished: Path) -> None:
    lines = metric_writers.read_metrics(finished / "metrics.jsonl")
    train = [line for line in lines if line["split"] == "train"]
    assert [line["step"] for line in train] == [*range(1, 19)]
    assert train[8]["epoch"] == 1.0
    assert train[-1]["epoch"] == 2.0
    for name in ("teacher", "student"):
        assert {f"{name}/{field}" for field in ("loss", "top1", "learning_rate")} <= train[0].keys()
    assert {f"teacher->student/{field}" for field in SWITCH} <= train[0].keys()
    assert [*train[0]][:3] == ["split", "epoch", "step"]
    assert isinstance(train[0]["teacher->student/expert"], bool)
    scored = [(line["split"], line["step"]) for line in lines if line["split"] != "train"]
    assert scored == [("validation", 9), ("test", 9), ("validation", 18), ("test", 18)]
    assert [line["step"] for line in lines] == sorted(line["step"] for line in lines)


def test_summary(finished: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    lines = metric_writers.read_metrics(finished / "metrics.jsonl")
    train = [line for line in lines if line["split"] == "train"]
    test = [line for line in lines if line["split"] == "test"]
    validation = [line for line in lines if line["split"] == "validation"]
    expert = sum(line["teacher->student/expert"] for line in train)
    assert summary["steps"] == 18
    assert summary["epochs"] == 2.0
    assert summary["best_selected_on"] == "validation"
    assert summary["switch"] == {"teacher->student": {"expert_fraction": expert / 18}}
    assert summary["seconds"] > 0
    assert summary["examples_per_second"] > 0
    for name, updates in (("teacher", 18 - expert), ("student", 18)):
        got = summary["networks"][name]
        best = int(np.argmax([line[f"{name}/top1"] for line in validation]))
        assert got["model"] == "two_layers"
        assert got["parameters"] == 144 + 32 + 4608 + 64 + 330
        assert got["updates"] == updates
        assert got["final_top1"] == test[-1][f"{name}/top1"]
        assert got["best_top1"] == test[best][f"{name}/top1"]
        assert got["final_loss"] == test[-1][f"{name}/loss"]


def test_a_finished_run_is_not_trained_again(finished: Path) -> None:
    before = (finished / "metrics.jsonl").read_text()
    summary = json.loads((finished / "summary.json").read_text())
    again = loop.train_and_evaluate(two_epochs(), finished, jax.devices()[:1])
    assert (finished / "metrics.jsonl").read_text() == before
    assert again == summary


@pytest.mark.parametrize("which", ["best", "latest"])
def test_init_from_a_run(finished: Path, which: str) -> None:
    c = tiny_runs.tiny_config()
    c.networks.teacher.init_from = f"{finished}:student@{which}"
    state = init_state.init_state(tiny_runs.tiny_plan(c, 64)).networks["teacher"]
    read = restore.load_variables(finished, "student", which)
    tiny_runs.assert_same_bits(state.params, read["params"])
    tiny_runs.assert_same_bits(state.batch_stats, read["batch_stats"])


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{run}:pupil@best", "pupil holds no finished checkpoint"),
        ("{run}:pupil@latest", "that run has the networks"),
        ("{run}:student@worst", "'best', 'latest' or a saved step, not 'worst'"),
        ("{run}:student@17", "holds the steps 9, 18, not 17"),
        ("{run}x:student@best", "train that run first or correct the path"),
    ],
)
def test_init_from_nowhere(finished: Path, source: str, message: str) -> None:
    c = tiny_runs.tiny_config()
    c.networks.teacher.init_from = source.format(run=finished)
    with pytest.raises(UserError, match=f"config.networks.teacher.init_from: .*{message}"):
        init_state.init_state(tiny_runs.tiny_plan(c, 64))


def test_anchors_are_tried_at_the_start(finished: Path, tmp_path: Path) -> None:
    """Days may pass before the turn of a wrong one."""
    c = two_epochs()
    c.method, c.rco.every = "rco", 1
    c.networks.teacher.frozen, c.networks.teacher.init_from = True, f"{finished}:teacher@best"
    c.rco.anchors = (f"{finished}:teacher@7",)
    with pytest.raises(UserError, match=r"config.rco.anchors: '.*': .*latest holds the steps"):
        loop.train_and_evaluate(c, tmp_path / "new", jax.devices()[:1])
    assert not (tmp_path / "new").exists()


def test_images_that_a_model_cannot_take(tmp_path: Path) -> None:
    c = tiny_runs.tiny_config(student="swin_tiny")
    with pytest.raises(UserError, match=r"config.networks.student.model 'swin_tiny': a swin takes square"):
        loop.train_and_evaluate(c, tmp_path / "new", jax.devices()[:1])
    assert not (tmp_path / "new").exists()


def test_init_from_another_model(finished: Path) -> None:
    c = tiny_runs.tiny_config("resnet14")
    c.networks.teacher.init_from = f"{finished}:student@best"
    with pytest.raises(UserError, match="holds another network than resnet14"):
        init_state.init_state(tiny_runs.tiny_plan(c, 64))


def test_another_config_is_refused_and_changes_nothing(finished: Path) -> None:
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    c = two_epochs()
    c.networks.student.learning_rate = 0.05
    with pytest.raises(UserError, match=r"config.networks.student.learning_rate = 0.1, not 0.05"):
        loop.train_and_evaluate(c, finished, jax.devices()[:1])
    assert {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == before


@pytest.mark.slow
def test_a_stop_within_an_evaluation_changes_nothing_in_the_end(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The state is saved at once, and the resumed run begins with the evaluation that the stop interrupted."""
    evaluate = loop.evaluate

    def stopped_evaluate(*arguments: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(*arguments)

    monkeypatch.setattr(loop, "evaluate", stopped_evaluate)
    with pytest.raises(Stopped, match="step 9 of 18"):
        loop.train_and_evaluate(two_epochs(), tmp_path, jax.devices()[:1])
    rows = metric_writers.read_metrics(tmp_path / "metrics.jsonl")
    assert {row["split"] for row in rows} == {"train"}
    monkeypatch.setattr(loop, "evaluate", evaluate)
    loop.train_and_evaluate(two_epochs(), tmp_path, jax.devices()[:1])
    assert storm.differences(finished, tmp_path) == []


def test_best_stays_until_latest_knows_a_better_one(tmp_path: Path) -> None:
    """A kill between two saves must leave the best of the saved step behind."""
    c = tiny_runs.tiny_config()
    state = init_state.init_state(tiny_runs.tiny_plan(c, 64))
    spec = config.parse(c).checkpoint
    opened = checkpointer.open_checkpointer(Workdir(tmp_path), ("student",), spec, 1)
    variables = jax.tree.map(np.asarray, state.networks["student"].eval_variables)
    opened.save_best("student", 1, variables)
    opened.save_latest(1, state, {"best": 1})
    for step in (2, 3, 4):
        opened.save_best("student", step, variables)
    assert opened.best["student"].all_steps() == [1, 2, 3, 4]
    opened.save_latest(5, state, {"best": 4})
    opened.close()
    assert opened.best["student"].all_steps() == [4]


def stream(folder: Path) -> tuple[str, ...]:
    """Images of many sizes, decoded and cropped at random by a worker process."""
    tiny_runs.photographs(folder, 200)
    data = ("name=folder", f"dir={folder}", "pipeline=stream", "image_size=16", "workers=1")
    return (*(f"--config.data.{field}" for field in data), "--config.batch_size=16", "--config.eval_every=3")


@pytest.mark.slow
def test_killed_run_ends_as_the_one_that_was_not(tmp_path: Path) -> None:
    """SIGKILL at random within the first save: the same bits and lines in the end."""
    environment = tiny_runs.environment()
    flags = ("--config=tests/tiny_digits.py", *stream(tmp_path / "given"), "--config.epochs=3")
    flags += ("--config.checkpoint.every=0.25",)
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    assert storm.start(alone, flags, environment).wait(300) == 0
    seed = random.randrange(10**6)
    broken = storm.kill(storm.start(killed, flags, environment), killed, "within", random.Random(seed))
    assert broken is not None, f"seed {seed}"
    assert not (killed / "summary.json").exists()
    assert storm.start(killed, flags, environment).wait(300) == 0
    assert storm.differences(alone, killed) == [], f"seed {seed}"
