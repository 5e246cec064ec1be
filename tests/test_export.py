"""Trained networks outside of their run: reading and exporting them; their logits stay the same."""

from __future__ import annotations

import dataclasses
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

# One network of each class, with the shape of its images.
ONE_OF_EACH_CLASS = {
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
    "resnet8_rd": (32, 32, 3),
    "wrn_10_1_rd": (32, 32, 3),
}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "run"
    loop.train_and_evaluate(tiny_runs.tiny_config(batch_size=96, steps=3), folder)
    return folder


def images(count: int) -> np.ndarray:
    return tiny_runs.random_split(count, seed=count).images


def live_logits(folder: Path, images: np.ndarray) -> np.ndarray:
    """Computes the logits of the run's student after its last step with the model itself."""
    variables = restore.load_variables(folder, "student", "latest")
    inputs = transforms.normalize(images, tiny_runs.PREPROCESS, jnp.float32)
    return np.asarray(models.create("two_layers", 10).apply(variables, inputs, train=False))


@pytest.mark.slow
def test_a_network_is_read_without_its_data(workdir: Path) -> None:
    network = trained_network.read(workdir, "student", "latest")
    assert network.model_info == stablehlo.ModelInfo("student", "two_layers", tuple("0123456789"), tiny_runs.SHAPE)
    assert network.preprocess == tiny_runs.PREPROCESS
    np.testing.assert_allclose(network.logits(images(7)), live_logits(workdir, images(7)), atol=1e-6)


@pytest.mark.slow
def test_stablehlo_gives_the_live_logits_for_any_batch_size(workdir: Path, tmp_path: Path) -> None:
    path = export.export(workdir, "student", "stablehlo", "latest", tmp_path / "student.stablehlo")
    exported = stablehlo.read(path)
    program = jax_export.deserialize(bytearray(path.read_bytes()))  # as users without this package read it
    for count in (1, 7, 64):
        expected = live_logits(workdir, images(count))
        np.testing.assert_allclose(exported.logits(images(count)), expected, atol=1e-5)
        np.testing.assert_allclose(program.call(images(count)), expected, atol=1e-5)
    assert set(program.platforms) == {"cpu", "cuda", "rocm", "tpu"}


@pytest.mark.slow
def test_a_program_that_this_jax_cannot_read_names_the_jax_that_wrote_it(
    workdir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And until when it could be read, as the command says; a file of version 0.1 tells neither."""
    path = tmp_path / "student.stablehlo"
    flags = [f"--workdir={workdir}", "--network=student", "--which=latest", "--format=stablehlo", f"--output={path}"]
    monkeypatch.setattr(sys, "argv", ["export", *flags])
    export.main()
    until = stablehlo.read(path).model_info.readable_until
    assert capsys.readouterr().out == f"wrote {path}; new releases of JAX promise to read it until {until}\n"
    program, info = stablehlo.unpack(path, path.read_bytes())
    assert (info.jax_version, len(info.written)) == (jax.__version__, len("2026-11-29"))
    old = dataclasses.replace(info, jax_version="0.4.38", written="2025-01-31")
    monkeypatch.setattr(stablehlo.export, "deserialize", lambda content: 1 / 0)
    for named, message in (
        (
            old,
            r"no program for this JAX \S+: JAX 0\.4\.38 wrote it on 2025-01-31, .* read it until 2025-07-30 \(division",
        ),
        (dataclasses.replace(info, jax_version="", written=""), r"no program for this JAX \S+ \(division"),
    ):
        path.write_bytes(stablehlo.pack(program, json.dumps(dataclasses.asdict(named)).encode()))
        with pytest.raises(UserError, match=message):
            stablehlo.read(path)


@pytest.mark.slow
def test_safetensors_have_the_live_weights(workdir: Path, tmp_path: Path) -> None:
    path = export.export(workdir, "student", "safetensors", "latest", tmp_path / "deep" / "student.safetensors")
    tensors = pytorch.read(path)
    expected = pytorch.state_dict(restore.load_variables(workdir, "student", "latest"))
    assert tensors.keys() == expected.keys()
    for name in tensors:
        np.testing.assert_array_equal(tensors[name], expected[name])
    assert path.stat().st_mode & 0o044, "others may read it"


@pytest.mark.slow
@pytest.mark.parametrize("model", ONE_OF_EACH_CLASS)
def test_every_network_exports_for_any_batch_size(model: str, tmp_path: Path) -> None:
    """The program is traced for a symbolic batch size."""
    shape = ONE_OF_EACH_CLASS[model]
    module = models.create(model, 10)
    variables = jax.tree.map(
        lambda x: np.zeros(x.shape, x.dtype),
        jax.eval_shape(lambda key: init_variables(module, key, shape), jax.random.key(0)),
    )
    model_info = stablehlo.ModelInfo("student", model, tuple("0123456789"), (shape[0], shape[1], shape[2]))
    network = trained_network.TrainedNetwork(model_info, module, variables, dataset.PUBLISHED["cifar100"])
    stablehlo.write(tmp_path / "net.stablehlo", network.logits, model_info)
    found = stablehlo.read(tmp_path / "net.stablehlo").model_info
    assert dataclasses.replace(found, jax_version="", written="") == model_info


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--network=pupil"], "has no network 'pupil'"),
        (["--network=student", "--which=77"], "holds the steps 3, not 77"),
        (["--network=student", "--output=x.pth"], "--output x.pth does not end in .stablehlo"),
        (["--network=student", "--output=/proc/none/x.stablehlo"], "cannot be written"),
        (["--network=student", "--workdir=nowhere"], "--workdir nowhere: config.json cannot be read"),
    ],
)
def test_bad_input_ends_the_command_with_one_line(
    flags: list[str], message: str, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["export", f"--workdir={workdir}", "--format=stablehlo", *flags])
    with pytest.raises(SystemExit) as raised:
        export.main()
    assert str(raised.value).startswith("switokd_jax: ")
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not (workdir / "exports").exists()


@pytest.mark.slow
def test_the_command_writes_into_the_workdir_and_prints_the_path(
    workdir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [f"--workdir={workdir}", "--network=teacher", "--format=safetensors"]
    monkeypatch.setattr(sys, "argv", ["export", *flags])
    export.main()
    path = workdir / "exports" / "teacher.safetensors"
    assert capsys.readouterr().out == f"wrote {path}\n"
    assert pytorch.read(path).keys() == pytorch.state_dict(restore.load_variables(workdir, "teacher", "best")).keys()
    path.write_text("somebody's notes")
    with pytest.raises(SystemExit, match=r"teacher.safetensors is there already; give --overwrite to replace it"):
        export.main()
    assert path.read_text() == "somebody's notes"
    monkeypatch.setattr(sys, "argv", ["export", *flags, "--overwrite"])
    export.main()
    assert pytorch.read(path)
    path.unlink()
    path.parent.rmdir()


@pytest.mark.slow
def test_a_model_that_is_not_registered_is_named(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run's config file registers it, and a command that reads the run has to be told."""
    monkeypatch.delitem(models.MODELS, "two_layers")
    with pytest.raises(UserError, match=r"networks.student.model 'two_layers' is unknown; .* --config=FILE"):
        trained_network.read(workdir, "student")


@pytest.mark.slow
def test_a_record_without_class_names_is_refused_with_the_remedy(workdir: Path, tmp_path: Path) -> None:
    """The first versions wrote no class names."""
    old = json.loads((workdir / "record.json").read_text())
    del old["starts"][-1]["data"]["classes"]
    (tmp_path / "config.json").write_text((workdir / "config.json").read_text())
    (tmp_path / "record.json").write_text(json.dumps(old))
    with pytest.raises(UserError, match="repeat the run's command, which adds them"):
        trained_network.read(tmp_path, "student")


@pytest.mark.torch
@pytest.mark.parametrize("model", ["wrn_10_1", "mobilenetv2_0.5", "resnet8"])
def test_torch_gives_the_same_logits(model: str, tmp_path: Path) -> None:
    """The weights are loaded into a plain module of the official structure, with running statistics that matter."""
    import torch

    from torch_networks import create

    module = models.create(model, 10)
    rng = np.random.default_rng(0)
    variables = jax.jit(lambda key: init_variables(module, key, (32, 32, 3)))(jax.random.key(0))
    variables["batch_stats"] = jax.tree.map(
        lambda x: x + 0.1 * rng.random(x.shape).astype(x.dtype), variables["batch_stats"]
    )
    preprocess = dataset.PUBLISHED["cifar100"]
    network = trained_network.TrainedNetwork(
        stablehlo.ModelInfo("student", model, tuple("0123456789"), (32, 32, 3)), module, variables, preprocess
    )
    pytorch.write(tmp_path / "net.pth", network.variables)
    torch_network = create(model, 10)
    tensors = torch.load(tmp_path / "net.pth", weights_only=True)["state_dict"]
    keys = torch_network.load_state_dict(tensors, strict=False)
    assert not keys.unexpected_keys
    assert all(name.endswith("num_batches_tracked") for name in keys.missing_keys)
    torch_network.eval()
    logits = jax.jit(network.logits)
    for count in (1, 7, 64):
        images = rng.integers(0, 256, (count, 32, 32, 3)).astype(np.uint8)
        inputs = (images / 255.0 - np.asarray(preprocess.mean)) / np.asarray(preprocess.std)
        with torch.no_grad():
            expected = torch_network(torch.from_numpy(inputs.transpose(0, 3, 1, 2).astype(np.float32))).numpy()
        np.testing.assert_allclose(logits(images), expected, atol=1e-5)
