"""The production step: pausing bit for bit, what stands inside the conditional, and how often it compiles."""

from __future__ import annotations

import dataclasses
import functools
import logging
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import tiny_runs
from switokd_jax import models, topology
from switokd_jax.data.sampling import Batch
from switokd_jax.forward import NetworkSpec
from switokd_jax.interop import pytorch
from switokd_jax.methods import METHODS, MethodInputs, MethodOutput, switokd
from switokd_jax.models.init import init_variables
from switokd_jax.parallel.collectives import Collectives
from switokd_jax.state import TrainState
from switokd_jax.step import StepSpec, train_step
from switokd_jax.train import init_state, metric_rows, run_spec
from switokd_jax.train.init_state import create_train_state

BATCH = 16
SPLIT = tiny_runs.random_split(11 * BATCH)


def batch(step: int) -> np.ndarray:
    return np.arange(step * BATCH, (step + 1) * BATCH, dtype=np.int32)


def take(c: Any, state: TrainState | None, steps: range) -> tuple[TrainState, dict[str, Any]]:
    """Takes steps from a state on the host, or from the start; returns it to the host."""
    run = tiny_runs.tiny_plan(c, len(SPLIT))
    first, data = tiny_runs.start(run, SPLIT)
    current = first if state is None else run.distribution.device_put(state)
    step = run.distribution.compile(run_spec.make_train_step(run), has_state=True)
    metrics: dict[str, Any] = {}
    for number in steps:
        current, metrics = tiny_runs.call(step, current, data, tiny_runs.batch(run, batch(number)))
    return jax.tree.map(np.array, jax.device_get(current)), jax.device_get(metrics)


def test_a_step_needs_no_run_and_no_mesh() -> None:
    """Two networks, a batch and a `StepSpec`: that is all."""
    rng = np.random.default_rng(0)
    labels = jnp.asarray(rng.integers(0, 10, 8), jnp.int32)
    batch = Batch(index=jnp.arange(8), images=jnp.asarray(rng.normal(size=(8, 8, 8, 1)), jnp.float32), labels=labels)
    module = models.create("one_layer", 10)
    networks = {
        name: NetworkSpec(module, optax.trace(0.9), optax.constant_schedule(0.1), nodes=(name,))
        for name in ("teacher", "student")
    }
    spec = StepSpec(networks, topology.pair("teacher", "student"), METHODS["switokd"].apply, switokd.Hyperparameters())
    variables = {name: init_variables(module, jax.random.key(i), (8, 8, 1)) for i, name in enumerate(networks)}
    state = create_train_state(networks, variables, spec.topology.pairs)
    new_state, metrics = jax.jit(functools.partial(train_step, spec=spec, collectives=Collectives()))(state, batch)
    assert int(new_state.step) == int(new_state.networks["student"].updates) == 1
    assert metrics["student/loss"] > metrics["student/cross_entropy"] > 0


def test_own_metrics_of_a_method_are_metrics_of_the_step() -> None:
    """Their names are free."""
    c = tiny_runs.alone_config(batch_size=BATCH)
    run = tiny_runs.tiny_plan(c, len(SPLIT))

    def method(inputs: MethodInputs, *rest: Any) -> MethodOutput:
        output = METHODS["vanilla"].apply(inputs, *rest)
        return dataclasses.replace(output, metrics={"grad_norm": jnp.ones(()), "student/own/loss": 2.0 * jnp.ones(())})

    run = dataclasses.replace(run, method=dataclasses.replace(run.method, apply=method))
    state, data = tiny_runs.start(run, SPLIT)
    step = run.distribution.compile(run_spec.make_train_step(run), has_state=True)
    _, metrics = step.call(state, data, tiny_runs.batch(run, batch(0)))
    (row,) = metric_rows.metric_rows(run, range(1, 2), jax.device_get(metrics))
    assert (row["grad_norm"], row["student/own/loss"]) == (1.0, 2.0)
    assert [*row][-1] == "grad_norm", "metrics of no network or pair come last"


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_pause_is_bit_for_bit(optimizer: str) -> None:
    """Five learning steps, five forced expert steps, one learning step."""
    c = tiny_runs.tiny_config(batch_size=BATCH)
    for network in (c.networks.teacher, c.networks.student):
        network.optimizer, network.learning_rate, network.weight_decay, network.ema = optimizer, 0.01, 5e-3, 0.9
    learning, expert = c.copy_and_resolve_references(), c.copy_and_resolve_references()
    learning.switokd.mode, expert.switokd.mode = "learning", "expert"

    fifth, _ = take(learning, None, range(5))
    tenth, _ = take(expert, fifth, range(5, 10))
    for part in ("params", "opt_state", "ema", "updates"):
        tiny_runs.assert_same_bits(getattr(fifth.networks["teacher"], part), getattr(tenth.networks["teacher"], part))
    assert int(tenth.networks["teacher"].updates) == 5
    assert int(tenth.networks["student"].updates) == 10
    assert int(tenth.expert_steps["teacher->student"]) == 5
    moved = (
        jax.tree.leaves(tenth.networks["teacher"].batch_stats),
        jax.tree.leaves(fifth.networks["teacher"].batch_stats),
    )
    assert any(np.any(a != b) for a, b in zip(*moved, strict=True))  # the default is 'update'

    # A teacher straight from the fifth learning step, beside the student and the step count of the tenth.
    straight = TrainState(
        networks={"teacher": fifth.networks["teacher"], "student": tenth.networks["student"]},
        expert_steps=tenth.expert_steps,
        step=tenth.step,
        rng=tenth.rng,
    )
    after_pause, metrics = take(learning, tenth, range(10, 11))
    after_straight, metrics_straight = take(learning, straight, range(10, 11))
    for part in ("params", "opt_state", "ema", "updates"):
        tiny_runs.assert_same_bits(
            getattr(after_pause.networks["teacher"], part), getattr(after_straight.networks["teacher"], part)
        )
    tiny_runs.assert_same_bits(metrics, metrics_straight)


def test_freeze_keeps_running_statistics() -> None:
    c = tiny_runs.tiny_config(batch_size=BATCH)
    c.switokd.mode, c.switokd.paused_batch_stats = "expert", "freeze"
    before, _ = take(c, None, range(0))
    after, _ = take(c, None, range(2))
    tiny_runs.assert_same_bits(before.networks["teacher"], after.networks["teacher"])


def test_frozen_network_stays_and_speaks_in_evaluation_mode(tmp_path: Path) -> None:
    c = tiny_runs.tiny_config("resnet8", "resnet8", batch_size=BATCH, method="dml")
    start = init_state.init_state(tiny_runs.tiny_plan(c, len(SPLIT))).networks["student"]
    pytorch.write(tmp_path / "net.safetensors", start.eval_variables)
    c.networks.teacher.frozen, c.networks.teacher.init_from = True, str(tmp_path / "net.safetensors")
    before, _ = take(c, None, range(0))
    after, _ = take(c, None, range(2))
    tiny_runs.assert_same_bits(before.networks["teacher"], after.networks["teacher"])
    assert int(after.networks["student"].updates) == 2


def test_rates_follow_the_global_step() -> None:
    """A teacher that never takes a step still sees its rate fall at the milestone of epoch 2."""
    c = tiny_runs.tiny_config(batch_size=BATCH)
    c.switokd.mode = "expert"
    c.networks.teacher.schedule, c.networks.teacher.milestones = "multistep", (2,)
    _, metrics = take(c, None, range(11))
    assert float(metrics["teacher/learning_rate"]) == pytest.approx(0.1)
    state, metrics = take(c, None, range(12))
    assert float(metrics["teacher/learning_rate"]) == pytest.approx(0.01)
    assert int(state.networks["teacher"].updates) == 0


def test_averaged_weights() -> None:
    """ema <- 0.9 ema + 0.1 params after each step, from the initial weights; they are what is evaluated."""
    c = tiny_runs.alone_config(batch_size=BATCH)
    c.networks.student.ema = 0.9
    states = [take(c, None, range(n))[0].networks["student"] for n in range(3)]
    expected = states[0].params
    for state in states[1:]:
        expected = jax.tree.map(lambda e, p: 0.9 * e + 0.1 * p, expected, state.params)
    for got, wanted in zip(jax.tree.leaves(states[2].ema), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-7)
    assert states[2].eval_variables["params"] is states[2].ema


def test_averages_may_forget_the_initial_weights() -> None:
    """With warmup the new weights have the shares 1, 1/2, and then 1 - 0.6 = 0.4, which is more than 1/3."""
    c = tiny_runs.alone_config(batch_size=BATCH)
    c.networks.student.ema, c.networks.student.ema_warmup = 0.6, True
    states = [take(c, None, range(n))[0].networks["student"] for n in range(4)]
    expected = states[0].params
    for state, share in zip(states[1:], (1.0, 0.5, 0.4), strict=True):
        expected = jax.tree.map(lambda e, p, share=share: (1 - share) * e + share * p, expected, state.params)
    for got, wanted in zip(jax.tree.leaves(states[3].ema), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-7)


def test_bfloat16_follows_float32() -> None:
    """Two learning steps: parameters and optimizer stay float32, losses agree to bfloat16's 2-3 digits."""
    losses = {}
    for dtype in ("float32", "bfloat16"):
        c = tiny_runs.tiny_config(batch_size=BATCH, dtype=dtype)
        state, metrics = take(c, None, range(2))
        losses[dtype] = float(metrics["student/loss"])
        floats = [leaf for leaf in jax.tree.leaves(state.networks) if np.issubdtype(leaf.dtype, np.floating)]
        assert {leaf.dtype for leaf in floats} == {np.dtype("float32")}
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.05)
    assert losses["bfloat16"] != losses["float32"]


def computations(hlo: str) -> dict[str, str]:
    """Name to body of every computation of an HLO module."""
    found = re.findall(r"^(?:ENTRY )?%?([\w.\-]+) [^\n]*\{\n(.*?)^\}", hlo, re.MULTILINE | re.DOTALL)
    return dict(found)


def reachable(parts: dict[str, str], root: str) -> set[str]:
    """Computations that `root` calls, directly or not."""
    todo, seen = [root], set()
    while todo:
        name = todo.pop()
        if name not in seen:
            seen.add(name)
            todo += [other for other in re.findall(r"%([\w.\-]+)", parts[name]) if other in parts]
    return seen


def convolutions(parts: dict[str, str], names: set[str]) -> int:
    return sum(
        len(re.findall(r"= \S+ convolution\(|__eigen_conv|custom_call_target=\"__onednn\$conv", parts[n]))
        for n in names
    )


def test_paused_backward_stands_inside_the_conditional_only() -> None:
    """wrn_10_1 has 7 convolutions and two shortcuts that are matrix products; each costs two in the backward pass.

    The gradient at the input of a layer with strides of 2 is three convolutions and a product, one for each phase.
    """
    c = tiny_runs.tiny_config("wrn_10_1", "wrn_10_1", batch_size=BATCH)
    run = tiny_runs.tiny_plan(c, len(SPLIT))
    state, data = tiny_runs.start(run, SPLIT)
    step = run.distribution.compile(run_spec.make_train_step(run), has_state=True)
    hlo = step.variants[True].lower(state, data, tiny_runs.batch(run, batch(0)).examples, 1).compile().as_text()
    parts = computations(hlo)
    entry = re.search(r"^ENTRY %?([\w.\-]+)", hlo, re.MULTILINE)
    assert entry
    branches = re.findall(
        r"conditional\(.*?(?:branch_computations=\{%?([\w.\-]+), %?([\w.\-]+)\}|"
        r"true_computation=%?([\w.\-]+), false_computation=%?([\w.\-]+))",
        hlo,
    )
    names = [tuple(name for name in found if name) for found in branches]
    assert len(names) == 1, "one conditional: the student's update has none"
    counts = sorted(convolutions(parts, reachable(parts, name)) for name in names[0])
    layers = 1 + 3 * 2  # stem, two for each of three blocks
    strided = 2
    backward = 2 * layers - 1 + 2 * strided  # the stem needs no gradient at the images
    assert counts == [0, backward]
    products = [sum(len(re.findall(r" dot\(", parts[n])) for n in reachable(parts, name)) for name in names[0]]
    assert sorted(products) == [0, 2 * 2 + 2 + strided], "of the shortcuts, the classifier and the strided layers"
    # Outside: both forward passes and the student's backward pass, nothing of the teacher's.
    outside = reachable(parts, entry[1]) - reachable(parts, names[0][0]) - reachable(parts, names[0][1])
    assert convolutions(parts, outside) == 2 * layers + backward


def test_compiles_once_per_batch_shape(caplog: pytest.LogCaptureFixture) -> None:
    examples = 2 * BATCH + 5
    run = tiny_runs.tiny_plan(tiny_runs.tiny_config(batch_size=BATCH), examples)
    state, data = tiny_runs.start(run, SPLIT)
    step = run.distribution.compile(run_spec.make_train_step(run), has_state=True)
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        for _ in range(3):
            for first in range(0, examples, BATCH):
                some = tiny_runs.batch(run, np.arange(first, min(first + BATCH, examples)))
                state, _metrics = step.call(state, data, some)
    compiled = [r.getMessage() for r in caplog.records if re.match(r"Compiling jit\(call\)", r.getMessage())]
    assert len(compiled) == 2, compiled
