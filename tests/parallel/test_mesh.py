"""The same numbers on one device and on eight, under jit and pmap."""

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


def train(how: str, devices: int, dtype: str, steps: int | None = None) -> list[dict[str, Any]]:
    """Metrics of every step under 'jit', 'pmap', or jit with 'fsdp'."""
    split = digits()
    c = tiny_runs.tiny_config(batch_size=BATCH, dtype=dtype)
    c.switokd.epsilon = 0.95  # near the threshold's lower bound, so that so few steps are of both modes
    c.parallelism, c.sharding = ("jit", "fsdp") if how == "fsdp" else (how, "replicated")
    with jax.enable_x64(dtype == "float64"):
        run = tiny_runs.tiny_plan(c, len(split), devices)
        state, data = tiny_runs.start(run, split)
        step = run.distribution.compile(run_spec.make_train_step(run), has_state=True)
        total = steps or EPOCHS * run.steps_per_epoch
        reading = resident.train_batches(len(split), 0, BATCH, run.distribution.process_shard, 0, total)
        _, metrics = tiny_runs.through(run, step, state, data, sampling.stack_batches(reading, 5))
    return metrics


@pytest.fixture(scope="module")
def alone64() -> list[dict[str, Any]]:
    return train("jit", 1, "float64")


@pytest.fixture(scope="module")
def alone32() -> list[dict[str, Any]]:
    return train("jit", 1, "float32", steps=3)


@pytest.mark.parametrize("how", ["jit", "pmap", "fsdp"])
def test_float64_is_the_same_run(how: str, alone64: list[dict[str, Any]]) -> None:
    """Two epochs with a partial last batch (333 = 3 * 96 + 45) on eight devices: every mode, every number."""
    assert len(digits()) % BATCH
    got = train(how, 8, "float64")
    modes = [bool(line["teacher->student/expert"]) for line in alone64]
    assert [bool(line["teacher->student/expert"]) for line in got] == modes
    assert 0 < sum(modes) < len(modes)
    for here, there in zip(got, alone64, strict=True):
        for name, value in there.items():
            np.testing.assert_allclose(here[name], value, rtol=1e-9, err_msg=name)


@pytest.mark.parametrize("parallelism", ["jit", "pmap"])
def test_float32_agrees_for_three_steps(parallelism: str, alone32: list[dict[str, Any]]) -> None:
    for here, there in zip(train(parallelism, 8, "float32", steps=3), alone32, strict=True):
        for name in ("teacher/loss", "student/loss", "teacher->student/gap"):
            np.testing.assert_allclose(here[name], there[name], rtol=1e-5, err_msg=name)


def test_fsdp_keeps_an_eighth_on_each_device() -> None:
    """Parameters and optimizer state, placed and after a step: at most a sixth, as what is small stays whole."""
    split = tiny_runs.random_split(64)
    held = {}
    for sharding in ("replicated", "fsdp"):
        run = tiny_runs.tiny_plan(tiny_runs.alone_config("resnet8", batch_size=64, sharding=sharding), 64, devices=8)
        state, data = tiny_runs.start(run, split)
        assert run.distribution.bytes_per_device(state) == here(state)
        step = run.distribution.compile(run_spec.make_train_step(run), has_state=True)
        state, _ = tiny_runs.call(step, state, data, tiny_runs.batch(run, np.arange(64)))
        held[sharding] = here([(network.params, network.opt_state) for network in state.networks.values()])
    assert held["fsdp"] <= held["replicated"] / 6


def here(tree: Any) -> int:
    """Bytes of a tree on the first device."""
    return sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(tree))


def test_pmap_reads_a_single_value_from_one_device() -> None:
    """A gather of all devices beside steps under way once waited for ever on CPU."""
    devices = mesh.create("pmap", "replicated", "global", 16)
    tree = {"a": np.arange(6.0).reshape(2, 3), "b": np.float32(5.0)}
    found = devices.unreplicate(devices.device_put(tree))
    assert {len(x.devices()) for x in found.values()} == {1}
    jax.tree.map(np.testing.assert_array_equal, found, tree)


def test_fsdp_is_for_jit() -> None:
    with pytest.raises(UserError, match=r"config.sharding is 'fsdp', which needs config.parallelism = 'jit'"):
        config.parse(tiny_runs.tiny_config(sharding="fsdp", parallelism="pmap"))


def test_local_batch_norm_is_another_run(alone64: list[dict[str, Any]]) -> None:
    """Per-device statistics, as data-parallel PyTorch has them; replicas stay equal all the same."""
    split = tiny_runs.random_split(64)
    c = tiny_runs.alone_config(batch_size=64, parallelism="pmap", batch_norm="local")
    run = tiny_runs.tiny_plan(c, 64, devices=2)
    state, data = tiny_runs.start(run, split)
    step = run.distribution.compile(run_spec.make_train_step(run), has_state=True)
    state, metrics = tiny_runs.call(step, state, data, tiny_runs.batch(run, np.arange(64)))
    for leaf in jax.tree.leaves(jax.device_get(state)):
        for copy in leaf[1:]:
            np.testing.assert_array_equal(copy, leaf[0])
    whole = tiny_runs.tiny_plan(tiny_runs.alone_config(batch_size=64), 64)
    state, data = tiny_runs.start(whole, split)
    step = whole.distribution.compile(run_spec.make_train_step(whole), has_state=True)
    _, other = tiny_runs.call(step, state, data, tiny_runs.batch(whole, np.arange(64)))
    assert float(metrics["student/loss"][0]) != pytest.approx(float(other["student/loss"]), rel=1e-6)


def test_batch_has_to_be_divisible() -> None:
    with pytest.raises(UserError, match=r"config.batch_size is 20, which 8 devices do not divide; use 16"):
        tiny_runs.tiny_plan(tiny_runs.tiny_config(batch_size=20), 100, devices=8)


def sent(parallelism: str, topology: str) -> tuple[run_spec.RunSpec, list[Collective]]:
    """The collectives of a step on eight devices."""
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


@pytest.mark.parametrize("topology", ["pair", "chain"])
@pytest.mark.parametrize("parallelism", ["jit", "pmap"])
def test_one_reduction_of_gradients_per_network(parallelism: str, topology: str) -> None:
    """And one message for all that the decision and the metrics are made of, BatchNorm's own aside."""
    run, found = sent(parallelism, topology)
    # What BatchNorm's own backward pass has summed is not summed again, so a gradient is a little less than a network.
    gradients = [one for one in found if sum(one.sizes) > 5_000]
    assert len(gradients) == len(run.networks)
    assert all(one.kind == "all-reduce" for one in gradients)
    # BatchNorm's own 'cond' is its choice by platform, made before XLA compiles.
    paused = [one for one in gradients if "/cond/" in re.sub(r"/bn\d*/cond/", "/", one.where)]
    assert len(paused) == len(run.networks) - 1, "inside the conditional of all that can wait"
    others = [one for one in found if one not in gradients and "bn" not in one.where]
    if parallelism == "pmap":
        # Logits in one message, labels in another: every device then makes the same decision of the same numbers.
        assert sorted((one.kind, one.sizes) for one in others) == [
            ("all-gather", (16 * 2,)),
            ("all-gather", (16 * 10 * len(run.networks),)),
        ]
    else:
        # Losses, distances and hits travel with a network's gradients, or in one message of scalars.
        assert len(others) <= 1
        assert all(max(one.sizes) <= 16 for one in others)
