"""The ensemble of a run as one classifier: ONE's gate against NumPy, the mean probability of two networks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import tiny_runs
from switokd_jax import config, export, predict
from switokd_jax.analysis import trained_network
from switokd_jax.errors import UserError
from switokd_jax.interop import stablehlo
from switokd_jax.methods import METHODS
from switokd_jax.models.branches import split_logits
from switokd_jax.train import loop, trained_ensemble
from switokd_jax.workdir import restore

IMAGES = tiny_runs.random_split(7).images


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Trains three branches for a few steps with a method; returns the workdir."""
    folders: dict[str, Path] = {}

    def train(method: str) -> Path:
        if method not in folders:
            folders[method] = tmp_path_factory.mktemp(method)
            c = tiny_runs.tiny_config(batch_size=96, method=method, steps=4)
            c.networks = {"student": config.network(model="two_layers", schedule="constant", branches=3)}
            c.networks["student"].ema = 0.5 if METHODS[method].mean_teachers else 0.0
            c.topology.kind = "complete"
            loop.train_and_evaluate(c, folders[method], jax.devices()[:1])
        return folders[method]

    return train


@pytest.mark.slow
def test_ones_ensemble_has_the_gate(finished: Any) -> None:
    workdir = finished("one")
    ensemble = trained_ensemble.read(workdir)
    state = restore.load_state(workdir)
    network = ensemble.run.networks["student"].module
    inputs = IMAGES / 16.0
    variables = {kind: state["networks"]["student"][kind] for kind in ("params", "batch_stats")}
    outputs, mutated = network.apply(variables, jnp.float32(inputs), train=False, mutable=["intermediates"])
    z = np.stack(split_logits(network, outputs))
    trunk = np.asarray(mutated["intermediates"]["trunk_pooled"][0])
    params, stats = (state["adapters"]["gate"][kind] for kind in ("params", "batch_stats"))
    x = trunk @ params["linear"]["kernel"] + params["linear"]["bias"]
    x = (x - stats["bn"]["mean"]) / np.sqrt(stats["bn"]["var"] + 1e-5) * params["bn"]["scale"] + params["bn"]["bias"]
    gate = np.exp(np.maximum(x, 0))
    expected = np.einsum("bn,nbc->bc", gate / gate.sum(1, keepdims=True), z)
    assert not np.allclose(stats["bn"]["mean"], 0)
    np.testing.assert_allclose(ensemble.logits(IMAGES), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["one", "ffl", "pcl", "dml"])
def test_an_ensemble_is_exported_and_predicts(method: str, finished: Any, tmp_path: Path) -> None:
    workdir = finished(method)
    path = export.export(workdir, "ensemble", "stablehlo", "latest", tmp_path / "all.stablehlo")
    exported, ensemble = stablehlo.read(path), trained_ensemble.read(workdir)
    assert exported.model_info.network == "ensemble"
    np.testing.assert_allclose(exported.logits(IMAGES), ensemble.logits(IMAGES), rtol=1e-4, atol=1e-5)
    nodes = [trained_network.read(workdir, f"student_{i}", "latest") for i in (1, 2, 3)]
    mean = np.mean([jax.nn.softmax(node.logits(IMAGES)) for node in nodes], axis=0)
    probabilities = np.asarray(jax.nn.softmax(ensemble.logits(IMAGES)))
    assert np.allclose(probabilities, mean, atol=1e-5) == (method == "dml")
    Image.fromarray(IMAGES[0, :, :, 0]).save(tmp_path / "x.png")
    assert predict.predict([ensemble], [tmp_path / "x.png"]).shape == (1, 1, 10)


@pytest.mark.slow
def test_what_an_ensemble_has_not_is_said(finished: Any, tmp_path: Path) -> None:
    workdir = finished("dml")
    with pytest.raises(UserError, match="an ensemble has no 'best' checkpoint, each network has its own; give --which"):
        export.export(workdir, "ensemble", "stablehlo")
    with pytest.raises(UserError, match="an ensemble has no PyTorch names; export it with --format=stablehlo"):
        export.export(workdir, "ensemble", "safetensors", "latest")
    with pytest.raises(UserError, match="holds the steps 4, not 3"):
        trained_ensemble.read(workdir, "3")


def test_every_ensemble_of_a_method_is_tested() -> None:
    assert {name for name, method in METHODS.items() if method.ensemble} == {"one", "ffl", "pcl"}
