"""Each example trains, by its own config file."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import tiny_runs
from switokd_jax import config as configs
from switokd_jax import main, methods
from switokd_jax.cli import config_module
from switokd_jax.errors import UserError
from switokd_jax.train import loop, run_spec
from switokd_jax.workdir import metric_writers, restore

EXAMPLES = Path(__file__).parents[1] / "examples"


pytestmark = pytest.mark.usefixtures("own_additions")


def trained(name: str, workdir: Path, **changes: Any) -> dict[str, Any]:
    """The summary of a short run of an example, every network of which is small but for the one that it is about."""
    c = config_module(EXAMPLES / f"{name}.py").get_config()
    for network in c.networks.values():
        if network.model not in ("perceptron", "nnx_student"):
            network.model = "two_layers"
    c.log.tensorboard = c.log.progress = False
    c.update_from_flattened_dict(changes)
    return loop.train_and_evaluate(c, workdir, jax.devices()[:1])


@pytest.mark.slow
def test_own_method(tmp_path: Path) -> None:
    summary = trained("own_method", tmp_path / "run", batch_size=479, steps=6)
    assert [of["updates"] for of in summary["networks"].values()] == [6, 6, 6]
    assert summary["switch"] == {}


def test_own_method_by_hand() -> None:
    """Two networks, one example: KL(softmax(z_other / 3) || softmax(z_own / 3))."""
    module = config_module(EXAMPLES / "own_method.py")
    logits = {"a": np.array([[1.0, 2.0, 0.5]]), "b": np.array([[0.0, -1.0, 2.0]])}
    p, q = (np.exp(z[0] / 3) / np.exp(z[0] / 3).sum() for z in logits.values())
    inputs = methods.MethodInputs(
        {k: jax.numpy.asarray(z) for k, z in logits.items()}, {"a": jax.numpy.asarray(0.7), "b": jax.numpy.asarray(0.2)}
    )
    graph = run_spec.topology.complete(["a", "b"])
    losses = module.ensemble(inputs, np.array([0]), graph, module.Hyperparameters(weight=2.0)).losses
    assert losses["a"] == pytest.approx(0.7 + 2.0 * 9.0 * np.sum(q * np.log(q / p)), rel=1e-5)
    assert losses["b"] == pytest.approx(0.2 + 2.0 * 9.0 * np.sum(p * np.log(p / q)), rel=1e-5)


@pytest.mark.slow
def test_own_network(tmp_path: Path) -> None:
    summary = trained("own_network", tmp_path / "run", batch_size=479, steps=6)
    assert summary["networks"]["student"]["parameters"] == 64 * 64 + 64 + 64 * 10 + 10


@pytest.mark.slow
def test_own_nnx_network(tmp_path: Path) -> None:
    """Its parameters learn, and its running statistics move."""
    summary = trained("own_nnx_network", tmp_path / "run", batch_size=479, steps=6)
    convolutions, norms, linear = 9 * 1 * 16 + 9 * 16 * 32, 2 * (16 + 32), 32 * 10 + 10
    assert summary["networks"]["student"]["parameters"] == convolutions + norms + linear
    student = restore.load_state(tmp_path / "run")["networks"]["student"]
    assert {*student["batch_stats"]["conv_net"]} == {"bn1", "bn2"}
    assert all(np.abs(norm["mean"]).max() > 0.0 for norm in student["batch_stats"]["conv_net"].values())


@pytest.mark.slow
def test_own_features_are_trained_on_any_devices_and_resumed(tmp_path: Path) -> None:
    """Projections move with their networks; a run that goes on from its first save ends with the same bits."""
    assert len((EXAMPLES / "own_features.py").read_text().splitlines()) < 80
    changes: dict[str, Any] = {"batch_size": 160, "data.train_examples": 480, "epochs": 2.0, "checkpoint.every": 1.0}
    trained("own_features", tmp_path / "whole", **changes, **{"checkpoint.keep": 2})
    whole = restore.load_state(tmp_path / "whole")
    assert {*whole["adapters"]} == {"teacher/projection", "student/projection"}
    assert all(int(adapter["updates"]) == 6 for adapter in whole["adapters"].values())
    rows = metric_writers.read_metrics(tmp_path / "whole" / "metrics.jsonl")
    assert rows[0]["student/distillation"] > 1e-4
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / "latest" / "6")
    trained("own_features", tmp_path / "cut", **changes, **{"checkpoint.keep": 2})
    tiny_runs.assert_same_bits(whole, restore.load_state(tmp_path / "cut"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("example", "parallelism", "sharding"),
    [
        ("own_features", "pmap", "replicated"),
        ("own_features", "jit", "fsdp"),
        ("own_nnx_network", "pmap", "replicated"),
    ],
)
def test_an_example_is_the_same_on_eight_devices(example: str, parallelism: str, sharding: str) -> None:
    """In float64."""
    losses = []
    for kind, shards, devices in (("jit", "replicated", 1), (parallelism, sharding, 8)):
        c = config_module(EXAMPLES / f"{example}.py").get_config()
        for network in c.networks.values():
            network.model = network.model if network.model == "nnx_student" else "one_layer"
        c.parallelism, c.sharding, c.dtype, c.batch_size = kind, shards, "float64", 16
        with jax.enable_x64(True):
            run = tiny_runs.tiny_plan(c, 64, devices)
            split = tiny_runs.random_split(64)
            state, data = tiny_runs.start(run, split)
            step = run.distribution.compile(run_spec.make_train_step(run), has_state=True)
            for first in (0, 16):
                batch = tiny_runs.batch(run, np.arange(first, first + 16))
                state, metrics = tiny_runs.call(step, state, data, batch)
            losses.append(jax.device_get(run.distribution.unreplicate(metrics)))
    for name in ("teacher/loss", "student/loss", "student/distillation"):
        np.testing.assert_allclose(losses[1][name], losses[0][name], rtol=1e-9)


def test_a_module_that_learns_with_nobody_is_named() -> None:
    c = config_module(EXAMPLES / "own_features.py").get_config()
    method = methods.METHODS["alike"]
    trained = methods.TrainedModule(None, (), "nobody")
    spec = methods.FeatureSpec(modules=lambda topology, shapes, **dtypes: {"gate": trained})
    methods.METHODS["alike"] = dataclasses.replace(method, features=lambda h: spec)
    with pytest.raises(UserError, match="module 'gate' learns with 'nobody', which has to be a network that learns"):
        tiny_runs.tiny_plan(c, 64)


@pytest.mark.slow
def test_own_topology(tmp_path: Path) -> None:
    summary = trained("own_topology", tmp_path / "run", batch_size=479, steps=6)
    assert [*summary["switch"]] == ["strong->weak"]


def test_own_topology_is_weighted_by_the_method() -> None:
    c = config_module(EXAMPLES / "own_topology.py").get_config()
    c.switokd.alpha, c.switokd.beta = 2.0, 3.0
    built = run_spec.make_topology(configs.parse(c))
    assert {(str(edge), edge.weight) for edge in built.edges} == {
        ("middle <- strong", 2.0),
        ("weak <- middle", 2.0),
        ("weak <- strong", 1.0),
        ("strong <- weak", 3.0),
    }


@pytest.mark.slow
def test_own_data_set(tmp_path: Path) -> None:
    """Learned within two epochs: a quarter right would be chance."""
    summary = trained("own_data_set", tmp_path / "run", epochs=2.0)
    assert summary["networks"]["student"]["best_top1"] > 60.0
    record = json.loads((tmp_path / "run" / "record.json").read_text())["starts"][0]["data"]
    assert record["classes"] == ["horizontal", "vertical", "falling", "rising"]


def test_what_is_known_are_the_dicts_of_now() -> None:
    config = configs.default()
    config.method = "ensemble"
    with pytest.raises(UserError, match=r"config\.method is 'ensemble'"):
        main.main(config, None, dry_run=True)
    known = config_module(EXAMPLES / "own_method.py").get_config()
    assert configs.parse(known).method == "ensemble"
