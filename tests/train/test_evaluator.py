"""Every example scored exactly once, whatever the device count."""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np
import pytest

import tiny_runs
from switokd_jax.data import resident, sampling, transforms
from switokd_jax.data.dataset import Dataset, Split
from switokd_jax.data.image_records import ImageSpec
from switokd_jax.models.layers import with_options
from switokd_jax.train import init_state, loop, run_spec
from switokd_jax.train.evaluator import metrics_row


def test_padding_covers_once() -> None:
    seen = [examples for _, examples in resident.eval_batches(7, 3, sampling.ProcessShard())]
    indices, mask = (np.stack([getattr(examples, field) for examples in seen]) for field in ("index", "mask"))
    assert indices.shape == mask.shape == (3, 3)
    np.testing.assert_array_equal(indices[mask > 0], np.arange(7))


def p_of_the_true_class(run: run_spec.RunSpec, variables: Any, name: str, split: Split) -> np.ndarray:
    images = transforms.normalize(split.images, run.dataset_info.preprocess, np.float32)
    module = with_options(run.networks[name].module, axis_name=None)
    logits = np.asarray(jax.jit(functools.partial(module.apply, train=False))(variables, images), np.float64)
    e = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray((e / e.sum(1, keepdims=True))[np.arange(len(split)), split.labels])


@pytest.mark.parametrize("parallelism", ["jit", "pmap"])
@pytest.mark.parametrize("devices", [1, 8])
def test_counts_are_numpys(parallelism: str, devices: int) -> None:
    """k * batch + 1 examples against NumPy on the same logits."""
    split = tiny_runs.random_split(3 * 16 + 1)
    run = tiny_runs.tiny_plan(tiny_runs.tiny_config(batch_size=16, parallelism=parallelism), len(split), devices)
    start = init_state.init_state(run)
    variables = {name: network.eval_variables for name, network in start.networks.items()}
    preprocess, form = run.dataset_info.preprocess, ImageSpec(tiny_runs.SHAPE, False)
    dataset = Dataset("random", tuple("0123456789"), form, split, split, split, preprocess)
    evaluator = loop.open_evaluators(run, dataset)["test"]
    evaluation = evaluator.run(run.distribution.device_put(variables))
    for name, network in run.networks.items():
        images = transforms.normalize(split.images, run.dataset_info.preprocess, np.float32)
        module = with_options(network.module, axis_name=None)
        apply = jax.jit(functools.partial(module.apply, train=False))
        logits = np.asarray(apply(variables[name], images), np.float64)
        right = logits.argmax(1) == split.labels
        rank = (logits > logits[np.arange(len(split)), split.labels][:, None]).sum(1)
        log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        got = evaluation.networks[name]
        assert got["count"] == 49
        assert got["top1"] == pytest.approx(100 * right.mean(), abs=1e-9)
        assert got["top5"] == pytest.approx(100 * (rank < 5).mean(), abs=1e-9)
        assert got["loss"] == pytest.approx(-log_p[np.arange(49), split.labels].mean(), rel=1e-5)
        per_class = [100 * right[split.labels == k].mean() if (split.labels == k).any() else np.nan for k in range(10)]
        np.testing.assert_allclose(got["class_top1"], per_class, atol=1e-4)
    p = {name: p_of_the_true_class(run, variables[name], name, split) for name in run.networks}
    errors = np.stack([1.0 - each for each in p.values()])
    np.testing.assert_allclose(evaluation.error_correlation, errors @ errors.T / 49, rtol=1e-5)
    assert evaluation.examples == 49
    line = metrics_row(evaluation, run.topology.nodes)
    assert [*line][:3] == ["teacher/loss", "teacher/top1", "teacher/top5"]
    assert jax.tree.leaves(line)
