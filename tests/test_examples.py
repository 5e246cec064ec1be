"""Each example trains, by its own config file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from switokd_jax import config as configs
from switokd_jax import main, methods
from switokd_jax.cli import config_module
from switokd_jax.errors import UserError
from switokd_jax.train import loop, run_spec

EXAMPLES = Path(__file__).parents[1] / "examples"


pytestmark = pytest.mark.usefixtures("own_additions")


def trained(name: str, workdir: Path, **changes: Any) -> dict[str, Any]:
    """The summary of a short run of an example, every network of which is small but for the one that it is about."""
    c = config_module(EXAMPLES / f"{name}.py").get_config()
    for network in c.networks.values():
        if network.model != "perceptron":
            network.model = "two_layers"
    c.log.tensorboard = c.log.progress = False
    c.update_from_flattened_dict(changes)
    return loop.train_and_evaluate(c, workdir, jax.devices()[:1])


def test_own_method(tmp_path: Path) -> None:
    summary = trained("own_method", tmp_path / "run", batch_size=512, steps=6)
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


def test_own_network(tmp_path: Path) -> None:
    summary = trained("own_network", tmp_path / "run", batch_size=512, steps=6)
    assert summary["networks"]["student"]["parameters"] == 64 * 64 + 64 + 64 * 10 + 10


def test_own_topology(tmp_path: Path) -> None:
    summary = trained("own_topology", tmp_path / "run", batch_size=512, steps=6)
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
