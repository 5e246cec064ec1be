"""Several steps in one call: the same bits as in several calls."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tiny_runs
from switokd_jax.data import resident, sampling
from switokd_jax.data.sampling import Batch
from switokd_jax.parallel.compile import compiler_options, multi_step
from switokd_jax.train import run_spec

BATCH = 16
SPLIT = tiny_runs.random_split(5 * BATCH)


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_a_state_is_carried_from_step_to_step(count: int) -> None:
    """x -> 10 x + sum of the batch, computed by hand."""
    traced = []

    def step(x: Any, data: Any, batch: Batch) -> Any:
        traced.append(x)
        total = jnp.sum(data[batch.index])
        return 10 * x + total, {"input": x, "even": total % 2 == 0}

    call = jax.jit(multi_step(step, has_state=True))
    last, outputs = call(jnp.asarray(1), jnp.asarray([1, 2, 3]), Batch(jnp.asarray([[0, 0], [0, 1], [2, 2]])), count)
    states = [1, 12, 123, 1236]
    assert int(last) == states[count]
    assert outputs["input"].tolist() == states[:count] + [0] * (3 - count)
    assert outputs["even"].tolist() == [True, False, True][:count] + [False] * (3 - count)
    assert len(traced) == 1


def test_without_state_every_step_takes_the_same_tree() -> None:
    call = jax.jit(multi_step(lambda x, data, batch: x * jnp.sum(data[batch.index]), has_state=False))
    outputs = call(jnp.asarray(2), jnp.asarray([1, 2, 3]), Batch(jnp.asarray([[0, 0], [0, 1], [2, 2]])), 2)
    assert outputs.tolist() == [4, 6, 0]


def test_stacks_end_at_boundaries_and_partial_batches() -> None:
    """Two epochs of three full batches and a partial one; a boundary every five steps; two batches per call at most."""
    batches = resident.train_batches(3 * 4 + 1, 0, 4, sampling.ProcessShard(), 2, 8)
    stacks = [*sampling.stack_batches(batches, 2, first_step=2, is_boundary=lambda step: step % 5 == 0)]
    assert [(stack.size, stack.count) for stack in stacks] == [(4, 1), (1, 1), (4, 1), (4, 2), (1, 1)]
    step = 2
    for stack in stacks:
        assert stack.examples.index.shape == (2, stack.size)
        for row in stack.examples.index[: stack.count]:
            np.testing.assert_array_equal(row, sampling.train_indices(step, 0, 13, 4))
            step += 1
    assert step == 8


@pytest.mark.slow
@pytest.mark.parametrize("parallelism", ["jit", "pmap"])
def test_steps_of_one_call_equal_those_of_several_calls_bit_for_bit(parallelism: str) -> None:
    """Seven steps, in calls of one and of up to four."""
    run = tiny_runs.tiny_plan(tiny_runs.tiny_config(batch_size=BATCH, parallelism=parallelism), len(SPLIT), devices=2)
    step = run.distribution.compile(run_spec.make_train_step(run), has_state=True)
    results = []
    for max_steps in (1, 4):
        state, data = tiny_runs.start(run, SPLIT)
        batches = resident.train_batches(len(SPLIT), 0, BATCH, run.distribution.process_shard, 0, 7)
        state, metrics = tiny_runs.through(run, step, state, data, sampling.stack_batches(batches, max_steps))
        results.append((jax.device_get(state), metrics))
    assert len(results[0][1]) == 7
    tiny_runs.assert_same_bits(*results)


def test_there_are_no_compiler_options_without_a_need() -> None:
    assert compiler_options("gpu", deterministic=False) == {}
    assert compiler_options("tpu", deterministic=True) == {}


def test_xla_knows_the_option_for_determinism_on_gpus() -> None:
    """It refuses options that it does not know."""
    options = compiler_options("gpu", deterministic=True)
    double = jax.jit(lambda x: 2 * x).lower(1.0)
    assert double.compile(options)(1.0) == 2
    with pytest.raises(jax.errors.JaxRuntimeError, match="No such compile option"):
        double.compile({f"{name}_": value for name, value in options.items()})


def test_the_config_makes_a_distribution_deterministic() -> None:
    c = tiny_runs.tiny_config(deterministic=True)
    assert tiny_runs.tiny_plan(c, 80).distribution.deterministic
