"""Distribution: the same numbers on one device and on eight, under jit, pmap and fsdp."""

from __future__ import annotations

import re
from typing import Any

import jax
import numpy as np
import pytest

import tiny_runs
from experiments.scale.hlo import Collective, collectives
from switokd_jax import config
from switokd_jax.data import dataset, resident, sampling
from switokd_jax.errors import UserError
from switokd_jax.parallel import mesh
from switokd_jax.train import run_spec

EPOCHS = 2
BATCH = 96


def digits() -> dataset.Split:
    return tiny_runs.resident_splits(config.DataConfig(name="digits", train_examples=333))[0]


def train(mode: str, devices: int, dtype: str, steps: int | None = None) -> list[dict[str, Any]]:
    """Returns the metrics of every step under 'jit', 'pmap', or jit with 'fsdp'."""
    split = digits()
    c = tiny_runs.tiny_config(batch_size=BATCH, dtype=dtype)
    c.switokd.epsilon = 0.95  # near the threshold's lower bound, so that so few steps are of both modes
    c.parallelism, c.sharding = ("jit", "fsdp") if mode == "fsdp" else (mode, "replicated")
    with jax.enable_x64(dtype == "float64"):
        run = tiny_runs.tiny_plan(c, len(split), devices)
        state, data = tiny_runs.start(run, split)
        step = run.distribution.compile(run_spec.make_train_step(run), has_state=True)
        total = steps or EPOCHS * run.steps_per_epoch
        batches = resident.train_batches(len(split), 0, BATCH, run.distribution.process_shard, 0, total)
        _, metrics = tiny_runs.through(run, step, state, data, sampling.stack_batches(batches, 5))
    return metrics


@pytest.fixture(scope="module")
def one_device_float64() -> list[dict[str, Any]]:
    return train("jit", 1, "float64")


@pytest.fixture(scope="module")
def one_device_float32() -> list[dict[str, Any]]:
    return train("jit", 1, "float32", steps=3)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["jit", "pmap", "fsdp"])
def test_float64_runs_agree_on_one_and_eight_devices(mode: str, one_device_float64: list[dict[str, Any]]) -> None:
    """Two epochs with a partial last batch (333 = 3 * 96 + 45): every expert decision and every number."""
    assert len(digits()) % BATCH
    rows = train(mode, 8, "float64")
    expert = [bool(row["teacher->student/expert"]) for row in one_device_float64]
    assert [bool(row["teacher->student/expert"]) for row in rows] == expert
    assert 0 < sum(expert) < len(expert)
    for row, expected in zip(rows, one_device_float64, strict=True):
        for name, value in expected.items():
            np.testing.assert_allclose(row[name], value, rtol=1e-9, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("parallelism", ["jit", "pmap"])
def test_float32_runs_agree_for_three_steps(parallelism: str, one_device_float32: list[dict[str, Any]]) -> None:
    for row, expected in zip(train(parallelism, 8, "float32", steps=3), one_device_float32, strict=True):
        for name in ("teacher/loss", "student/loss", "teacher->student/gap"):
            np.testing.assert_allclose(row[name], expected[name], rtol=1e-5, err_msg=name)


@pytest.mark.slow
def test_fsdp_keeps_at_most_a_sixth_on_each_of_eight_devices() -> None:
    """Parameters and optimizer state, before and after a step. Small arrays are replicated, hence not an eighth."""
    split = tiny_runs.random_split(64)
    bytes_held = {}
    for sharding in ("replicated", "fsdp"):
        run = tiny_runs.tiny_plan(
            tiny_runs.alone_config("wide_layers", batch_size=64, sharding=sharding), 64, devices=8
        )
        state, data = tiny_runs.start(run, split)
        assert run.distribution.bytes_per_device(state) == bytes_on_first_device(state)
        step = run.distribution.compile(run_spec.make_train_step(run), has_state=True)
        state, _ = tiny_runs.call(step, state, data, tiny_runs.batch(run, np.arange(64)))
        bytes_held[sharding] = bytes_on_first_device(
            [(network.params, network.opt_state) for network in state.networks.values()]
        )
    assert bytes_held["fsdp"] <= bytes_held["replicated"] / 6


def bytes_on_first_device(tree: Any) -> int:
    """Returns the bytes of a tree on the first device."""
    return sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(tree))


def test_unreplicate_reads_from_one_device_under_pmap() -> None:
    """A gather over all devices beside running steps once deadlocked on CPU."""
    distribution = mesh.create("pmap", "replicated", "global", 16)
    tree = {"a": np.arange(6.0).reshape(2, 3), "b": np.float32(5.0)}
    values = distribution.unreplicate(distribution.device_put(tree))
    assert {len(x.devices()) for x in values.values()} == {1}
    jax.tree.map(np.testing.assert_array_equal, values, tree)


@pytest.mark.parametrize(
    ("shape", "spec"),
    [
        ((64, 128), (None, "data")),
        ((128, 64), ("data",)),
        ((129, 64), (None, "data")),
        ((129, 65), ()),  # no axis is divisible by eight
        ((8, 8), ()),  # too small
    ],
)
def test_fsdp_shards_the_longest_divisible_axis(shape: tuple[int, ...], spec: tuple[str | None, ...]) -> None:
    strategy = mesh.create("jit", "fsdp", "global", 16).strategy
    tree = {"params": np.zeros(shape, np.float32)}
    assert strategy.tree_sharding(tree)["params"].spec == jax.sharding.PartitionSpec(*spec)


def test_fsdp_replicates_what_is_no_parameter() -> None:
    strategy = mesh.create("jit", "fsdp", "global", 16).strategy
    assert strategy.tree_sharding({"batch_stats": np.zeros((64, 64))})["batch_stats"].is_fully_replicated


def test_fsdp_is_refused_under_pmap() -> None:
    with pytest.raises(UserError, match=r"config.sharding is 'fsdp', which needs config.parallelism = 'jit'"):
        config.parse(tiny_runs.tiny_config(sharding="fsdp", parallelism="pmap"))


def one_step(devices: int, **changes: Any) -> tuple[Any, dict[str, Any]]:
    """Returns the state and metrics of one network after a step of 64 examples."""
    run = tiny_runs.tiny_plan(tiny_runs.alone_config(batch_size=64, **changes), 64, devices)
    state, data = tiny_runs.start(run, tiny_runs.random_split(64))
    step = run.distribution.compile(run_spec.make_train_step(run), has_state=True)
    return tiny_runs.call(step, state, data, tiny_runs.batch(run, np.arange(64)))


@pytest.mark.slow
def test_replicas_stay_equal_with_local_batch_norm() -> None:
    state, _ = one_step(devices=2, parallelism="pmap", batch_norm="local")
    for leaf in jax.tree.leaves(jax.device_get(state)):
        for copy in leaf[1:]:
            np.testing.assert_array_equal(copy, leaf[0])


@pytest.mark.slow
def test_local_batch_norm_differs_from_global() -> None:
    """It uses the statistics of each device, as data-parallel PyTorch does."""
    _, local = one_step(devices=2, parallelism="pmap", batch_norm="local")
    _, single = one_step(devices=1)
    assert float(local["student/loss"][0]) != pytest.approx(float(single["student/loss"]), rel=1e-6)


def test_a_batch_size_that_the_devices_do_not_divide_is_refused() -> None:
    with pytest.raises(UserError, match=r"config.batch_size is 20, which 8 devices do not divide; use 16"):
        tiny_runs.tiny_plan(tiny_runs.tiny_config(batch_size=20), 100, devices=8)


def step_collectives(parallelism: str, topology: str) -> tuple[run_spec.RunSpec, list[Collective]]:
    """Returns the collectives of a step on eight devices."""
    split = tiny_runs.random_split(64)
    c = tiny_runs.tiny_config(batch_size=16, parallelism=parallelism)
    if topology == "chain":
        c.topology.kind, c.topology.names = "chain", ("teacher", "student", "last")
        c.networks.last = config.network(model="two_layers")
    run = tiny_runs.tiny_plan(c, len(split), devices=8)
    state, data = tiny_runs.start(run, split)
    step = run.distribution.compile(run_spec.make_train_step(run), has_state=True)
    lowered = step.variants[True].lower(state, data, tiny_runs.batch(run, np.arange(16)).examples, 1)
    return run, collectives(lowered.compile().as_text())


@pytest.mark.slow
@pytest.mark.parametrize("topology", ["pair", "chain"])
@pytest.mark.parametrize("parallelism", ["jit", "pmap"])
def test_a_step_has_one_reduction_of_gradients_per_network(parallelism: str, topology: str) -> None:
    """BatchNorm aside, one more collective serves the decision and the metrics."""
    run, ops = step_collectives(parallelism, topology)
    # BatchNorm's backward pass has summed the gradients of its own parameters: a gradient is smaller than its network.
    gradients = [op for op in ops if sum(op.sizes) > 5_000]
    assert len(gradients) == len(run.networks)
    assert all(op.kind == "all-reduce" for op in gradients)
    # BatchNorm has a 'cond' of its own, which chooses by platform before XLA compiles.
    paused = [op for op in gradients if "/cond/" in re.sub(r"/bn\d*/cond/", "/", op.op_name)]
    assert len(paused) == len(run.networks) - 1, "inside the conditional of each network that can be paused"
    others = [op for op in ops if op not in gradients and "bn" not in op.op_name]
    if parallelism == "pmap":
        # One for logits, one for labels: every device then takes the same decision from the same numbers.
        assert sorted((op.kind, op.sizes) for op in others) == [
            ("all-gather", (16 * 2,)),
            ("all-gather", (16 * 10 * len(run.networks),)),
        ]
    else:
        # Losses, distances and hits are reduced with the gradients of a network, or in one reduction of scalars.
        assert len(others) <= 1
        assert all(max(op.sizes) <= 16 for op in others)
