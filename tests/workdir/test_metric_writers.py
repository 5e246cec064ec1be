"""metrics.jsonl, TensorBoard events and Weights & Biases."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing import event_accumulator
from tensorboard.util import tensor_util

from switokd_jax.errors import UserError
from switokd_jax.workdir import metric_writers


def test_lines_survive_a_cut(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    metric_writers.append_metrics(path, [{"step": i, "loss": 0.1 * i} for i in range(5)])
    with path.open("a") as file:
        file.write('{"step": 5, "lo')
    assert [entry["step"] for entry in metric_writers.read_metrics(path)] == [0, 1, 2, 3, 4]
    metric_writers.truncate_after(path, 2)
    metric_writers.append_metrics(path, [{"step": 3, "loss": 0.1 * 3}])
    assert metric_writers.read_metrics(path) == [{"step": i, "loss": 0.1 * i} for i in range(4)]
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_event_file_holds_means_by_split(tmp_path: Path) -> None:
    writer = metric_writers.open_writer(tmp_path, tensorboard=True)
    trained = [{"split": "train", "epoch": 0.5 * i, "step": i, "loss": float(i)} for i in (1, 2)]
    writer.write([*trained, {"split": "test", "epoch": 1.0, "step": 2, "loss": 0.25, "name": "not a number"}])
    writer.write([{"split": "train", "epoch": 1.5, "step": 3, "loss": 9.0}])
    writer.close()
    seen = event_accumulator.EventAccumulator(str(tmp_path), {"tensors": 0}).Reload()
    found = {
        tag: [(event.step, float(tensor_util.make_ndarray(event.tensor_proto))) for event in seen.Tensors(tag)]
        for tag in seen.Tags()["tensors"]
    }
    assert found == {"train/loss": [(2, 1.5), (3, 9.0)], "test/loss": [(2, 0.25)]}
    assert len(metric_writers.read_metrics(tmp_path / "metrics.jsonl")) == 4


def test_an_event_file_that_cannot_be_written_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    events = metric_writers.TensorBoard(tmp_path / "file")
    events.write([{"split": "test", "epoch": 3.0, "step": 7, "a/loss": 0.04}])
    events.close()
    assert "Not a directory" in caplog.text
    assert "training goes on" in caplog.text


def test_tensorboard_without_tensorflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert metric_writers.open_writer(tmp_path, tensorboard=False).others == ()
    with pytest.raises(UserError, match="needs TensorFlow"):
        metric_writers.open_writer(tmp_path, tensorboard=True)


def test_no_file_yet(tmp_path: Path) -> None:
    metric_writers.truncate_after(tmp_path / "metrics.jsonl", 3)
    assert metric_writers.read_metrics(tmp_path / "metrics.jsonl") == []


class Wandb:
    """Stands in for the package: keeps what it is told."""

    def __init__(self) -> None:
        self.started: list[dict[str, Any]] = []
        self.logged: list[dict[str, Any]] = []
        self.metrics: list[tuple[str, dict[str, str]]] = []
        self.finished = 0
        self.broken = False

    def init(self, **facts: Any) -> Wandb:
        if self.broken:
            raise RuntimeError("api_key\nnot configured")
        self.started.append(facts)
        return self

    def define_metric(self, name: str, **options: str) -> None:
        self.metrics.append((name, options))

    def log(self, values: dict[str, Any]) -> None:
        if self.broken:
            raise OSError("the network is gone")
        self.logged.append(values)

    def finish(self) -> None:
        self.finished += 1


def test_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    stand_in = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    lines = [{"split": "train", "epoch": 0.1, "step": step, "s/loss": float(step)} for step in (1, 2)]
    writer = metric_writers.open_writer(tmp_path, tensorboard=False, wandb="distillation", config={"seed": 3})
    assert writer.write([*lines, {"split": "test", "epoch": 0.1, "step": 2, "s/top1": 50.0}])
    stand_in.broken = True
    assert writer.write(lines), "metrics.jsonl has them"
    assert "the network is gone" in caplog.text
    stand_in.broken = False
    writer.close()
    # The same folder goes on in the same run; its own count of steps is not used, so steps may come again.
    metric_writers.open_writer(tmp_path, tensorboard=False, wandb="distillation").close()
    first, second = stand_in.started
    assert (first["project"], first["name"], first["config"]) == ("distillation", tmp_path.name, {"seed": 3})
    assert first["id"] == second["id"]
    # A run elsewhere is another one, though the folder has the same name.
    (tmp_path / "elsewhere" / tmp_path.name).mkdir(parents=True)
    metric_writers.open_writer(tmp_path / "elsewhere" / tmp_path.name, tensorboard=False, wandb="distillation").close()
    third = stand_in.started.pop()
    assert third["id"] != first["id"]
    assert first["resume"] == "allow"
    assert stand_in.logged == [{"step": 2, "test/s/top1": 50.0}, {"step": 2, "train/s/loss": 1.5}]
    assert ("*", {"step_metric": "step"}) in stand_in.metrics
    assert stand_in.finished == 3
    assert len(metric_writers.read_metrics(tmp_path / "metrics.jsonl")) == 5


def test_wandb_that_is_not_there_or_does_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"config\.log\.wandb needs Weights & Biases: pip install wandb"):
        metric_writers.open_writer(tmp_path, tensorboard=False, wandb="x")
    broken = Wandb()
    broken.broken = True
    monkeypatch.setitem(sys.modules, "wandb", broken)
    with pytest.raises(UserError, match=r"'x' does not start \(api_key not configured\); log in"):
        metric_writers.open_writer(tmp_path, tensorboard=False, wandb="x")
