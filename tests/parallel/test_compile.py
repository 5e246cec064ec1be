"""Several steps in one call are the same steps."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tiny_runs
from switokd_jax.data import resident, sampling
from switokd_jax.data.sampling import Batch
from switokd_jax.parallel import multi_step as compile_module
from switokd_jax.parallel.multi_step import multi_step
from switokd_jax.train import run_spec

BATCH = 16
SPLIT = tiny_runs.random_split(5 * BATCH)


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_a_carried_tree_goes_from_step_to_step(count: int) -> None:
    """x -> 10 x + sum of the batch, worked out by hand."""
    traced = []

    def step(x: Any, data: Any, batch: Batch) -> Any:
        traced.append(x)
        total = jnp.sum(data[batch.index])
        return 10 * x + total, {"before": x, "even": total % 2 == 0}

    call = jax.jit(multi_step(step, has_state=True))
    last, outputs = call(jnp.asarray(1), jnp.asarray([1, 2, 3]), Batch(jnp.asarray([[0, 0], [0, 1], [2, 2]])), count)
    after = [1, 12, 123, 1236]
    assert int(last) == after[count]
    assert outputs["before"].tolist() == after[:count] + [0] * (3 - count)
    assert outputs["even"].tolist() == [True, False, True][:count] + [False] * (3 - count)
    assert len(traced) == 1


def test_a_tree_that_is_not_carried_is_the_same_in_every_step() -> None:
    call = jax.jit(multi_step(lambda x, data, batch: x * jnp.sum(data[batch.index]), has_state=False))
    outputs = call(jnp.asarray(2), jnp.asarray([1, 2, 3]), Batch(jnp.asarray([[0, 0], [0, 1], [2, 2]])), 2)
    assert outputs.tolist() == [4, 6, 0]


def test_stacks_end_where_they_have_to() -> None:
    """Two epochs of three whole batches and a partial one; a log interval of five; no more than two a call."""
    reading = resident.train_batches(3 * 4 + 1, 0, 4, sampling.ProcessShard(), 2, 8)
    stacks = [*sampling.stack_batches(reading, 2, first_step=2, is_boundary=lambda step: step % 5 == 0)]
    assert [(stack.size, stack.count) for stack in stacks] == [(4, 1), (1, 1), (4, 1), (4, 2), (1, 1)]
    step = 2
    for stack in stacks:
        assert stack.examples.index.shape == (2, stack.size)
        for row in stack.examples.index[: stack.count]:
            np.testing.assert_array_equal(row, sampling.train_indices(step, 0, 13, 4))
            step += 1
    assert step == 8


@pytest.mark.parametrize("parallelism", ["jit", "pmap"])
def test_steps_of_one_call_are_bit_for_bit_those_of_many(parallelism: str) -> None:
    """Seven steps, by calls of one and of up to four."""
    run = tiny_runs.tiny_plan(tiny_runs.tiny_config(batch_size=BATCH, parallelism=parallelism), len(SPLIT), devices=2)
    step = run.distribution.compile(run_spec.make_step(run), has_state=True)
    ends = []
    for most in (1, 4):
        state, data = tiny_runs.start(run, SPLIT)
        reading = resident.train_batches(len(SPLIT), 0, BATCH, run.distribution.process_shard, 0, 7)
        state, seen = tiny_runs.through(run, step, state, data, sampling.stack_batches(reading, most))
        ends.append((jax.device_get(state), seen))
    assert len(ends[0][1]) == 7
    tiny_runs.assert_same_bits(*ends)


def test_what_xla_is_told() -> None:
    """On a GPU only what was asked for, in a word that XLA knows: it refuses others."""
    assert (
        compile_module.compiler_options("gpu", deterministic=False)
        == compile_module.compiler_options("tpu", deterministic=True)
        == {}
    )
    options = compile_module.compiler_options("gpu", deterministic=True)
    double = jax.jit(lambda x: 2 * x).lower(1.0)
    assert double.compile(options)(1.0) == 2
    with pytest.raises(jax.errors.JaxRuntimeError, match="No such compile option"):
        double.compile({f"{name}_": value for name, value in options.items()})


def test_deterministic_by_config() -> None:
    c = tiny_runs.tiny_config(deterministic=True)
    assert tiny_runs.tiny_plan(c, 80).distribution.deterministic
