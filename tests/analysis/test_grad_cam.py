"""Grad-CAM against a forward and backward pass in NumPy, and the taps of all kinds of networks."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.interpreters import partial_eval
from matplotlib import image as images_of

import tiny_runs
from switokd_jax import models
from switokd_jax.analysis import grad_cam, trained_network
from switokd_jax.errors import UserError
from switokd_jax.figures import heat
from switokd_jax.interop.stablehlo import ModelInfo
from switokd_jax.models import layers
from switokd_jax.state import init_variables

LABELS = np.array([3, 1, 4])


def network(model: str = "two_layers", shape: tuple[int, int, int] = tiny_runs.SHAPE) -> trained_network.TrainedNetwork:
    """An untrained network, its running statistics and BatchNorm parameters drawn too."""
    module = models.create(model, 10)
    # Zeros where only shapes matter: to draw some of the networks takes many seconds.
    shapes = jax.eval_shape(lambda key: init_variables(module, key, shape), jax.random.PRNGKey(0))
    variables = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    if model == "two_layers":
        variables = init_variables(module, jax.random.PRNGKey(0), shape)
    rng = np.random.default_rng(1)
    drawn = jax.tree.map(
        lambda x: jnp.asarray(rng.uniform(0.5, 1.5, x.shape), x.dtype) if x.ndim == 1 else x, variables
    )
    preprocess = dataclasses.replace(tiny_runs.PREPROCESS, mean=(0.3,) * shape[-1], std=(0.4,) * shape[-1])
    return trained_network.TrainedNetwork(
        ModelInfo("student", model, tuple("0123456789"), shape), module, drawn, preprocess
    )


def convolve(x: np.ndarray, kernel: np.ndarray, stride: int) -> np.ndarray:
    """[h, w, in] with [3, 3, in, out], padded by one."""
    padded = np.pad(x, ((1, 1), (1, 1), (0, 0)))
    side = (x.shape[0] - 1) // stride + 1
    out = np.zeros((side, side, kernel.shape[-1]))
    for i in range(side):
        for j in range(side):
            window = padded[i * stride : i * stride + 3, j * stride : j * stride + 3]
            out[i, j] = np.einsum("hwc,hwco->o", window, kernel)
    return out


def spread_back(gradient: np.ndarray, kernel: np.ndarray, stride: int, side: int) -> np.ndarray:
    """The gradient at the input of `convolve`."""
    padded = np.zeros((side + 2, side + 2, kernel.shape[2]))
    for i in range(gradient.shape[0]):
        for j in range(gradient.shape[1]):
            padded[i * stride : i * stride + 3, j * stride : j * stride + 3] += kernel @ gradient[i, j]
    return padded[1:-1, 1:-1]


def enlarged(small: np.ndarray, side: int) -> np.ndarray:
    """Bilinear, by the centres of the pixels, the border repeated."""
    at = np.clip((np.arange(side) + 0.5) * len(small) / side - 0.5, 0, len(small) - 1)
    low = np.minimum(at.astype(int), len(small) - 2)
    share = at - low
    rows = small[low] * (1 - share)[:, None] + small[low + 1] * share[:, None]
    return rows[:, low] * (1 - share) + rows[:, low + 1] * share


def by_hand(of: trained_network.TrainedNetwork, image: np.ndarray, label: int) -> dict[str, np.ndarray]:
    """Maps of the network 'two_layers' by stage, and 'logits'."""
    tree: Any = jax.tree.map(lambda x: np.asarray(x, np.float64), of.variables)
    params, stats = tree["params"], tree["batch_stats"]

    def scale(name: str) -> np.ndarray:
        found: np.ndarray = params[name]["scale"] / np.sqrt(stats[name]["var"] + 1e-5)
        return found

    def block(x: np.ndarray, i: int) -> np.ndarray:
        made = convolve(x, params[f"conv{i}"]["kernel"], i)
        made = (made - stats[f"bn{i}"]["mean"]) * scale(f"bn{i}") + params[f"bn{i}"]["bias"]
        return np.maximum(made, 0)

    inputs = (image / 16.0 - 0.3) / 0.4
    first = block(inputs, 1)
    second = block(first, 2)
    logits = second.mean(axis=(0, 1)) @ params["linear"]["kernel"] + params["linear"]["bias"]
    at_second = np.broadcast_to(params["linear"]["kernel"][:, label] / 16, second.shape)
    at_first = spread_back(at_second * (second > 0) * scale("bn2"), params["conv2"]["kernel"], 2, 8)
    maps = {}
    for name, features, gradient in (("stage1", first, at_first), ("stage2", second, at_second)):
        made = np.maximum((features * gradient.mean(axis=(0, 1))).sum(axis=-1), 0)
        made = enlarged(made, 8)
        maps[name] = made / made.max() if made.max() > 0 else made
    return {**maps, "logits": logits}


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_by_hand(stage: str) -> None:
    of, seen = network(), tiny_runs.random_split(3, seed=5).images
    maps, chosen = grad_cam.grad_cam(of, seen, LABELS, stage)
    expected = [by_hand(of, image, label) for image, label in zip(seen, LABELS, strict=True)]
    np.testing.assert_allclose(maps, [each[stage] for each in expected], atol=2e-5)
    assert np.max(maps) > 0.99, "something is to be seen"
    np.testing.assert_array_equal(chosen, [each["logits"].argmax() for each in expected])


def test_the_networks_own_choice_is_explained_unless_told_otherwise() -> None:
    of, seen = network(), tiny_runs.random_split(3, seed=5).images
    maps, chosen = grad_cam.grad_cam(of, seen)
    np.testing.assert_array_equal(maps, grad_cam.grad_cam(of, seen, chosen)[0])
    assert grad_cam.select_layer(of) == "stage3", "the last one, 4x4"
    assert (maps.dtype, maps.shape, chosen.dtype) == (jnp.float32, (3, 8, 8), jnp.int32)


def test_what_nothing_speaks_for_stays_dark() -> None:
    of = network()
    kernel = -jnp.ones_like(of.variables["params"]["linear"]["kernel"])
    params = {**of.variables["params"], "linear": {**of.variables["params"]["linear"], "kernel": kernel}}
    dark = dataclasses.replace(of, variables={**of.variables, "params": params})
    np.testing.assert_array_equal(grad_cam.grad_cam(dark, tiny_runs.random_split(2).images)[0], 0)


# One of each kind of network.
KINDS = [
    *("resnet8", "wrn_10_1", "mobilenetv2_0.5", "mobilenet", "vgg8", "densenet_10_4", "resnet18_cifar"),
    *("mobilenetv2_tiny_0.5", "vit_small", "swin_tiny"),
]


def test_one_of_each_kind_is_here() -> None:
    numbers = {"wrn_D_K": "wrn_10_1", "densenet_D_K": "densenet_10_4"}
    of_users = {"one_layer", "two_layers", "dropout"}
    names = [numbers.get(name, name.replace("_W", "_0.5")) for name in models.MODELS if name not in of_users]
    assert {type(models.create(name, 10)) for name in names} == {type(models.create(name, 10)) for name in KINDS}


@pytest.mark.parametrize("model", KINDS)
def test_what_is_tapped_flows_on(model: str) -> None:
    """The traced program reads what is added at every tap; compiling them all would take minutes."""
    of = network(model, (32, 32, 3))
    images = jnp.zeros((1, 32, 32, 3))
    zeros = jax.eval_shape(
        lambda x: of.module.apply(of.variables, x, train=False, mutable=["perturbations"])[1], images
    )["perturbations"]

    assert len(zeros[grad_cam.select_layer(of)].shape) == 4
    assert len(zeros) > 3, "three stages at least, and 'pooled'"

    def logits(added: Any) -> jax.Array:
        said: jax.Array = of.module.apply({**of.variables, "perturbations": added}, images, train=False)
        return said

    program = jax.make_jaxpr(logits)(zeros)
    _, read = partial_eval.dce_jaxpr(program.jaxpr, [True])
    assert dict(zip(sorted(zeros), read, strict=True)) == dict.fromkeys(zeros, True)


@pytest.mark.parametrize("model", ["resnet8", "vit_small"])
def test_taps_leave_training_as_it_is(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same variables and, to the letter, the same program as without any."""
    of = network(model, (32, 32, 3))
    images = jnp.zeros((1, 32, 32, 3))

    def program() -> str:
        def loss(params: Any) -> tuple[jax.Array, Any]:
            said, moved = of.module.apply({**of.variables, "params": params}, images, train=True, mutable="batch_stats")
            return jnp.sum(said), moved

        return jax.jit(jax.grad(loss, has_aux=True)).lower(of.variables["params"]).as_text()

    tapped = program()
    drawn = jax.eval_shape(lambda: of.module.init(jax.random.PRNGKey(0), images, train=False))
    assert set(drawn) <= {"params", "batch_stats"}, "what init makes goes into files"
    monkeypatch.setattr(layers, "tap", lambda module, name, x: x)
    assert tapped == program()


def test_a_transformer_joins_its_tokens_once() -> None:
    """With the class token; their grids are cut out at each tap and put back only where something is added."""
    of = network("vit_small", (32, 32, 3))

    def joins(**added: Any) -> int:
        program = jax.make_jaxpr(lambda x: of.module.apply({**of.variables, **added}, x, train=False))
        return str(program(jnp.zeros((1, 32, 32, 3)))).count("concatenate[")

    grids = {f"stage{i}": jnp.zeros((1, 8, 8, 384)) for i in range(1, 5)}
    assert joins() == 1
    assert joins(perturbations={**grids, "pooled": jnp.zeros((1, 384))}) == 5


def test_maps_that_are_not_tapped_are_named() -> None:
    with pytest.raises(UserError, match=r"taps no maps 'stage9'; .* known: stage1, stage2"):
        grad_cam.grad_cam(network(), jnp.zeros((1, *tiny_runs.SHAPE), jnp.uint8), of="stage9")


def test_a_network_without_feature_maps_is_named() -> None:
    class Perceptron(nn.Module):
        dtype: Any = jnp.float32

        @nn.compact
        def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
            return nn.Dense(10)(x.reshape(x.shape[0], -1))

    module = Perceptron()
    variables = module.init(jax.random.PRNGKey(0), jnp.zeros((1, *tiny_runs.SHAPE)), train=False)
    blind = dataclasses.replace(network(), module=module, variables=variables)
    with pytest.raises(UserError, match=r"network 'student' \(two_layers\) taps no feature maps"):
        grad_cam.grad_cam(blind, tiny_runs.random_split(1).images)


def seen(title: str, count: int) -> heat.HeatmapColumn:
    rng = np.random.default_rng(0)
    return heat.HeatmapColumn(title, rng.random((count, 8, 8)), np.arange(count), rng.random(count))


@pytest.mark.parametrize(("rows", "columns", "channels"), [(1, 1, 1), (4, 2, 3)])
def test_pictures(tmp_path: Path, rows: int, columns: int, channels: int) -> None:
    pictures = np.random.default_rng(0).random((rows, 8, 8, channels))
    of = [seen(f"network, {i}", rows) for i in range(columns)]
    names = ["a very long name of a class", *"bcd"]
    above = 0.25 + 0.16  # inches, of titles of two lines
    drawn = heat.draw_heat(pictures, np.zeros(rows, int), of, names, tmp_path / "heat.png")
    pixels = images_of.imread(drawn)
    size = (200 * (1.28 * rows + above), 200 * (1.15 * (1 + columns) + 0.65))
    assert pixels.shape[:2] == pytest.approx(size, abs=1)
    assert pixels[..., :3].std() > 0.05
    drawn = heat.draw_surfaces(pictures, of, tmp_path / "surfaces.png")
    pixels = images_of.imread(drawn)
    size = (200 * (above + 1.6 * rows), 200 * (0.9 + 2.1 * columns))
    assert pixels.shape[:2] == pytest.approx(size, abs=1)
    assert pixels[..., :3].std() > 0.05
    assert pixels[0, :, :3].min() > 0.99, "no title is cut by the upper edge"


def test_right_and_wrong_have_colours_where_labels_are_known(tmp_path: Path) -> None:
    """Grey images and titles, so that green and orange stand in the captions alone."""
    of, pictures = [seen("network", 1)], np.zeros((1, 8, 8, 1))

    def captions(labels: np.ndarray | None) -> tuple[bool, bool]:
        drawn = images_of.imread(heat.draw_heat(pictures, labels, of, ["first", "second"], tmp_path / "heat.png"))
        bytes_of = (255 * drawn[..., :3]).round().astype(int)
        right, wrong = (np.array([int(c[i : i + 2], 16) for i in (1, 3, 5)]) for c in (heat.RIGHT, heat.WRONG))
        below = bytes_of[-40:, : bytes_of.shape[1] * 3 // 4]  # without the colour bar, which has orange
        return bool((below == right).all(axis=-1).any()), bool((below == wrong).all(axis=-1).any())

    assert captions(np.array([0])) == (True, False)
    assert captions(np.array([1])) == (False, True)
    assert captions(None) == (False, False)


def test_captions_stay_below_their_image() -> None:
    for name in ("cat", "a very long name of a class", "M" * 30, "i" * 60):
        text = heat.truncate_to_width(name, " 100 %")
        assert text.endswith(" 100 %")
        assert heat.text_width(text) <= heat.MAX_CAPTION_WIDTH < heat.CELL
    assert heat.truncate_to_width("cat", " 100 %") == "cat 100 %"
    assert heat.truncate_to_width("aquarium_fish") == "aquarium_fish"
    assert heat.truncate_to_width("M" * 30).startswith("MMM")
