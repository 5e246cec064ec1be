"""metrics.jsonl, the clock and the table on the console."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing import event_accumulator
from tensorboard.util import tensor_util

from switokd_jax.errors import UserError
from switokd_jax.workdir import metric_writers
from switokd_jax.workdir.layout import Workdir


def line(names: list[str], split: str = "test", epoch: float = 3.0) -> dict[str, Any]:
    scores = {f"{name}/{key}": value for name in names for key, value in (("loss", 0.0384), ("top1", 99.16))}
    return {"split": split, "epoch": epoch, "step": 7, **scores}


def test_a_last_line_that_was_cut_off_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    metric_writers.append_metrics(path, [{"step": i, "loss": 0.1 * i} for i in range(5)])
    with path.open("a") as file:
        file.write('{"step": 5, "lo')
    assert [row["step"] for row in metric_writers.read_metrics(path)] == [0, 1, 2, 3, 4]


def test_rows_after_the_restored_step_are_removed(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    metric_writers.append_metrics(path, [{"step": i, "loss": 0.1 * i} for i in range(5)])
    metric_writers.truncate_after(path, 2)
    metric_writers.append_metrics(path, [{"step": 3, "loss": 0.1 * 3}])
    assert metric_writers.read_metrics(path) == [{"step": i, "loss": 0.1 * i} for i in range(4)]
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_means_are_of_any_metric_and_leave_skipped_steps_out() -> None:
    rows: list[dict[str, Any]] = [
        {"split": "train", "epoch": 0.5, "step": 1, "teacher/distillation/loss": 4.0},
        {"split": "skipped", "epoch": 0.75, "step": 2, "networks": ["teacher"]},
        {"split": "train", "epoch": 1.0, "step": 3, "grad_norm": 3.0, "teacher/distillation/loss": 6.0},
    ]
    assert metric_writers.mean_by_split(rows) == [
        (3, {"train/grad_norm": 3.0, "train/teacher/distillation/loss": 5.0}),
    ]


def test_rows_that_cannot_be_written_are_pending(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "later"
    writer = metric_writers.Writer(folder / "metrics.jsonl")
    assert not writer.write([{"step": 1}])
    assert "1 rows are pending" in caplog.text
    folder.mkdir()
    assert writer.write([{"step": 2}])
    assert metric_writers.read_metrics(folder / "metrics.jsonl") == [{"step": 1}, {"step": 2}]


@pytest.mark.slow
@pytest.mark.parametrize("with_tensorflow", [True, False])
def test_event_file_holds_means_by_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_tensorflow: bool
) -> None:
    """The same events from CLU's writer and from TensorBoard's."""
    if not with_tensorflow:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    writer = metric_writers.open_writer(Workdir(tmp_path), tensorboard=True)
    train_rows = [{"split": "train", "epoch": 0.5 * i, "step": i, "loss": float(i)} for i in (1, 2)]
    writer.write([*train_rows, {"split": "test", "epoch": 1.0, "step": 2, "loss": 0.25, "name": "not a number"}])
    writer.write([{"split": "train", "epoch": 1.5, "step": 3, "loss": 9.0}])
    writer.close()
    events = event_accumulator.EventAccumulator(str(tmp_path), {"tensors": 0}).Reload()
    scalars = {
        tag: [(event.step, float(tensor_util.make_ndarray(event.tensor_proto))) for event in events.Tensors(tag)]
        for tag in events.Tags()["tensors"]
    }
    assert scalars == {"train/loss": [(2, 1.5), (3, 9.0)], "test/loss": [(2, 0.25)]}
    assert len(metric_writers.read_metrics(tmp_path / "metrics.jsonl")) == 4


@pytest.mark.slow
def test_an_event_file_that_cannot_be_written_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    events = metric_writers.TensorBoard(tmp_path / "file")
    events.write([line(["a"])])
    events.close()
    assert "Not a directory" in caplog.text
    assert "training continues" in caplog.text


def test_a_missing_file_has_no_rows(tmp_path: Path) -> None:
    metric_writers.truncate_after(tmp_path / "metrics.jsonl", 3)
    assert metric_writers.read_metrics(tmp_path / "metrics.jsonl") == []


class Wandb:
    """Stands in for the package wandb and records the calls."""

    def __init__(self) -> None:
        self.started: list[dict[str, Any]] = []
        self.logged: list[dict[str, Any]] = []
        self.metrics: list[tuple[str, dict[str, str]]] = []
        self.finished = 0
        self.broken = False

    def init(self, **arguments: Any) -> Wandb:
        if self.broken:
            raise RuntimeError("api_key\nnot configured")
        self.started.append(arguments)
        return self

    def define_metric(self, name: str, **options: str) -> None:
        self.metrics.append((name, options))

    def log(self, values: dict[str, Any]) -> None:
        if self.broken:
            raise OSError("the network is gone")
        self.logged.append(values)

    def finish(self) -> None:
        self.finished += 1


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Wandb:
    stand_in = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    return stand_in


def open_wandb(folder: Path) -> metric_writers.Writer:
    return metric_writers.open_writer(Workdir(folder), tensorboard=False, wandb="distillation", config={"seed": 3})


ROWS = [{"split": "train", "epoch": 0.1, "step": step, "s/loss": float(step)} for step in (1, 2)]


def test_wandb_gets_the_project_and_the_config(tmp_path: Path, wandb: Wandb) -> None:
    open_wandb(tmp_path).close()
    (run,) = wandb.started
    assert (run["project"], run["name"], run["config"]) == ("distillation", tmp_path.name, {"seed": 3})


def test_wandb_gets_means_by_split(tmp_path: Path, wandb: Wandb) -> None:
    open_wandb(tmp_path).write([*ROWS, {"split": "test", "epoch": 0.1, "step": 2, "s/top1": 50.0}])
    assert wandb.logged == [{"step": 2, "test/s/top1": 50.0}, {"step": 2, "train/s/loss": 1.5}]


def test_a_workdir_resumes_its_wandb_run(tmp_path: Path, wandb: Wandb) -> None:
    """The step counter of wandb is not used, so steps may be written again."""
    open_wandb(tmp_path).close()
    open_wandb(tmp_path).close()
    first, second = wandb.started
    assert first["id"] == second["id"]
    assert first["resume"] == "allow"
    assert ("*", {"step_metric": "step"}) in wandb.metrics
    assert wandb.finished == 2


def test_a_workdir_elsewhere_is_another_wandb_run(tmp_path: Path, wandb: Wandb) -> None:
    """Also if the folders have the same name."""
    for folder in (tmp_path / "a" / "run", tmp_path / "b" / "run"):
        folder.mkdir(parents=True)
        open_wandb(folder).close()
    first, second = wandb.started
    assert first["name"] == second["name"]
    assert first["id"] != second["id"]


def test_wandb_failures_do_not_stop_the_run(tmp_path: Path, wandb: Wandb, caplog: pytest.LogCaptureFixture) -> None:
    writer = open_wandb(tmp_path)
    wandb.broken = True
    assert writer.write(ROWS), "metrics.jsonl has all rows"
    assert "the network is gone" in caplog.text
    assert len(metric_writers.read_metrics(tmp_path / "metrics.jsonl")) == 2


def test_wandb_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    message = r"config\.log\.wandb needs wandb: pip install 'switokd_jax\[wandb\]', or set it to ''"
    with pytest.raises(UserError, match=message):
        open_wandb(tmp_path)


def test_wandb_that_does_not_start_is_named(tmp_path: Path, wandb: Wandb) -> None:
    wandb.broken = True
    with pytest.raises(UserError, match=r"'distillation' does not start \(api_key not configured\); log in"):
        open_wandb(tmp_path)


def spoilt(path: Path) -> None:
    metric_writers.append_metrics(path, [{"split": "train", "epoch": 0.5 * i, "step": i, "x": 0.1} for i in (1, 2, 3)])
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(
        b"".join([lines[0], b"\n", b"\0" * 9 + b"\n", b"garbage\n", lines[1], b"[1]\n", b'{"x": 1}\n', lines[2]])
    )


def test_lines_that_are_no_rows_are_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "metrics.jsonl"
    spoilt(path)
    with caplog.at_level("WARNING", logger="absl"):
        assert [row["step"] for row in metric_writers.read_metrics(path)] == [1, 2, 3]
    assert caplog.messages == [f"{path}: line 2 is no row of metrics; 5 such lines are left out"]


def test_a_run_resumes_beside_lines_that_are_no_rows(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    spoilt(path)
    metric_writers.truncate_after(path, 2)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2]


def test_an_evaluation_that_is_repeated_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    rows = [{"split": split, "epoch": 1.0, "step": step} for step in (1, 2) for split in ("train", "test")]
    metric_writers.append_metrics(path, rows)
    metric_writers.truncate_after(path, 2, keep_evaluation=False)
    assert metric_writers.read_metrics(path) == rows[:3]


def test_the_last_row_of_a_split_is_found_from_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "metrics.jsonl"
    rows = [{"split": ("train", "test")[i % 5 == 0], "epoch": 1.0, "step": i, "x": "y" * (i % 7)} for i in range(64)]
    metric_writers.append_metrics(path, rows)
    for size in (1, 7, 50, 10_000):
        monkeypatch.setattr(metric_writers, "TAIL_BYTES", size)
        assert metric_writers.last_row(path, "test") == rows[60]
        assert metric_writers.last_row(path, "train") == rows[63]
        assert metric_writers.last_row(path, "validation") is None
