"""Faults of whole runs, caused for real: bad numbers, damaged files, full disks."""

from __future__ import annotations

import dataclasses
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

import tiny_runs
from experiments.faults import full_disk, storm
from switokd_jax import config
from switokd_jax.data import dataset, loader
from switokd_jax.errors import NonFiniteError, UserError
from switokd_jax.train import init_state, loop, metric_rows, run_spec
from switokd_jax.workdir import checkpointer, metric_writers, restore
from switokd_jax.workdir.layout import Workdir

ROOT = Path(__file__).parents[2]


def short_run(**changes: Any) -> ConfigDict:
    """Config of three epochs of five steps, with a save after each."""
    return tiny_runs.tiny_config(
        **{"batch_size": 96, "data.train_examples": 480, "epochs": 3.0, "checkpoint.keep": 3, **changes}
    )


def train(c: ConfigDict, workdir: Path) -> Any:
    return loop.train_and_evaluate(c, workdir, jax.devices()[:1])


@pytest.fixture
def a_bad_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes one image of the seventh step NaN."""
    original = loader.train_inputs

    def train_inputs(*settings: Any, **more: Any) -> Callable[..., Any]:
        inputs = original(*settings, **more)

        def with_nan(data: Any, batch: Any, rng: Any, step: Any) -> Any:
            made = inputs(data, batch, rng, step)
            images = made.images.at[3].set(jnp.where(step == 6, jnp.nan, made.images[3]))
            return dataclasses.replace(made, images=images)

        return with_nan

    monkeypatch.setattr(loader, "train_inputs", train_inputs)


@pytest.mark.usefixtures("a_bad_image")
@pytest.mark.slow
def test_a_nonfinite_loss_stops_the_run_and_keeps_its_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError, match=r"network 'teacher': .* not finite at step 7") as caught:
        train(short_run(), tmp_path)
    assert "the newest checkpoint is that of step 5" in caught.value.__notes__[0]
    assert "--config.on_nonfinite=skip" in caught.value.__notes__[0]
    state = restore.load_state(tmp_path)
    assert int(state["step"]) == 5
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(state))


@pytest.mark.slow
@pytest.mark.usefixtures("a_bad_image")
def test_a_stopped_run_resumes_and_skips_the_nonfinite_step(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError):
        train(short_run(), tmp_path)
    summary = train(short_run(on_nonfinite="skip"), tmp_path)
    rows = metric_writers.read_metrics(Workdir(tmp_path).metrics)
    assert [row for row in rows if row["split"] == "skipped"] == [
        {"split": "skipped", "epoch": 1.4, "step": 7, "networks": ["teacher", "student"]}
    ]
    assert [row["step"] for row in rows if row["split"] == "train"] == [*range(1, 7), *range(8, 16)]
    assert summary["steps"] == 15
    assert summary["networks"]["student"]["updates"] == 14
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(restore.load_state(tmp_path)))


def test_the_network_whose_own_loss_is_not_finite_is_named() -> None:
    """The teacher's loss is not finite only because of the student's logits."""
    run = tiny_runs.tiny_plan(tiny_runs.tiny_config(), 64)
    metrics = {f"{name}/{key}": np.array([1.0]) for name in run.networks for key in ("loss", "cross_entropy")}
    metrics |= {"teacher/loss": np.array([np.nan]), "student/loss": np.array([np.inf])}
    metrics |= {"student/cross_entropy": np.array([np.inf])}
    metrics |= {f"{name}/finite": np.array([False]) for name in run.networks}
    with pytest.raises(NonFiniteError, match="network 'student'"):
        metric_rows.metric_rows(run, range(4, 5), metrics)
    metrics["student/finite"] = np.array([True])
    with pytest.raises(NonFiniteError, match="network 'teacher'"):
        metric_rows.metric_rows(run, range(4, 5), metrics)


@pytest.mark.slow
def test_a_skipped_step_changes_nothing_but_the_step_counter() -> None:
    run = tiny_runs.tiny_plan(tiny_runs.tiny_config(batch_size=16, on_nonfinite="skip"), 32)
    state, data = tiny_runs.start(run, tiny_runs.random_split(32))
    before = jax.tree.map(np.array, jax.device_get(state))
    step = run.distribution.compile(run_spec.make_train_step(run), has_state=True)
    params = jax.tree.map(lambda x: x * np.nan, before.networks["student"].params)
    with_nan = before.networks | {"student": before.networks["student"].replace(params=params)}
    after, metrics = tiny_runs.call(
        step, run.distribution.device_put(before.replace(networks=with_nan)), data, tiny_runs.batch(run, np.arange(16))
    )
    assert int(after.step) == 1
    tiny_runs.assert_same_bits(jax.device_get(after.networks), with_nan)
    assert not metrics["student/finite"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Workdir of a run with checkpoints of the steps 5, 10 and 15."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    train(short_run(), workdir)
    return workdir


def largest(folder: Path) -> Path:
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def truncated(folder: Path) -> None:
    with largest(folder).open("r+b") as file:
        file.truncate(file.seek(0, 2) // 2)


def flipped(folder: Path) -> None:
    path = largest(folder)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def removed(folder: Path) -> None:
    largest(folder).unlink()


def without_metadata(folder: Path) -> None:
    (folder / "_CHECKPOINT_METADATA").unlink()
    shutil.rmtree(folder / "progress")


@pytest.mark.slow
@pytest.mark.parametrize("damage", [truncated, flipped, removed, without_metadata])
def test_a_damaged_checkpoint_is_named(damage: Callable[[Path], None], finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "checkpoints", tmp_path / "checkpoints")
    damage(tmp_path / "checkpoints" / "latest" / "15")
    with pytest.raises(UserError, match=r"15\S* (cannot be read|has changed)|step 15 is damaged"):
        restore_state(tmp_path, on_corrupt="stop")


@pytest.mark.slow
@pytest.mark.parametrize("damage", [truncated, flipped, removed, without_metadata])
def test_an_older_checkpoint_is_restored_in_place_of_a_damaged_one(
    damage: Callable[[Path], None], finished: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(finished / "checkpoints", tmp_path / "checkpoints")
    damage(tmp_path / "checkpoints" / "latest" / "15")
    state, progress = restore_state(tmp_path, on_corrupt="fallback")
    assert int(state.step) == 10
    assert progress["best"]
    assert "resuming from an older checkpoint" in caplog.text
    assert sorted(path.name for path in (tmp_path / "checkpoints" / "latest").iterdir()) == ["10", "5"]


def restore_state(workdir: Path, on_corrupt: str) -> Any:
    run = tiny_runs.tiny_plan(config_of := short_run(**{"checkpoint.on_corrupt": on_corrupt}), 480)
    state = init_state.init_state(run)
    manager = checkpointer.open_checkpointer(
        Workdir(workdir), run.topology.nodes, config.parse(config_of).checkpoint, 5
    )
    try:
        return manager.restore(state, run.distribution.abstract_state(checkpointer.serialization.to_state_dict(state)))
    finally:
        manager.close()


@pytest.mark.slow
def test_a_run_resumed_from_an_older_checkpoint_ends_with_the_same_bits(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "run")
    truncated(tmp_path / "run" / "checkpoints" / "latest" / "15")
    train(short_run(), tmp_path / "run")
    tiny_runs.assert_same_bits(restore.load_state(tmp_path / "run"), restore.load_state(finished))
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == (finished / "metrics.jsonl").read_text()


@pytest.mark.slow
def test_a_run_without_an_intact_checkpoint_is_refused(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "run")
    for step in ("5", "10", "15"):
        truncated(tmp_path / "run" / "checkpoints" / "latest" / step)
    with pytest.raises(UserError, match=r"step 5 is damaged: .* choose another --workdir"):
        train(short_run(), tmp_path / "run")


@pytest.mark.slow
def test_a_damaged_checkpoint_of_another_run_is_refused(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "run")
    best = next((tmp_path / "run" / "checkpoints" / "best" / "student").iterdir())
    flipped(best)
    with pytest.raises(UserError, match="has changed since it was written"):
        restore.load_variables(tmp_path / "run", "student")


@pytest.mark.slow
def test_a_run_of_before_a_config_field_existed_resumes(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "run")
    path = Workdir(tmp_path / "run").config
    values = json.loads(path.read_text())
    del values["gradient_accumulation"], values["data"]["workers"], values["log"]["wandb"], values["crd"]
    path.write_text(json.dumps(values))
    assert train(short_run(), tmp_path / "run")["steps"] == 15
    assert json.loads(path.read_text())["gradient_accumulation"] == 1


@pytest.mark.slow
def test_other_data_is_refused(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "run")
    path = Workdir(tmp_path / "run").record
    path.write_text(path.read_text().replace('"fingerprint": "', '"fingerprint": "0'))
    with pytest.raises(UserError, match="holds a run on other images or labels of 'digits'"):
        train(short_run(), tmp_path / "run")


@pytest.mark.slow
def test_the_record_has_the_version_of_every_package(finished: Path) -> None:
    (start,) = json.loads(Workdir(finished).record.read_text())["starts"]
    assert start["versions"]["jax"] == jax.__version__
    assert all(start["versions"].values())


@pytest.mark.parametrize("pipeline", ["resident", "stream"])
@pytest.mark.parametrize("fault", ["missing", "short"])
def test_a_shard_that_cannot_be_read_is_named(
    pipeline: str, fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shutil.copytree(ROOT / "tests" / "data" / "tfds", tmp_path / "tfds")
    shard = next((tmp_path / "tfds").rglob("*-train.array_record-*"))
    if fault == "missing":
        shard.unlink()
    else:
        with shard.open("r+b") as file:
            file.truncate(1000)
    spec = config.DataConfig(name="tiny_images", dir=str(tmp_path / "tfds"), pipeline=pipeline)
    with pytest.raises(UserError, match=f"data shard {shard} cannot be read"):
        dataset.load_dataset(spec, 0)


@pytest.fixture
def small_disk() -> Iterator[tuple[Path, list[str]]]:
    """Mounts `full_disk.small_disk`."""
    try:
        with full_disk.small_disk() as disk:
            yield disk
    except full_disk.Unavailable as error:
        pytest.skip(f"no tmpfs can be mounted here: {error}")


def wait_until(condition: Callable[[], bool]) -> None:
    """Waits for a condition; a loaded machine may take minutes to compile."""
    begin = time.monotonic()
    while not condition():
        assert time.monotonic() < begin + 300
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("freed", [True, False])
def test_training_continues_on_a_full_disk(freed: bool, small_disk: tuple[Path, list[str]], tmp_path: Path) -> None:
    """Saves fail, and earlier checkpoints stay intact."""
    mounted, enter = small_disk
    flags = [f"--config={ROOT}/tests/tiny_digits.py", "--config.checkpoint.every=3"]
    flags += [
        "--config.data.train_examples=480",
        "--config.batch_size=96",
        f"--config.epochs={100_000 if freed else 40}",
    ]
    output = tmp_path / "output.txt"  # a pipe that nobody reads would stop the run
    with output.open("w") as file:
        process = subprocess.Popen(
            [*enter, sys.executable, "-m", "switokd_jax.main", "--workdir=/mnt/run", *flags],
            cwd=ROOT,
            env=tiny_runs.environment(),
            stdout=file,
            stderr=file,
        )

    def newest() -> int:
        assert process.poll() is None, output.read_text()
        return storm.newest_save(mounted / "run")

    wait_until(lambda: newest() > 0)
    before = newest()
    wait_until(lambda: newest() > before)  # none is under way now
    filler = mounted / "filler"
    full_disk.fill(filler)
    assert filler.stat().st_size > 2**20
    if freed:
        time.sleep(3.0)
        full = newest()
        filler.unlink()
        wait_until(lambda: newest() > full)
        process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=300) == (75 if freed else 1), output.read_text()
    assert "training continues" in output.read_text()
    latest = mounted / "run" / "checkpoints" / "latest"
    steps = [path for path in latest.iterdir() if path.name.isdigit()]
    assert steps
    assert full_disk.damaged(mounted / "run") == []
    rows = metric_writers.read_metrics(mounted / "run" / "metrics.jsonl")
    assert [row["step"] for row in rows] == sorted(row["step"] for row in rows)
    if not freed:
        assert [
            line
            for line in output.read_text().splitlines()
            if line.startswith("switokd_jax: ") and "free disk space and repeat" in line
        ]
