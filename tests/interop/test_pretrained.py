"""Pretrained weights by name. Modules in the place of timm, torchvision and huggingface_hub give local weights."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import tiny_runs
from switokd_jax.config import DataConfig
from switokd_jax.data import dataset
from switokd_jax.errors import UserError
from switokd_jax.interop import pretrained, pytorch
from switokd_jax.train import init_state

CLASSES = 10
MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.25, 0.2)


class Tensor:
    """What is used of a torch tensor."""

    def __init__(self, value: np.ndarray):
        self.value = value

    def detach(self) -> Tensor:
        """Returns itself: it has no gradient."""
        return self

    def float(self) -> Tensor:
        """Returns itself: it is float32."""
        return self

    def numpy(self) -> np.ndarray:
        """Returns the array."""
        return self.value


def weights(model: str = "resnet8", image_size: int = 32, channels: int = 3) -> dict[str, np.ndarray]:
    """Random tensors with torch's names and layouts."""
    rng = np.random.default_rng(0)
    shapes = pytorch.variable_shapes(model, CLASSES, image_size)
    tree: dict[str, np.ndarray] = {}
    for path, shape in shapes.items():
        value = rng.normal(size=shape).astype(np.float32)
        if len(shape) == 4:
            value = value[:, :, :channels] if shape[2] == 3 else value
            value = value.transpose(3, 2, 0, 1)
        tree[pytorch.torch_name(path)] = np.ascontiguousarray(
            value.T if path[-1] == "kernel" and value.ndim == 2 else value
        )
    return tree


def as_module(monkeypatch: pytest.MonkeyPatch, name: str, **content: Any) -> None:
    module = ModuleType(name)
    for key, value in content.items():
        setattr(module, key, value)
    monkeypatch.setitem(sys.modules, name, module)


@pytest.fixture
def timm(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A timm that knows 'resnet8' and two transformers; returns the arguments of its calls."""
    calls: list[dict[str, Any]] = []

    def create_model(name: str, **options: Any) -> Any:
        calls.append(options)
        tensors = {key: Tensor(value) for key, value in weights(channels=1).items()}
        return SimpleNamespace(state_dict=lambda: tensors, pretrained_cfg={"mean": MEAN[:1], "std": STD[:1]})

    known = ("resnet8", "vit_small_patch16_224", "swin_tiny_patch4_window7_224")
    as_module(
        monkeypatch,
        "timm",
        is_model=lambda name: name in known,
        create_model=create_model,
        get_pretrained_cfg=lambda name: SimpleNamespace(fixed_input_size=not name.startswith("resnet"), tag="a1_in1k"),
    )
    return calls


@pytest.fixture
def torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    """A torchvision with ResNet8_Weights.V1, and with ResNet8_Weights.V2, which has to be downloaded."""

    def get_weight(name: str) -> Any:
        def get_state_dict(**options: Any) -> dict[str, Tensor]:
            assert options["check_hash"]
            if name.endswith("V2"):
                raise OSError("Name or service not known")
            return {key: Tensor(value) for key, value in weights().items()}

        if name == "resnet8.V1":
            raise TypeError("issubclass() arg 1 must be a class")
        if not name.startswith("ResNet8_Weights.V"):
            raise ValueError(name)
        transforms = SimpleNamespace(mean=list(MEAN), std=list(STD))
        return SimpleNamespace(get_state_dict=get_state_dict, transforms=lambda: transforms, url="https://host/v2.pth")

    as_module(monkeypatch, "torchvision", models=SimpleNamespace(get_weight=get_weight))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub with one repository, 'somebody/net'."""
    save_file(weights(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"pretrained_cfg": {"mean": MEAN, "std": STD}}))

    def hf_hub_download(repository: str, name: str) -> str:
        if repository != "somebody/net":
            raise OSError("404")
        return str(tmp_path / name)

    as_module(monkeypatch, "huggingface_hub", hf_hub_download=hf_hub_download)


@pytest.mark.usefixtures("torchvision", "hub")
@pytest.mark.parametrize("source", ["torchvision:ResNet8_Weights.V1", "hf:somebody/net"])
def test_weights_and_constants_are_read(source: str) -> None:
    read = pretrained.read(source, 32)
    assert (read.mean, read.std) == (MEAN, STD)
    for name, value in weights().items():
        np.testing.assert_array_equal(read.state_dict[name], value)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet8", {}),
        ("vit_small_patch16_224", {"img_size": 64}),
        ("swin_tiny_patch4_window7_224", {"img_size": 64, "window_size": 4}),
    ],
)
def test_timm_adapts_tables_of_positions(name: str, options: dict[str, Any], timm: list[dict[str, Any]]) -> None:
    pretrained.read(f"timm:{name}", 64)
    assert timm == [{"pretrained": True, **options}]


@pytest.mark.usefixtures("timm", "torchvision", "hub")
@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("timm:resnet9", "timm:resnet9: timm has no such model"),
        ("torchvision:Weights", "torchvision:Weights: no such weights; give them as ResNet50_Weights.IMAGENET1K_V2"),
        ("torchvision:resnet8.V1", "torchvision:resnet8.V1: no such weights"),
        ("torchvision:ResNet8_Weights.V2", "fetch https://host/v2.pth elsewhere and give its path as init_from"),
        ("hf:somebody/else", "fetch https://huggingface.co/somebody/else/resolve/main/model.safetensors elsewhere"),
    ],
)
def test_what_cannot_be_read_is_one_line(source: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        pretrained.read(source, 32)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_the_file_that_timm_would_fetch_is_named(timm: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str, **options: Any) -> Any:
        raise RuntimeError("no network")

    monkeypatch.setattr(sys.modules["timm"], "create_model", fail)
    for name in ("resnet8", "resnet8.a1_in1k"):
        with pytest.raises(UserError, match=r"huggingface.co/timm/resnet8.a1_in1k/resolve/main/model.safetensors"):
            pretrained.read(f"timm:{name}", 32)


@pytest.mark.parametrize(
    ("source", "module", "extra"), [("timm:a", "timm", "timm"), ("hf:a/b", "huggingface_hub", "hf")]
)
def test_a_missing_library_is_named(source: str, module: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=rf"needs {module}: pip install 'switokd_jax\[{extra}\]'"):
        pretrained.read(source, 32)


@pytest.mark.usefixtures("timm")
def test_a_network_starts_from_them_with_a_word_about_other_constants(caplog: pytest.LogCaptureFixture) -> None:
    c = tiny_runs.tiny_config("resnet8")
    c.networks.teacher.init_from = "timm:resnet8"
    run = tiny_runs.tiny_plan(c, 64)
    with caplog.at_level(logging.WARNING):
        state = init_state.init_state(run)
    kernel = state.networks["teacher"].params["linear"]["kernel"]
    np.testing.assert_array_equal(kernel, weights()["linear.weight"].T)
    assert "expects --config.data.mean='(0.5,)' --config.data.std='(0.25,)'" in caplog.text


def test_constants_of_the_config_replace_those_of_the_data_set() -> None:
    preprocess = dataset.load_dataset(DataConfig(name="digits", mean=(0.5,), std=(2,)), 0).preprocess
    assert (preprocess.mean, preprocess.std, preprocess.scale) == ((0.5,), (2.0,), 16.0)


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        ((0.5,), (), r"config.data.std is \(\); give 1 numbers, one a channel, above 0"),
        ((0.5, 0.5), (1.0,), r"config.data.mean is \(0.5, 0.5\); give 1 numbers"),
        ((0.5,), (0.0,), r"config.data.std is \(0.0,\)"),
        (("half",), (1.0,), r"config.data.mean is \('half',\)"),
    ],
)
def test_constants_that_cannot_be_used_are_refused(mean: Any, std: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        dataset.load_dataset(DataConfig(name="digits", mean=mean, std=std), 0)
