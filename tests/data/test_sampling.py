"""Order of an epoch, padding, and the rows of each process."""

from __future__ import annotations

import numpy as np
import pytest

from switokd_jax.data import resident, sampling
from switokd_jax.data.sampling import Batch, ProcessShard

BATCHES = [sampling.train_indices(step, seed=7, num_examples=10, batch_size=4) for step in range(6)]
EPOCHS = (BATCHES[:3], BATCHES[3:])


def test_each_epoch_takes_every_example_once() -> None:
    assert [len(batch) for batch in BATCHES] == [4, 4, 2] * 2
    for batches in EPOCHS:
        assert sorted(np.concatenate(batches)) == [*range(10)]


def test_each_epoch_has_another_order() -> None:
    first, second = (np.concatenate(batches) for batches in EPOCHS)
    assert not np.array_equal(first, second)


def test_a_resumed_run_sees_the_batches_that_it_would_have_seen() -> None:
    resumed = [*resident.train_batches(10, 7, 4, ProcessShard(), first_step=4, total_steps=6)]
    assert [size for size, _ in resumed] == [4, 2]
    for (_, batch), indices in zip(resumed, BATCHES[4:], strict=True):
        np.testing.assert_array_equal(batch.index, indices)


def test_an_evaluation_counts_every_example_once() -> None:
    batches = [batch for _, batch in resident.eval_batches(7, 3, ProcessShard())]
    assert [len(batch.index) for batch in batches] == [3, 3, 3]
    real = [batch.index[batch.mask > 0] for batch in batches]
    np.testing.assert_array_equal(np.concatenate(real), np.arange(7))


@pytest.mark.parametrize("shard_count", [1, 2, 4])
def test_rows_of_all_processes_make_the_batch(shard_count: int) -> None:
    batch = np.arange(32)
    rows = [batch[ProcessShard(i, shard_count, 8).rows(len(batch))] for i in range(shard_count)]
    np.testing.assert_array_equal(np.concatenate(rows), batch)


def test_every_process_has_all_rows_of_a_batch_that_the_devices_do_not_divide() -> None:
    assert [ProcessShard(i, 2, 8).rows(13) for i in range(2)] == [slice(0, 13)] * 2


def stack_sizes(sizes: list[int], max_steps: int, boundaries: tuple[int, ...] = ()) -> list[tuple[int, int]]:
    batches = [(size, Batch(np.arange(size, dtype=np.int32))) for size in sizes]
    stacks = sampling.stack_batches(batches, max_steps, is_boundary=lambda step: step in boundaries)
    return [(stack.size, stack.count) for stack in stacks]


def test_a_stack_holds_at_most_so_many_batches() -> None:
    assert stack_sizes([4] * 5, max_steps=2) == [(4, 2), (4, 2), (4, 1)]


def test_a_stack_ends_at_a_boundary() -> None:
    assert stack_sizes([4] * 5, max_steps=3, boundaries=(1, 4)) == [(4, 1), (4, 3), (4, 1)]


def test_a_stack_ends_where_the_batch_size_changes() -> None:
    assert stack_sizes([4, 4, 3, 4], max_steps=3) == [(4, 2), (3, 1), (4, 1)]


def test_stacks_have_one_shape_whatever_their_count() -> None:
    """One compiled program serves all of them."""
    batches = [(4, Batch(np.full(4, step, np.int32))) for step in range(4)]
    stacks = [*sampling.stack_batches(batches, max_steps=3)]
    assert [stack.examples.index.shape for stack in stacks] == [(3, 4), (3, 4)]
    np.testing.assert_array_equal(stacks[1].examples.index[0], [3, 3, 3, 3])
