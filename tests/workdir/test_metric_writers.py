"""metrics.jsonl, the clock and the table on the console."""

from __future__ import annotations

import importlib.util
import io
import math
import sys
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing import event_accumulator
from tensorboard.util import tensor_util

from switokd_jax.errors import UserError
from switokd_jax.train import progress
from switokd_jax.workdir import metric_writers


def line(names: list[str], split: str = "test", epoch: float = 3.0) -> dict[str, Any]:
    scores = {f"{name}/{key}": value for name in names for key, value in (("loss", 0.0384), ("top1", 99.16))}
    return {"split": split, "epoch": epoch, "step": 7, **scores}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


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
    events.write([line(["a"])])
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


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.2, "0:00"), (59.7, "1:00"), (3599.4, "59:59"), (3661, "1:01:01"), (45296, "12h34m")]
)
def test_clock(seconds: float, shown: str) -> None:
    assert progress.clock(seconds) == shown


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_table_fits_80_columns(count: int) -> None:
    names = ["teacher", "a_name_that_is_long", "c", "d"][:count]
    out = io.StringIO()
    table = progress.Progress(100, 0, 299.0, shown=True, to=out)
    table.head(names)
    table.step(line(names, "train"), progress.ProgressStats(1000.0, 60.0, 0.5))  # a log file has no live row
    table.evaluated(line(names, "validation", 138.7), progress.ProgressStats(123456.0, 45296.0, 0.438))
    head, row = out.getvalue().splitlines()
    assert len(head) == len(row) <= 80
    assert row.split() == ["val", "139/299", *["0.038", "99.2"] * count, "44", "123456", "12h34m"]
    # Each name stands over the end of its column.
    assert head[: 12 + 12 * count].split()[1:] == [name[:11] for name in names]


def test_no_switch_no_share() -> None:
    out = io.StringIO()
    progress.Progress(100, 0, 5.0, shown=True, to=out).evaluated(line(["a"]), progress.ProgressStats(10.0, 5.0, None))
    assert out.getvalue().split()[-3:] == ["-", "10", "0:05"]


def test_a_loss_takes_five_characters() -> None:
    shown = {0.0451: "0.045", 9.9996: "10.00", 38.594: "38.59", 385.94: "385.9", 38594.2: "38594", 4e6: "4e+06"}
    assert {loss: progress.short(loss) for loss in shown} == shown
    assert progress.short(math.nan).strip() == "nan"
    out = io.StringIO()
    table = progress.Progress(100, 0, 1200.0, shown=True, to=out)
    table.evaluated({**line(["a"]), "epoch": 1100.0, "a/loss": 7e9}, progress.ProgressStats(10.0, 5.0, None))
    assert "1100/1200 7e+09 " in out.getvalue()


def test_live_row_on_a_terminal() -> None:
    out = Terminal()
    table = progress.Progress(10, 0, 5.0, shown=True, to=out)
    table.head(["a"])
    table.step(line(["a"], "train"), progress.ProgressStats(10.0, 5.0, 0.25))
    table.close()
    assert "\r" in out.getvalue()
    assert "now      3/5 0.038  99.2   25     10    0:05" in out.getvalue()


def test_silence() -> None:
    out = Terminal()
    table = progress.Progress(10, 0, 5.0, shown=False, to=out)
    table.head(["a"])
    table.step(line(["a"]), progress.ProgressStats(1.0, 1.0, None))
    table.evaluated(line(["a"]), progress.ProgressStats(1.0, 1.0, None))
    table.close()
    assert out.getvalue() == ""


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
