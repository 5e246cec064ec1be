"""A trained network outside of its run: read again, exported, and asked for its logits."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export as jax_export

import tiny_runs
from switokd_jax import export, models
from switokd_jax.analysis import trained_network
from switokd_jax.data import dataset, transforms
from switokd_jax.errors import UserError
from switokd_jax.interop import pytorch, stablehlo
from switokd_jax.models.init import init_variables
from switokd_jax.train import loop
from switokd_jax.workdir import restore

# One of each kind of network, with the images that it is for.
KINDS = {
    "resnet8": (32, 32, 3),
    "wrn_10_1": (32, 32, 3),
    "mobilenetv2_0.5": (32, 32, 3),
    "mobilenetv2_tiny_1.4": (64, 64, 3),
    "mobilenet": (32, 32, 3),
    "vgg8": (32, 32, 3),
    "densenet_10_4": (32, 32, 3),
    "resnet18_cifar": (32, 32, 3),
    "vit_small": (32, 32, 3),
    "swin_tiny": (32, 32, 3),
}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "run"
    loop.train_and_evaluate(tiny_runs.tiny_config(batch_size=96, steps=3), folder)
    return folder


def images(count: int) -> np.ndarray:
    return tiny_runs.random_split(count, seed=count).images


def live(folder: Path, seen: np.ndarray) -> np.ndarray:
    """Logits of the run's student after its last step, by the model itself."""
    variables = restore.load_variables(folder, "student", "latest")
    inputs = transforms.normalize(seen, tiny_runs.PREPROCESS, jnp.float32)
    return np.asarray(models.create("two_layers", 10).apply(variables, inputs, train=False))


def test_a_network_is_read_without_its_data(workdir: Path) -> None:
    network = trained_network.read(workdir, "student", "latest")
    assert network.facts == stablehlo.ModelInfo("student", "two_layers", tuple("0123456789"), tiny_runs.SHAPE)
    assert network.preprocess == tiny_runs.PREPROCESS
    np.testing.assert_allclose(network.logits(images(7)), live(workdir, images(7)), atol=1e-6)


def test_stablehlo_gives_the_live_logits_for_any_batch_size(workdir: Path, tmp_path: Path) -> None:
    path = export.export(workdir, "student", "stablehlo", "latest", tmp_path / "student.stablehlo")
    artefact = stablehlo.read(path)
    plain = jax_export.deserialize(bytearray(path.read_bytes()))  # as a program without this package would
    for count in (1, 7, 64):
        expected = live(workdir, images(count))
        np.testing.assert_allclose(artefact.logits(images(count)), expected, atol=1e-5)
        np.testing.assert_allclose(plain.call(images(count)), expected, atol=1e-5)
    assert set(plain.platforms) == {"cpu", "cuda", "rocm", "tpu"}


def test_safetensors_give_the_live_logits(workdir: Path, tmp_path: Path) -> None:
    path = export.export(workdir, "student", "safetensors", "latest", tmp_path / "deep" / "student.safetensors")
    flat = pytorch.read(path)
    again = pytorch.state_dict(restore.load_variables(workdir, "student", "latest"))
    assert flat.keys() == again.keys()
    for name in flat:
        np.testing.assert_array_equal(flat[name], again[name])
    assert path.stat().st_mode & 0o044, "others may read it"


@pytest.mark.parametrize("model", KINDS)
def test_every_kind_of_network_takes_any_batch_size(model: str, tmp_path: Path) -> None:
    """As a program: its shapes are those of a batch whose size is a symbol."""
    shape = KINDS[model]
    module = models.create(model, 10)
    variables = jax.tree.map(
        lambda x: np.zeros(x.shape, x.dtype),
        jax.eval_shape(lambda key: init_variables(module, key, shape), jax.random.PRNGKey(0)),
    )
    facts = stablehlo.ModelInfo("student", model, tuple("0123456789"), (shape[0], shape[1], shape[2]))
    how = dataset.PUBLISHED["cifar100"]
    network = trained_network.TrainedNetwork(facts, module, variables, how)
    stablehlo.write(tmp_path / "net.stablehlo", network.logits, facts)
    assert stablehlo.read(tmp_path / "net.stablehlo").facts == facts


@pytest.mark.parametrize(
    ("flags", "answer"),
    [
        (["--network=pupil"], "has no network 'pupil'"),
        (["--network=student", "--which=77"], "holds the steps 3, not 77"),
        (["--network=student", "--output=x.pth"], "--output x.pth does not end in .stablehlo"),
        (["--network=student", "--output=/proc/none/x.stablehlo"], "cannot be written"),
        (["--network=student", "--workdir=nowhere"], "--workdir nowhere: config.json cannot be read"),
    ],
)
def test_bad_input_is_answered_in_one_line(
    flags: list[str], answer: str, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["export", f"--workdir={workdir}", "--format=stablehlo", *flags])
    with pytest.raises(SystemExit) as ended:
        export.main()
    assert str(ended.value).startswith("switokd_jax: ")
    assert answer in str(ended.value)
    assert "\n" not in str(ended.value)
    assert not (workdir / "exports").exists()


def test_the_command(workdir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [f"--workdir={workdir}", "--network=teacher", "--format=safetensors"]
    monkeypatch.setattr(sys, "argv", ["export", *flags])
    export.main()
    path = workdir / "exports" / "teacher.safetensors"
    assert capsys.readouterr().out == f"wrote {path}\n"
    assert pytorch.read(path).keys() == pytorch.state_dict(restore.load_variables(workdir, "teacher", "best")).keys()
    path.unlink()
    path.parent.rmdir()


def test_a_record_of_before_says_what_to_do(workdir: Path, tmp_path: Path) -> None:
    """Records did not say what the classes are at first."""
    old = json.loads((workdir / "record.json").read_text())
    del old["starts"][-1]["data"]["classes"]
    (tmp_path / "config.json").write_text((workdir / "config.json").read_text())
    (tmp_path / "record.json").write_text(json.dumps(old))
    with pytest.raises(UserError, match="start the run's command again"):
        trained_network.read(tmp_path, "student")


@pytest.mark.torch
@pytest.mark.parametrize("model", ["wrn_10_1", "mobilenetv2_0.5", "resnet8"])
def test_torch_gives_the_same_logits(model: str, tmp_path: Path) -> None:
    """Loaded into a plain module of the official structure, with statistics that matter."""
    import torch

    from torch_networks import create

    module = models.create(model, 10)
    chance = np.random.default_rng(0)
    drawn = jax.jit(lambda key: init_variables(module, key, (32, 32, 3)))(jax.random.PRNGKey(0))
    variables = drawn | {
        "batch_stats": jax.tree.map(lambda x: x + 0.1 * chance.random(x.shape).astype(x.dtype), drawn["batch_stats"])
    }
    how = dataset.PUBLISHED["cifar100"]
    network = trained_network.TrainedNetwork(
        stablehlo.ModelInfo("student", model, tuple("0123456789"), (32, 32, 3)), module, variables, how
    )
    pytorch.write(tmp_path / "net.pth", network.variables)
    plain = create(model, 10)
    found = plain.load_state_dict(torch.load(tmp_path / "net.pth", weights_only=True)["state_dict"], strict=False)
    assert not found.unexpected_keys
    assert all(name.endswith("num_batches_tracked") for name in found.missing_keys)
    plain.eval()
    call = jax.jit(network.logits)
    for count in (1, 7, 64):
        seen = chance.integers(0, 256, (count, 32, 32, 3)).astype(np.uint8)
        inputs = (seen / 255.0 - np.asarray(how.mean)) / np.asarray(how.std)
        with torch.no_grad():
            expected = plain(torch.from_numpy(inputs.transpose(0, 3, 1, 2).astype(np.float32))).numpy()
        np.testing.assert_allclose(call(seen), expected, atol=1e-5)
