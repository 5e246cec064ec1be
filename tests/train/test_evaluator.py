"""Every example scored exactly once, whatever the device count."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest

import tiny_runs
from switokd_jax.data import resident, sampling, transforms
from switokd_jax.models.layers import with_options
from switokd_jax.train import evaluator, init_state, run_spec


def test_padding_covers_once() -> None:
    seen = [examples for _, examples in resident.eval_batches(7, 3, sampling.ProcessShard())]
    indices, mask = (np.stack([getattr(examples, field) for examples in seen]) for field in ("index", "mask"))
    assert indices.shape == mask.shape == (3, 3)
    np.testing.assert_array_equal(indices[mask > 0], np.arange(7))


@pytest.mark.parametrize("parallelism", ["jit", "pmap"])
@pytest.mark.parametrize("devices", [1, 8])
def test_counts_are_numpys(parallelism: str, devices: int) -> None:
    """k * batch + 1 examples against NumPy on the same logits."""
    split = tiny_runs.random_split(3 * 16 + 1)
    run = tiny_runs.tiny_plan(tiny_runs.tiny_config(batch_size=16, parallelism=parallelism), len(split), devices)
    start = init_state.initial(run)
    variables = {name: network.evaluated for name, network in start.networks.items()}
    call = run.distribution.compile(run_spec.make_score(run), has_state=False).call
    reading = resident.eval_batches(len(split), 16, run.distribution.process_shard)
    coming = run.distribution.prefetch_to_device(sampling.stack_batches(reading, 3))
    scores = evaluator.score(
        call, run.distribution.unreplicate, run.distribution.device_put(variables), tiny_runs.place(run, split), coming
    )
    for name, network in run.networks.items():
        images = transforms.normalize(split.images, run.dataset_info.preprocess, np.float32)
        module = with_options(network.module, axis_name=None)
        apply = jax.jit(functools.partial(module.apply, train=False))
        logits = np.asarray(apply(variables[name], images), np.float64)
        right = logits.argmax(1) == split.labels
        rank = (logits > logits[np.arange(len(split)), split.labels][:, None]).sum(1)
        log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        got = scores[name]
        assert got["count"] == 49
        assert got["top1"] == pytest.approx(100 * right.mean(), abs=1e-9)
        assert got["top5"] == pytest.approx(100 * (rank < 5).mean(), abs=1e-9)
        assert got["loss"] == pytest.approx(-log_p[np.arange(49), split.labels].mean(), rel=1e-5)
        per_class = [100 * right[split.labels == k].mean() if (split.labels == k).any() else np.nan for k in range(10)]
        np.testing.assert_allclose(got["class_top1"], per_class, atol=1e-4)
    line = evaluator.as_line(scores, run.topology.nodes)
    assert [*line][:3] == ["teacher/loss", "teacher/top1", "teacher/top5"]
    assert jax.tree.leaves(line)
