"""Grad-CAM against a forward and backward pass in NumPy, the features of all models, and figures of heat maps."""

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
from matplotlib import image as matplotlib_image

import tiny_runs
from switokd_jax import models
from switokd_jax.analysis import grad_cam, trained_network
from switokd_jax.errors import UserError
from switokd_jax.figures import heat
from switokd_jax.interop.stablehlo import ModelInfo
from switokd_jax.models.init import init_variables

LABELS = np.array([3, 1, 4])


def network(model: str = "two_layers", shape: tuple[int, int, int] = tiny_runs.SHAPE) -> trained_network.TrainedNetwork:
    """Returns an untrained network with random running statistics and BatchNorm parameters."""
    module = models.create(model, 10)
    # Zeros where only shapes matter: some networks take many seconds to initialize.
    shapes = jax.eval_shape(lambda key: init_variables(module, key, shape), jax.random.key(0))
    variables = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    if model == "two_layers":
        variables = init_variables(module, jax.random.key(0), shape)
    rng = np.random.default_rng(1)
    variables = jax.tree.map(
        lambda x: jnp.asarray(rng.uniform(0.5, 1.5, x.shape), x.dtype) if x.ndim == 1 else x, variables
    )
    preprocess = dataclasses.replace(tiny_runs.PREPROCESS, mean=(0.3,) * shape[-1], std=(0.4,) * shape[-1])
    return trained_network.TrainedNetwork(
        ModelInfo("student", model, tuple("0123456789"), shape), module, variables, preprocess
    )


def convolve(x: np.ndarray, kernel: np.ndarray, stride: int) -> np.ndarray:
    """Convolves [h, w, in] with a kernel [3, 3, in, out], padded by one."""
    padded = np.pad(x, ((1, 1), (1, 1), (0, 0)))
    side = (x.shape[0] - 1) // stride + 1
    out = np.zeros((side, side, kernel.shape[-1]))
    for i in range(side):
        for j in range(side):
            window = padded[i * stride : i * stride + 3, j * stride : j * stride + 3]
            out[i, j] = np.einsum("hwc,hwco->o", window, kernel)
    return out


def convolve_transpose(gradient: np.ndarray, kernel: np.ndarray, stride: int, side: int) -> np.ndarray:
    """Computes the gradient at the input of `convolve`."""
    padded = np.zeros((side + 2, side + 2, kernel.shape[2]))
    for i in range(gradient.shape[0]):
        for j in range(gradient.shape[1]):
            padded[i * stride : i * stride + 3, j * stride : j * stride + 3] += kernel @ gradient[i, j]
    return padded[1:-1, 1:-1]


def resize_bilinear(small: np.ndarray, side: int) -> np.ndarray:
    """Resizes a square map bilinearly, by the centers of the pixels, with the border repeated."""
    position = np.clip((np.arange(side) + 0.5) * len(small) / side - 0.5, 0, len(small) - 1)
    low = np.minimum(position.astype(int), len(small) - 2)
    weight = position - low
    rows = small[low] * (1 - weight)[:, None] + small[low + 1] * weight[:, None]
    return rows[:, low] * (1 - weight) + rows[:, low + 1] * weight


def grad_cam_in_numpy(net: trained_network.TrainedNetwork, image: np.ndarray, label: int) -> dict[str, np.ndarray]:
    """Computes the heat maps of the network 'two_layers' by stage, and its 'logits'."""
    variables: Any = jax.tree.map(lambda x: np.asarray(x, np.float64), net.variables)
    params, stats = variables["params"], variables["batch_stats"]

    def scale(name: str) -> np.ndarray:
        return np.asarray(params[name]["scale"] / np.sqrt(stats[name]["var"] + 1e-5))

    def block(x: np.ndarray, i: int) -> np.ndarray:
        out = convolve(x, params[f"conv{i}"]["kernel"], i)
        out = (out - stats[f"bn{i}"]["mean"]) * scale(f"bn{i}") + params[f"bn{i}"]["bias"]
        return np.maximum(out, 0)

    inputs = (image / 16.0 - 0.3) / 0.4
    first = block(inputs, 1)
    second = block(first, 2)
    logits = second.mean(axis=(0, 1)) @ params["linear"]["kernel"] + params["linear"]["bias"]
    d_second = np.broadcast_to(params["linear"]["kernel"][:, label] / 16, second.shape)
    d_first = convolve_transpose(d_second * (second > 0) * scale("bn2"), params["conv2"]["kernel"], 2, 8)
    maps = {}
    for name, features, gradient in (("stage1", first, d_first), ("stage2", second, d_second)):
        heat_map = np.maximum((features * gradient.mean(axis=(0, 1))).sum(axis=-1), 0)
        heat_map = resize_bilinear(heat_map, 8)
        maps[name] = heat_map / heat_map.max() if heat_map.max() > 0 else heat_map
    return {**maps, "logits": logits}


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_maps_and_predictions_match_numpy(stage: str) -> None:
    net, images = network(), tiny_runs.random_split(3, seed=5).images
    maps, predicted = grad_cam.grad_cam(net, images, LABELS, stage)
    expected = [grad_cam_in_numpy(net, image, label) for image, label in zip(images, LABELS, strict=True)]
    np.testing.assert_allclose(maps, [each[stage] for each in expected], atol=2e-5)
    assert np.max(maps) > 0.99, "not all maps are empty"
    np.testing.assert_array_equal(predicted, [np.argmax(each["logits"]) for each in expected])


def test_the_predicted_class_is_explained_by_default() -> None:
    net, images = network(), tiny_runs.random_split(3, seed=5).images
    maps, predicted = grad_cam.grad_cam(net, images)
    np.testing.assert_array_equal(maps, grad_cam.grad_cam(net, images, predicted)[0])
    assert (maps.dtype, maps.shape, predicted.dtype) == (jnp.float32, (3, 8, 8), jnp.int32)


def test_the_last_map_of_four_pixels_a_side_is_explained_by_default() -> None:
    assert grad_cam.select_layer(network()) == "stage3"


def test_a_map_is_zero_where_no_pixel_raises_the_logit() -> None:
    net = network()
    kernel = -jnp.ones_like(net.variables["params"]["linear"]["kernel"])
    params = {**net.variables["params"], "linear": {**net.variables["params"]["linear"], "kernel": kernel}}
    negative = dataclasses.replace(net, variables={**net.variables, "params": params})
    np.testing.assert_array_equal(grad_cam.grad_cam(negative, tiny_runs.random_split(2).images)[0], 0)


# One network of each class.
ONE_OF_EACH_CLASS = [
    *("resnet8", "wrn_10_1", "mobilenetv2_0.5", "mobilenet", "vgg8", "densenet_10_4", "resnet18_cifar"),
    *("mobilenetv2_tiny_0.5", "vit_small", "swin_tiny", "resnet8_rd", "wrn_10_1_rd"),
]


def test_the_list_has_one_network_of_each_class() -> None:
    examples = {"wrn_D_K": "wrn_10_1", "wrn_D_K_rd": "wrn_10_1_rd", "densenet_D_K": "densenet_10_4"}
    names = [examples.get(name, name.replace("_W", "_0.5")) for name in models.MODELS]
    classes, listed = ({type(models.create(name, 10)) for name in each} for each in (names, ONE_OF_EACH_CLASS))
    assert classes - {tiny_runs.Few} == listed


@pytest.mark.slow
@pytest.mark.parametrize("model", ONE_OF_EACH_CLASS)
def test_logits_depend_on_every_perturbation(model: str) -> None:
    """The traced program uses each perturbation; compiling all programs would take minutes."""
    net = network(model, (32, 32, 3))
    images = jnp.zeros((1, 32, 32, 3))
    perturbations = jax.eval_shape(
        lambda x: net.module.apply(net.variables, x, train=False, mutable=["perturbations"])[1], images
    )["perturbations"]

    assert len(perturbations[grad_cam.select_layer(net)].shape) == 4
    assert len(perturbations) > 3, "three stages at least, and 'pooled'"

    def logits(perturbations: Any) -> Any:
        return net.module.apply({**net.variables, "perturbations": perturbations}, images, train=False)

    program = jax.make_jaxpr(logits)(perturbations)
    _, used = partial_eval.dce_jaxpr(program.jaxpr, [True])
    assert dict(zip(sorted(perturbations), used, strict=True)) == dict.fromkeys(perturbations, True)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["resnet8", "vit_small"])
def test_features_do_not_change_the_training_program(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net = network(model, (32, 32, 3))
    images = jnp.zeros((1, 32, 32, 3))

    def program() -> str:
        def loss(params: Any) -> tuple[jax.Array, Any]:
            variables = {**net.variables, "params": params}
            logits, mutated = net.module.apply(variables, images, train=True, mutable="batch_stats")
            return jnp.sum(logits), mutated

        return jax.jit(jax.grad(loss, has_aux=True)).lower(net.variables["params"]).as_text()

    with_features = program()
    monkeypatch.setattr(nn.Module, "sow", lambda module, collection, name, x: True)
    monkeypatch.setattr(nn.Module, "perturb", lambda module, name, x: x)
    assert with_features == program()


@pytest.mark.parametrize("model", ["resnet8", "vit_small"])
def test_features_add_nothing_to_the_initial_variables(model: str) -> None:
    """These go into checkpoints."""
    module, images = models.create(model, 10), jnp.zeros((1, 32, 32, 3))
    variables = jax.eval_shape(lambda: module.init(jax.random.key(0), images, train=False))
    assert set(variables) <= {"params", "batch_stats"}


def test_a_transformer_concatenates_tokens_only_for_perturbed_features() -> None:
    """And once for the class token."""
    net = network("vit_small", (32, 32, 3))

    def concatenations(**collections: Any) -> int:
        program = jax.make_jaxpr(lambda x: net.module.apply({**net.variables, **collections}, x, train=False))
        return str(program(jnp.zeros((1, 32, 32, 3)))).count("concatenate[")

    grids = {f"stage{i}": jnp.zeros((1, 8, 8, 384)) for i in range(1, 5)}
    assert concatenations() == 1
    assert concatenations(perturbations={**grids, "pooled": jnp.zeros((1, 384))}) == 5


def test_an_unknown_feature_map_is_named() -> None:
    with pytest.raises(UserError, match=r"has no feature map 'stage9'; .* known: stage1, stage2"):
        grad_cam.grad_cam(network(), jnp.zeros((1, *tiny_runs.SHAPE), jnp.uint8), layer_name="stage9")


def test_a_network_without_feature_maps_is_named() -> None:
    class Perceptron(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
            return nn.Dense(10)(x.reshape(x.shape[0], -1))

    module = Perceptron()
    variables = module.init(jax.random.key(0), jnp.zeros((1, *tiny_runs.SHAPE)), train=False)
    without_maps = dataclasses.replace(network(), module=module, variables=variables)
    with pytest.raises(UserError, match=r"network 'student' \(two_layers\) has no feature maps"):
        grad_cam.grad_cam(without_maps, tiny_runs.random_split(1).images)


def heatmap_column(title: str, count: int) -> heat.HeatmapColumn:
    rng = np.random.default_rng(0)
    return heat.HeatmapColumn(title, rng.random((count, 8, 8)), np.arange(count), rng.random(count))


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "columns", "channels"), [(1, 1, 1), (4, 2, 3)])
def test_pictures(tmp_path: Path, rows: int, columns: int, channels: int) -> None:
    pictures = np.random.default_rng(0).random((rows, 8, 8, channels))
    of = [heatmap_column(f"network, {i}", rows) for i in range(columns)]
    names = ["a very long name of a class", *"bcd"]
    above = 0.25 + 0.16  # inches, of titles of two lines
    drawn = heat.draw_heat(pictures, np.zeros(rows, int), of, names, tmp_path / "heat.png")
    pixels = matplotlib_image.imread(drawn)
    size = (200 * (1.28 * rows + above), 200 * (1.15 * (1 + columns) + 0.65))
    assert pixels.shape[:2] == pytest.approx(size, abs=1)
    assert pixels[..., :3].std() > 0.05
    drawn = heat.draw_surfaces(pictures, of, tmp_path / "surfaces.png")
    pixels = matplotlib_image.imread(drawn)
    size = (200 * (above + 1.6 * rows), 200 * (0.9 + 2.1 * columns))
    assert pixels.shape[:2] == pytest.approx(size, abs=1)
    assert pixels[..., :3].std() > 0.05
    assert pixels[0, :, :3].min() > 0.99, "no title is cut by the upper edge"


def test_right_and_wrong_have_colours_where_labels_are_known(tmp_path: Path) -> None:
    """Grey images and titles, so that green and orange stand in the captions alone."""
    of, pictures = [heatmap_column("network", 1)], np.zeros((1, 8, 8, 1))

    def captions(labels: np.ndarray | None) -> tuple[bool, bool]:
        drawn = matplotlib_image.imread(
            heat.draw_heat(pictures, labels, of, ["first", "second"], tmp_path / "heat.png")
        )
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
