"""Checkpoints of small states, without a run. tests/workdir/test_faults.py damages those of runs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import serialization

import tiny_runs
from switokd_jax import config
from switokd_jax.errors import SaveError
from switokd_jax.state import NetworkState, TrainState
from switokd_jax.workdir import checksums
from switokd_jax.workdir.checkpointer import TMP_MARKER, Checkpointer, open_checkpointer
from switokd_jax.workdir.layout import Workdir


def train_state(step: int) -> TrainState:
    """A state of one network with two parameters, which count steps."""
    params = {"w": jnp.full(2, float(step))}
    network = NetworkState(params=params, batch_stats={}, opt_state={}, ema=None, updates=jnp.int32(step))
    return TrainState({"student": network}, {}, jnp.int32(step), jax.random.key_data(jax.random.key(0)))


@contextlib.contextmanager
def opened(folder: Path, **settings: Any) -> Iterator[Checkpointer]:
    checkpointer = open_checkpointer(Workdir(folder), ("student",), config.CheckpointConfig(**settings), 1)
    try:
        yield checkpointer
    finally:
        checkpointer.close()


def restore(checkpointer: Checkpointer) -> tuple[TrainState, dict[str, Any]] | None:
    state = train_state(0)
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract_state = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), serialization.to_state_dict(state)
    )
    return checkpointer.restore(state, abstract_state)


def steps(folder: Path) -> list[int]:
    return sorted(int(path.name) for path in folder.iterdir())


def test_a_new_workdir_has_nothing_to_restore(tmp_path: Path) -> None:
    with opened(tmp_path) as checkpointer:
        assert checkpointer.latest_step == 0
        assert restore(checkpointer) is None


def test_a_state_and_its_progress_are_restored(tmp_path: Path) -> None:
    with opened(tmp_path) as checkpointer:
        checkpointer.save_latest(3, train_state(3), {"seconds": 1.5})
    with opened(tmp_path) as checkpointer:
        restored = restore(checkpointer)
    assert restored is not None
    tiny_runs.assert_same_bits(restored[0], train_state(3))
    assert restored[1] == {"seconds": 1.5}


def test_old_states_are_deleted(tmp_path: Path) -> None:
    with opened(tmp_path, keep=2) as checkpointer:
        for step in (1, 2, 3):
            checkpointer.save_latest(step, train_state(step), {})
    assert steps(Workdir(tmp_path).latest_checkpoints) == [2, 3]


def test_checkpoints_carry_their_checksums(tmp_path: Path) -> None:
    with opened(tmp_path) as checkpointer:
        checkpointer.save_best("student", 1, {"params": {"w": np.ones(2)}})
        checkpointer.save_latest(1, train_state(1), {})
    for folder in (Workdir(tmp_path).latest_checkpoints, Workdir(tmp_path).best_checkpoints("student")):
        assert (folder / "1" / checksums.NAME).exists()
        assert checksums.verify(folder / "1") is None


def test_restoring_deletes_best_checkpoints_of_later_steps(tmp_path: Path) -> None:
    """The resumed run reaches these steps again."""
    with opened(tmp_path) as checkpointer:
        checkpointer.save_best("student", 1, {"params": {"w": np.ones(2)}})
        checkpointer.save_latest(1, train_state(1), {})
        checkpointer.save_best("student", 2, {"params": {"w": np.ones(2)}})
    with opened(tmp_path) as checkpointer:
        restore(checkpointer)
    assert steps(Workdir(tmp_path).best_checkpoints("student")) == [1]


def test_partial_saves_are_removed_at_the_start(tmp_path: Path) -> None:
    partial = Workdir(tmp_path).best_checkpoints("student") / f"7{TMP_MARKER}-0"
    partial.mkdir(parents=True)
    with opened(tmp_path):
        pass
    assert not partial.exists()


def test_a_failed_save_is_reported_at_the_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    message = r"the disk is gone; the latest checkpoint is that of step 0: free disk space"
    with pytest.raises(SaveError, match=message), opened(tmp_path) as checkpointer:
        checkpointer.report_failed_save("the disk is gone")
    assert "training continues, and the next save tries again" in caplog.text


def test_a_later_save_makes_up_for_a_failed_one(tmp_path: Path) -> None:
    with opened(tmp_path) as checkpointer:
        checkpointer.report_failed_save("the disk is full")
        checkpointer.save_latest(2, train_state(2), {})
    assert steps(Workdir(tmp_path).latest_checkpoints) == [2]


def test_a_folder_that_cannot_be_written_postpones_a_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(SaveError, match=r"checkpoints may not be written"), opened(tmp_path) as checkpointer:
        assert not checkpointer.save_best("student", 1, {"params": {"w": np.ones(2)}})


def test_the_first_save_is_read_back(tmp_path: Path) -> None:
    """Orbax takes a path for a pattern, and so loses what it writes into such a folder; commands refuse its name."""
    message = r"though it has just been written; choose another --workdir"
    with pytest.raises(SaveError, match=message), opened(tmp_path / "run[1]") as checkpointer:
        checkpointer.save_latest(1, train_state(1), {})


def test_only_the_first_save_is_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(tmp_path) as checkpointer:
        checkpointer.save_latest(1, train_state(1), {})
        assert checkpointer.is_read_back
        monkeypatch.setattr(checkpointer.latest, "restore", None)
        checkpointer.save_latest(2, train_state(2), {})
