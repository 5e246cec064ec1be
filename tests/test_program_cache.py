"""Traced programs that are kept for the next start: the same bits, and never those of another run or of other code."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tiny_runs
from experiments.faults import storm
from switokd_jax.program_cache import Program, ProgramCache, imported_files, trace
from switokd_jax.state import Tree
from switokd_jax.train import loop, run_programs
from switokd_jax.workdir import provenance


def scale(tree: Tree, factors: dict[str, Any]) -> tuple[Tree, dict[str, Any]]:
    """A step with a state."""
    return {"x": tree["x"] * factors["a"]}, {"sum": jnp.sum(tree["x"])}


STATE = Program(scale, has_state=True)
ARGUMENTS = ({"x": jnp.arange(3.0)}, {"a": 2.0})


@pytest.fixture
def cache(tmp_path: Path) -> ProgramCache:
    return ProgramCache(tmp_path / "programs", time.time())


@pytest.fixture
def no_traces(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Returns the function from which on no program can be traced for the cache."""

    def forbid() -> None:
        def export(*args: Any, **kwargs: Any) -> Any:
            raise AssertionError("traced")

        monkeypatch.setattr(jax.export, "export", export)

    return forbid


def outputs(lower: Any, name: str = "scale", program: Program = STATE, args: Any = ARGUMENTS) -> Any:
    return lower(name)(program, *args).compile()(*args)


def entries(cache: ProgramCache) -> list[Path]:
    return sorted(cache.folder.glob("*"))


def test_a_program_is_traced_once(cache: ProgramCache, no_traces: Callable[[], None]) -> None:
    first = outputs(cache.of_run({}, []))
    no_traces()
    again = outputs(cache.of_run({}, []))
    tiny_runs.assert_same_bits(first, again)
    np.testing.assert_array_equal(again[0]["x"], [0, 2, 4])
    np.testing.assert_array_equal(again[1]["sum"], 3)
    assert len(entries(cache)) == 1


@pytest.mark.parametrize(
    "other",
    [
        {"facts": {"config.method": "dml"}},
        {"name": "another step"},
        {"args": ({"x": jnp.arange(4.0)}, {"a": 2.0})},
        {"args": ({"x": jnp.arange(3)}, {"a": 2})},
        {"args": ({"x": jnp.arange(3.0)}, {"a": jnp.float32(2.0)})},
        {"args": ({"x": jnp.arange(3.0)}, {"b": 1.0, "a": 2.0})},
    ],
    ids=["facts", "name", "shape", "dtype", "weak type", "structure"],
)
def test_another_program_is_traced(cache: ProgramCache, other: dict[str, Any]) -> None:
    outputs(cache.of_run({}, []))
    outputs(cache.of_run(other.pop("facts", {}), []), **other)
    assert len(entries(cache)) == 2


def test_options_of_jax_are_part_of_the_key(cache: ProgramCache) -> None:
    outputs(cache.of_run({}, []))
    before = jax.config.values["jax_default_matmul_precision"]
    jax.config.update("jax_default_matmul_precision", "float32")
    try:
        outputs(cache.of_run({}, []))
    finally:
        jax.config.update("jax_default_matmul_precision", before)
    assert len(entries(cache)) == 2


@pytest.mark.parametrize("damage", ["cut", "flipped", "swapped", "empty"])
def test_a_damaged_entry_is_written_again(cache: ProgramCache, damage: str) -> None:
    outputs(cache.of_run({}, []))
    (entry,) = entries(cache)
    whole = entry.read_bytes()
    outputs(cache.of_run({}, []), "another step")
    (other,) = set(entries(cache)) - {entry}
    changed = {
        "cut": whole[:-100],
        "flipped": whole[:200] + bytes([whole[200] ^ 1]) + whole[201:],
        "swapped": other.read_bytes(),
        "empty": b"",
    }
    entry.write_bytes(changed[damage])
    result, _ = outputs(cache.of_run({}, []))
    np.testing.assert_array_equal(result["x"], [0, 2, 4])
    assert entry.read_bytes() not in changed.values()
    assert sorted(cache.folder.iterdir()) == sorted([entry, other])


def test_code_that_changed_after_its_import_is_not_kept(cache: ProgramCache, tmp_path: Path) -> None:
    code = tmp_path / "own.py"
    code.write_text("x = 1\n")
    os.utime(code, (cache.imported_after + 1, cache.imported_after + 1))
    assert cache.of_run({}, [code]) is trace
    assert cache.of_run({}, [tmp_path / "<a notebook's cell>"]) is trace
    os.utime(code, (1, 1))
    outputs(cache.of_run({}, [code]))
    code.write_text("x = 2\n")
    os.utime(code, (1, 1))
    outputs(cache.of_run({}, [code]))
    assert len(entries(cache)) == 2


def test_a_users_modules_are_part_of_the_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A config file may register methods and networks, and import more."""
    (tmp_path / "own_losses.py").write_text("x = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert tmp_path / "own_losses.py" not in imported_files()
    __import__("own_losses")
    assert tmp_path / "own_losses.py" in imported_files()
    assert not [file for file in imported_files() if file.is_relative_to(sys.prefix) and "site-packages" in file.parts]
    del sys.modules["own_losses"]


@pytest.mark.parametrize("option", ["jax_enable_compilation_cache", "jax_debug_nans"])
def test_jax_can_be_told_to_keep_nothing(cache: ProgramCache, option: str) -> None:
    before = jax.config.values[option]
    jax.config.update(option, not before)
    try:
        assert cache.of_run({}, []) is trace
    finally:
        jax.config.update(option, before)


def test_what_cannot_be_serialized_is_compiled_all_the_same(cache: ProgramCache) -> None:
    def with_callback(x: jax.Array) -> dict[str, jax.Array]:
        return {"y": jax.pure_callback(lambda x: np.asarray(x) + 1, jax.ShapeDtypeStruct((), jnp.float32), x)}

    result = outputs(cache.of_run({}, []), program=Program(with_callback), args=(jnp.float32(2.0),))
    assert result["y"] == 3.0
    assert not entries(cache)


def test_a_folder_that_cannot_be_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    caplog.set_level("INFO")
    result, _ = outputs(ProgramCache(tmp_path / "file" / "programs", time.time()).of_run({}, []))
    np.testing.assert_array_equal(result["x"], [0, 2, 4])
    assert "the next start traces again" in caplog.text


@pytest.mark.parametrize(
    ("parallelism", "sharding"),
    [
        ("jit", "replicated"),
        pytest.param("pmap", "replicated", marks=pytest.mark.slow),
        pytest.param("jit", "fsdp", marks=pytest.mark.slow),
    ],
)
def test_a_run_from_the_cache_has_the_same_bits(
    parallelism: str, sharding: str, tmp_path: Path, cache: ProgramCache, no_traces: Callable[[], None]
) -> None:
    """Without the cache, with an empty one, and with a full one; on two devices."""
    changes: dict[str, Any] = {"parallelism": parallelism, "sharding": sharding, "epochs": 1.0}
    changes |= {"data.train_examples": 240, "data.validation_fraction": 0.1}  # 216 examples to train on
    if (parallelism, sharding) == ("jit", "replicated"):
        c = tiny_runs.tiny_config(batch_size=96, **changes)  # with a last batch of another size
    else:
        c = tiny_runs.alone_config(batch_size=72, **changes)
    devices = jax.devices()[:2]
    loop.train_and_evaluate(c, tmp_path / "without", devices)
    loop.train_and_evaluate(c, tmp_path / "first", devices, programs=cache)
    no_traces()
    loop.train_and_evaluate(c, tmp_path / "second", devices, programs=cache)
    for name in ("first", "second"):
        assert not storm.differences(tmp_path / "without", tmp_path / name)
    c.seed += 1  # the seed and the images are arguments of the programs
    loop.train_and_evaluate(c, tmp_path / "seed", devices, programs=cache)
    loop.train_and_evaluate(c, tmp_path / "seed without", devices)
    assert not storm.differences(tmp_path / "seed", tmp_path / "seed without")


def test_a_setting_is_part_of_the_key(cache: ProgramCache) -> None:
    """Lowers a network's initialization for a run and for one that differs in a setting, and in the seed."""

    def lower(**changes: Any) -> None:
        c = tiny_runs.tiny_config(**changes)
        run = tiny_runs.tiny_plan(c, 64)
        record = {"versions": {}, "python": "3", "code": "", "devices": {}, "data": {"fingerprint": str(c.seed)}}
        outputs(run_programs.lower_by_name(run, c.to_dict(), record, cache))

    lower()
    lower(seed=1)
    assert len(entries(cache)) == 1
    lower(**{"networks.student.learning_rate": 0.25})
    assert len(entries(cache)) == 2


def test_no_cache_traces() -> None:
    run = tiny_runs.tiny_plan(tiny_runs.alone_config(), 64)
    assert run_programs.lower_by_name(run, {}, {}, None) is trace


def test_files_of_the_package_are_code() -> None:
    files = provenance.code_files([])
    assert provenance.PACKAGE_DIR / "step.py" in files
    assert provenance.PACKAGE_DIR / "models" / "ops" / "convolution.py" in files
