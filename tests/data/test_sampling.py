"""Order of an epoch, padding, and the rows of each process."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from switokd_jax import config
from switokd_jax.data import dataset, loader, resident, sampling
from switokd_jax.data.image_records import ImageSpec
from switokd_jax.data.sampling import Batch, ProcessShard
from switokd_jax.errors import UserError

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


LABELS = np.random.default_rng(0).integers(0, 7, 101)


def test_class_pairs_take_every_example_once_in_pairs_of_one_class() -> None:
    """Singles of classes of odd size come last; another epoch has other pairs."""
    order = sampling.class_pair_order(LABELS)
    first, second = order(3, 0, 101), order(3, 1, 101)
    singles = int((np.bincount(LABELS) % 2).sum())
    for epoch in (first, second):
        assert sorted(epoch) == [*range(101)]
        pairs = LABELS[epoch[: 101 - singles]].reshape(-1, 2)
        assert (pairs[:, 0] == pairs[:, 1]).all()
        assert len({*LABELS[epoch[101 - singles :]]}) == singles
    partners = [{frozenset(pair) for pair in epoch[: 101 - singles].reshape(-1, 2)} for epoch in (first, second)]
    assert len(partners[0] & partners[1]) < len(partners[0]) / 2
    np.testing.assert_array_equal(sampling.class_pair_order(LABELS)(3, 0, 101), first)


def test_class_pairs_are_as_likely_as_each_other() -> None:
    """Three images of one class: each of the three pairs in a third of the epochs."""
    order = sampling.class_pair_order(np.zeros(3, np.int32))
    pairs = [tuple(sorted(int(i) for i in order(0, epoch, 3)[:2])) for epoch in range(3000)]
    for pair in ((0, 1), (0, 2), (1, 2)):
        assert pairs.count(pair) == pytest.approx(1000, rel=0.1)


def test_a_loader_gives_class_pairs() -> None:
    split = dataset.Split(np.zeros((101, 4, 4, 1), np.uint8), LABELS.astype(np.int32))
    spec = config.parse(config.default()).data
    info = ImageSpec((4, 4, 1), resized=False)
    for sampler, expected in (("class_pairs", sampling.class_pair_order(LABELS)), ("shuffled", sampling.epoch_order)):
        made = loader.make_loader(split, info, dataclasses.replace(spec, sampler=sampler), 3, 10, ProcessShard())
        batches = [batch.index for _, batch in made.train_batches(0, 11)]
        np.testing.assert_array_equal(np.concatenate(batches), expected(3, 0, 101))


def test_class_pairs_need_labels_in_advance() -> None:
    c = config.default()
    c.data.sampler, c.data.pipeline = "class_pairs", "stream"
    with pytest.raises(UserError, match=r"config\.data\.sampler is 'class_pairs', and config\.data\.pipeline 'stream'"):
        dataset.load_dataset(config.parse(c).data, 0)


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
