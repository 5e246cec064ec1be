"""Reading and writing PyTorch checkpoints."""

from __future__ import annotations

import argparse
import functools
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from safetensors.numpy import save_file

import tiny_runs
from switokd_jax import models
from switokd_jax.errors import UserError
from switokd_jax.interop import pytorch
from switokd_jax.train import init_state
from switokd_jax.workdir import restore

NETWORKS = [
    *("wrn_16_2", "wrn_10_1", "resnet20", "mobilenetv2_0.5", "mobilenet", "mobilenetv2_tiny_1.4"),
    *("resnet18", "resnet50", "resnet18_cifar", "resnet50_cifar", "resnet34_tiny", "vgg8", "vgg16", "vit_small"),
    *("swin_tiny", "wrn_10_1_rd", "wrn_16_2_rd", "resnet14_rd", "resnet8x4"),
]


def random_state_dict(name: str, classes: int = 7) -> dict[str, np.ndarray]:
    """Returns an official-layout state_dict of random numbers, in alphabetical order as safetensors files are."""
    rng = np.random.default_rng(0)
    official = {}
    for path, shape in pytorch.variable_shapes(name, classes).items():
        value = rng.normal(size=shape).astype(np.float32)
        if path[-1] == "kernel":
            value = value.transpose((3, 2, 0, 1) if value.ndim == 4 else (1, 0))
        official[pytorch.torch_name(path)] = value
    return dict(sorted(official.items()))


def for_gray_images(official: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Keeps the first input channel of the stem."""
    return {**official, "conv1.weight": official["conv1.weight"][:, :1]}


def config_that_starts_from(official: dict[str, np.ndarray], folder: Path) -> ConfigDict:
    """A config whose teacher, a resnet8, starts from a file of these tensors."""
    save_file({name: np.ascontiguousarray(value) for name, value in official.items()}, folder / "net.safetensors")
    c = tiny_runs.tiny_config("resnet8")
    c.networks.teacher.init_from = str(folder / "net.safetensors")
    return c


@pytest.fixture
def few_usual_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves three of the networks that a file which does not fit is compared with: the others take long to build."""
    monkeypatch.setattr(pytorch, "USUAL_NETWORKS", ("resnet8", "resnet20", "wrn_10_1"))


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_conversion_to_flax_and_back_changes_nothing(name: str) -> None:
    official = random_state_dict(name)
    converted = pytorch.state_dict(pytorch.variables(name, official, 7))
    assert converted.keys() == official.keys()
    for tensor, value in official.items():
        np.testing.assert_array_equal(converted[tensor], value, err_msg=tensor)


def test_state_dicts_have_the_official_names() -> None:
    assert {"layer1.0.shortcut.0.weight", "bn1.running_var", "linear.bias"} <= random_state_dict("wrn_16_2").keys()
    assert {"blocks.3.0.conv.4.running_mean", "conv2.0.weight", "classifier.0.bias"} <= random_state_dict(
        "mobilenetv2_0.5"
    ).keys()
    assert {"layers.12.conv2.weight", "layers.0.bn1.weight"} <= random_state_dict("mobilenet").keys()
    assert {"block2.layer.0.convShortcut.weight", "fc.bias"} <= random_state_dict("wrn_10_1_rd").keys()
    assert {"layer1.0.downsample.1.running_var", "fc.bias"} <= random_state_dict("resnet8x4").keys()
    swin = random_state_dict("swin_tiny")
    assert {"layers.1.downsample.reduction.weight", "patch_embed.norm.bias", "head.fc.bias"} <= swin.keys()
    assert swin["layers.2.blocks.5.attn.relative_position_bias_table"].shape == (49, 12)


def test_data_parallel_prefix_and_counters_are_ignored() -> None:
    official = {f"module.{name}": value for name, value in random_state_dict("resnet8").items()}
    official["module.bn1.num_batches_tracked"] = np.asarray(7)
    assert pytorch.variables("resnet8", official, 7).keys() == {"params", "batch_stats"}


def test_the_stem_determines_the_image_channels() -> None:
    official = for_gray_images(random_state_dict("resnet8"))
    assert pytorch.variables("resnet8", official, 7)["params"]["conv1"]["kernel"].shape == (3, 3, 1, 16)


@pytest.mark.slow
@pytest.mark.usefixtures("few_usual_networks")
def test_a_missing_tensor_is_named() -> None:
    official = random_state_dict("resnet8")
    del official["bn1.weight"]
    with pytest.raises(ValueError, match=r"resnet8: the checkpoint has no tensor 'bn1.weight'"):
        pytorch.variables("resnet8", official, 7)


def test_a_tensor_of_another_shape_is_named() -> None:
    with pytest.raises(ValueError, match=r"tensor 'linear.\w+' has shape .* 10 classes"):
        pytorch.variables("resnet8", random_state_dict("resnet8"), 10)


def test_a_tensor_left_over_is_named() -> None:
    official = {**random_state_dict("resnet8"), "extra": np.zeros(3)}
    with pytest.raises(ValueError, match="resnet8 has no tensor 'extra'"):
        pytorch.variables("resnet8", official, 7)


def test_safetensors_are_read_as_they_were_written(tmp_path: Path) -> None:
    written = pytorch.variables("resnet8", random_state_dict("resnet8"), 7)
    pytorch.write(tmp_path / "net.safetensors", written)
    read = pytorch.variables("resnet8", pytorch.read(tmp_path / "net.safetensors"), 7)
    tiny_runs.assert_same_bits(written, read)
    assert [path.name for path in tmp_path.iterdir()] == ["net.safetensors"]


@pytest.mark.parametrize("content", [b"", b"\xff" * 100, b"\x08" + b"\0" * 7 + b"{}"])
def test_broken_safetensors_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "net.safetensors"
    path.write_bytes(content)
    with pytest.raises((UserError, ValueError), match=r"net.safetensors|no tensor"):
        pytorch.variables("resnet8", pytorch.read(path), 7)


def test_a_missing_file_is_named() -> None:
    with pytest.raises(UserError, match=r"nowhere.safetensors is not a file"):
        pytorch.read("nowhere.safetensors")


@pytest.mark.slow
@pytest.mark.usefixtures("few_usual_networks")
def test_a_network_starts_from_a_file(tmp_path: Path) -> None:
    """A file of another network is refused, and the message names the field."""
    official = for_gray_images(random_state_dict("resnet8", classes=10))
    c = config_that_starts_from(official, tmp_path)
    state = init_state.init_state(tiny_runs.tiny_plan(c, 64)).networks["teacher"]
    tiny_runs.assert_same_bits(state.params, pytorch.variables("resnet8", official, 10)["params"])
    c.networks.teacher.model = "resnet14"
    with pytest.raises(UserError, match=r"teacher.init_from: .*net\.safetensors': resnet14: .* no tensor"):
        init_state.init_state(tiny_runs.tiny_plan(c, 64))


def logits(name: str, variables: Any, images: np.ndarray) -> Any:
    """Computes the logits of our network."""
    return jax.jit(functools.partial(models.create(name, 7).apply, train=False))(variables, images)


@pytest.mark.torch
@pytest.mark.parametrize("name", NETWORKS)
def test_logits_are_those_of_the_torch_network(name: str, tmp_path: Path) -> None:
    import torch

    import torch_networks

    official = torch_networks.create(name, 7).eval()
    path = tmp_path / "net.pth.tar"
    torch.save({"state_dict": official.state_dict(), "best_acc": 67.2, "epoch": 3}, path)
    variables = pytorch.variables(name, pytorch.read(path), 7)
    images = np.random.default_rng(0).normal(size=(3, 32, 32, 3)).astype(np.float32)
    actual = logits(name, variables, images)
    with torch.no_grad():
        expected = official(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    assert np.abs(actual - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.torch
def test_a_written_file_loads_strictly_into_the_torch_network(tmp_path: Path) -> None:
    import torch

    import torch_networks

    variables = pytorch.variables("wrn_10_1", random_state_dict("wrn_10_1"), 7)
    variables["batch_stats"] = jax.tree.map(np.abs, variables["batch_stats"])
    pytorch.write(tmp_path / "net.pth", variables)
    official = torch_networks.create("wrn_10_1", 7).eval()
    loaded = torch.load(tmp_path / "net.pth", weights_only=True)["state_dict"]
    counters = {k: v for k, v in official.state_dict().items() if k.endswith("num_batches_tracked")}
    official.load_state_dict({**loaded, **counters}, strict=True)
    images = np.random.default_rng(0).normal(size=(3, 16, 16, 3)).astype(np.float32)
    actual = logits("wrn_10_1", variables, images)
    with torch.no_grad():
        expected = official(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    assert np.abs(actual - expected).max() <= 1e-4 * np.abs(expected).max()


class Payload:
    """Object whose unpickling runs a command."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


@pytest.mark.torch
def test_malicious_pickle_is_refused(tmp_path: Path) -> None:
    import torch

    proof = tmp_path / "executed"
    torch.save({"state_dict": Payload(proof)}, tmp_path / "evil.pth.tar")
    with pytest.raises(UserError, match=r"evil.pth.tar holds a Python object, posix.system, and loading"):
        pytorch.read(tmp_path / "evil.pth.tar")
    assert not proof.exists()


@pytest.mark.torch
def test_a_refused_pickle_names_its_class_in_one_plain_line(tmp_path: Path) -> None:
    """torch.load's own message has colour codes, and ends in the middle of a sentence."""
    import torch

    torch.save({"state_dict": {}, "args": argparse.Namespace(lr=0.1)}, tmp_path / "net.pth")
    with pytest.raises(UserError) as raised:
        pytorch.read(tmp_path / "net.pth")
    message = str(raised.value)
    assert "argparse.Namespace" in message
    assert "\x1b" not in message
    assert "\n" not in message


@pytest.mark.torch
def test_bfloat16_is_read_as_float32(tmp_path: Path) -> None:
    import torch

    weights = torch.tensor([0.1, -2.5, 3e38]).to(torch.bfloat16)
    torch.save({"model": {"conv1.weight": weights, "conv1.bias": torch.ones(1)}}, tmp_path / "net.pth")
    read = pytorch.read(tmp_path / "net.pth")
    assert read["conv1.weight"].dtype == np.float32
    np.testing.assert_array_equal(read["conv1.weight"], weights.float().numpy())


@pytest.mark.torch
@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 nothing", b"text"])
def test_broken_torch_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "net.pth").write_bytes(content)
    with pytest.raises(UserError, match=r"net.pth was refused"):
        pytorch.read(tmp_path / "net.pth")


@pytest.mark.torch
def test_a_file_without_a_state_dict_is_refused(tmp_path: Path) -> None:
    import torch

    torch.save([1, 2, 3], tmp_path / "list.pth")
    with pytest.raises(UserError, match="contains no state_dict"):
        pytorch.read(tmp_path / "list.pth")


def prefixed(prefix: str, classes: int = 10) -> dict[str, np.ndarray]:
    return {prefix + name: value for name, value in random_state_dict("resnet8", classes).items()}


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "model.", "module.student.", "backbone.net."])
def test_a_prefix_of_all_names_is_removed(prefix: str, caplog: pytest.LogCaptureFixture) -> None:
    expected = pytorch.variables("resnet8", prefixed(""), 10)
    with caplog.at_level("WARNING", logger="absl"):
        others = {"criterion.weight": np.zeros(3)} if prefix else {}
        found = pytorch.variables("resnet8", {**prefixed(prefix), **others}, 10)
    tiny_runs.assert_same_bits(found, expected)
    told = f"those below '{prefix}' in the file; 1 other tensors are left out"
    assert (told in caplog.text) == (prefix not in ("", "module."))


def test_the_name_of_the_network_decides_between_several_that_fit() -> None:
    teacher = {name: value + 1 for name, value in prefixed("module.teacher.").items()}
    both = {**prefixed("module.student."), **teacher}
    with pytest.raises(
        ValueError, match=r"several networks .* fit, 'module\.student\.' and 'module\.teacher\.'; save one"
    ):
        pytorch.variables("resnet8", both, 10)
    for name, tensors in (("student", prefixed("")), ("teacher", {n: v + 1 for n, v in prefixed("").items()})):
        found = pytorch.variables("resnet8", both, 10, network=name)
        tiny_runs.assert_same_bits(found, pytorch.variables("resnet8", tensors, 10))


def test_a_file_that_does_not_fit_is_compared_with_usual_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {"resnet14", "resnet8"} < {*pytorch.USUAL_NETWORKS}
    monkeypatch.setattr(pytorch, "USUAL_NETWORKS", ("resnet14", "vgg8", "resnet8", "wrn_10_1"))
    with pytest.raises(ValueError, match=r"resnet14: .* its first are \S+, \S+, \S+; it looks like resnet8$"):
        pytorch.variables("resnet14", prefixed(""), 10)


def test_a_new_head_replaces_one_of_another_number_of_classes(tmp_path: Path) -> None:
    official = for_gray_images(prefixed("", classes=100))
    c = config_that_starts_from(official, tmp_path)
    with pytest.raises(
        UserError, match=r"net\.safetensors': resnet8: tensor 'linear\.\w+' has shape .*10 classes were asked"
    ):
        init_state.init_state(tiny_runs.tiny_plan(c, 64))
    c.networks.teacher.head = "new"
    loaded = init_state.init_state(tiny_runs.tiny_plan(c, 64)).networks["teacher"].params
    fresh = init_state.init_state(tiny_runs.tiny_plan(tiny_runs.tiny_config("resnet8"), 64)).networks["teacher"].params
    tiny_runs.assert_same_bits(loaded["linear"], fresh["linear"])
    body = pytorch.variables("resnet8", official, 100)["params"]
    tiny_runs.assert_same_bits({**loaded, "linear": 0}, {**body, "linear": 0})


def test_weights_that_are_not_finite_are_named(tmp_path: Path) -> None:
    official = for_gray_images(prefixed(""))
    official["bn1.weight"] = official["bn1.weight"].copy()
    official["bn1.weight"][3] = np.nan
    c = config_that_starts_from(official, tmp_path)
    with pytest.raises(
        UserError, match=r"net\.safetensors' has NaN or infinite numbers at \['params'\]\['bn1'\]\['scale'\]"
    ):
        init_state.init_state(tiny_runs.tiny_plan(c, 64))


def test_a_source_that_is_neither_file_nor_run_is_told_so(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").touch()
    (tmp_path / "run" / "checkpoints" / "best" / "student").mkdir(parents=True)
    for source, message in (
        (tmp_path / "weights.bin", r"weights\.bin' has the suffix '\.bin'; weights are read from \.pth"),
        (tmp_path / "run", r"run' names no network; write \S+run:student@best"),
        (tmp_path / "nothing", r"nothing' is no file and names no run"),
    ):
        with pytest.raises(UserError, match=message):
            restore.parse_checkpoint_uri(str(source))
