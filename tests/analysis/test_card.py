"""Recipes in pieces: a killed piece changes nothing in the end, the time is up, and what is carried is small."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.numpy import load_file

import tiny_runs
from experiments import card, table_cifar
from experiments.grids import ONLINE, Setting
from switokd_jax.analysis import job_runner
from switokd_jax.analysis.jobs import Job
from switokd_jax.errors import UserError
from switokd_jax.files import read_json
from switokd_jax.workdir.layout import Workdir
from switokd_jax.workdir.lock import check_unlocked
from switokd_jax.workdir.metric_writers import read_metrics

ROOT = Path(__file__).parents[2]
SETTING = Setting(
    name="tiny",
    config="configs/digits.py",
    arms=ONLINE,
    flags=(
        *("networks.teacher.model=resnet8", "networks.student.model=resnet8", "batch_size=32", "epochs=3"),
        "data.train_examples=96",
    ),
)
# One piece, as the command runs it.
PIECE = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from analysis.test_card import SETTING
from experiments import card
state = Path({state!r})
card.run_piece(card.queue(SETTING, [0], state, ())[:1], state, seconds=600.0)
"""


def test_the_queue_begins_with_switokd() -> None:
    queued = card.queue(table_cifar.STUDY.full[0], [0, 1], Path("card"), card.FLAGS)
    arms = ["switokd", "dml", "vanilla", "uniokd", "kdcl"]
    assert [job.name for job in queued] == [f"cifar100_{arm}_seed{seed}" for seed in (0, 1) for arm in arms]
    for job in queued:
        assert {"--config.dtype=bfloat16", "--config.checkpoint.keep=1"} <= {*job.flags}
        assert not any("keep_every" in flag for flag in job.flags), "one checkpoint at a time"
    assert queued[0].kept == Path("card/curves/cifar100_switokd_seed0.json")


def wait_until_unlocked(path: Path, limit: float) -> None:
    while True:
        try:
            return check_unlocked(path)
        except UserError:
            assert time.monotonic() < limit
            time.sleep(0.1)


@pytest.mark.slow
def test_a_killed_piece_changes_nothing_in_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The piece is killed after the run's first save; the next one ends with the bits of a run in one piece."""
    for name, value in tiny_runs.environment().items():
        monkeypatch.setenv(name, value)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert card.run_piece(card.queue(SETTING, [0], whole, ())[:1], whole, seconds=600.0)
    driver = PIECE.format(tests=str(ROOT / "tests"), state=str(cut))
    process = subprocess.Popen([sys.executable, "-c", driver], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})
    workdir, limit = cut / "tiny_switokd_seed0", time.monotonic() + 300
    while not [*(workdir / "checkpoints" / "latest").glob("[0-9]*")]:
        assert time.monotonic() < limit
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait()
    queued = card.queue(SETTING, [0], cut, ())[:1]
    wait_until_unlocked(Workdir(workdir).lock, limit)  # the run that was left alone saves and ends by itself
    assert card.run_piece(queued, cut, seconds=600.0)
    assert not workdir.exists()
    files = [f"weights/tiny_switokd_seed0_{network}.safetensors" for network in ("teacher", "student")]
    for file in files:
        tiny_runs.assert_same_bits(load_file(whole / file), load_file(cut / file))
    curves = [read_json(state / "curves" / "tiny_switokd_seed0.json") for state in (whole, cut)]
    assert curves[0]["epochs"] == curves[1]["epochs"]
    assert [row["epoch"] for row in curves[1]["epochs"]] == [1.0, 2.0, 3.0]
    assert curves[1]["summary"]["record"]["data"]["fingerprint"]


def test_the_run_saves_when_the_time_is_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run is told to stop, and nothing else starts; what it has logged is averaged by epoch."""
    script = f"""
import json, pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[1])
folder.mkdir(parents=True)
def stop(number, frame):
    (folder / "saved").touch()
    sys.exit(75)
signal.signal(signal.SIGTERM, stop)
rows = [{{"split": "train", "step": step, "epoch": step / 2, "loss": 1.0 * step}} for step in (1, 2, 3)]
rows.insert(2, {{"split": "test", "step": 2, "epoch": 1.0, "top1": 9.0}})
(folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\\n" for row in rows))
time.sleep({2 * 60})
"""
    monkeypatch.setattr(Job, "command", lambda job, folder: [sys.executable, "-c", script, str(folder / job.name)])
    queued = [Job("one", "a.py"), Job("two", "a.py")]
    assert not card.run_piece(queued, tmp_path, seconds=3.0)
    assert (tmp_path / "one" / "saved").exists()
    assert not (tmp_path / "two").exists()
    assert read_metrics(tmp_path / "one" / "metrics.jsonl") == [
        {"split": "train", "step": 2, "epoch": 1.0, "loss": 1.5},
        {"split": "test", "step": 2, "epoch": 1.0, "top1": 9.0},
        {"split": "train", "step": 3, "epoch": 1.5, "loss": 3.0},
    ]
    with pytest.raises(TimeoutError, match="are up"):
        job_runner.run(queued, tmp_path, seconds=0.0)


def test_a_run_that_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Job, "command", lambda job, folder: [sys.executable, "-c", "raise SystemExit('no data')"])
    with pytest.raises(UserError, match=r"one failed: no data; its log is .*one\.txt"):
        card.run_piece([Job("one", "a.py")], tmp_path, seconds=60.0)


def test_time_that_is_no_time_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "argv", ["card.py", f"--state={tmp_path}", "--seconds=nan", "--smoke"])
    with pytest.raises(SystemExit, match="--seconds is nan; it must be a number above 0"):
        card.main()
