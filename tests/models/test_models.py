"""Models: published parameter counts, image sizes, dtypes, initial values; and layers against lax and torch."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from switokd_jax import models
from switokd_jax.models import layers, swin
from switokd_jax.models.init import init_variables
from switokd_jax.models.layers import Layers
from switokd_jax.models.ops import convolution

# (model, classes): number of parameters here, and in millions as the papers or the public code state it.
PUBLISHED = {
    ("wrn_16_1", 10): (175_626, "0.18"),
    ("wrn_16_2", 100): (704_420, "0.70"),
    ("wrn_16_2", 200): (717_320, "0.72"),
    ("wrn_16_8", 10): (10_965_866, "11.0"),
    ("wrn_40_2", 100): (2_258_084, "2.26"),
    ("resnet20", 10): (269_722, "0.27"),
    ("resnet20", 200): (282_072, "0.28"),
    ("resnet32", 100): (470_004, "0.47"),
    ("resnet44", 10): (658_586, "0.66"),
    ("resnet56", 10): (853_018, "0.85"),
    ("resnet110", 10): (1_727_962, "1.7"),
    # RepDistiller's form, in millions as papers that train it state it.
    ("wrn_16_1_rd", 100): (180_916, "0.18"),
    ("wrn_16_2_rd", 100): (703_284, "0.70"),
    ("wrn_40_1_rd", 100): (569_780, "0.57"),
    ("wrn_40_2_rd", 100): (2_255_156, "2.26"),
    ("resnet8_rd", 100): (83_892, "0.08"),
    ("resnet14_rd", 100): (181_108, "0.18"),
    ("resnet20_rd", 100): (278_324, "0.28"),
    ("resnet32_rd", 100): (472_756, "0.47"),
    ("resnet44_rd", 100): (667_188, "0.67"),
    ("resnet56_rd", 100): (861_620, "0.86"),
    ("resnet110_rd", 100): (1_736_564, "1.74"),
    ("resnet8x4", 100): (1_233_540, "1.23"),
    ("resnet32x4", 100): (7_433_860, "7.43"),
    ("mobilenetv2_0.5", 100): (812_836, "0.812836"),
    ("mobilenet", 100): (3_309_476, "3.3"),
    ("mobilenetv2_tiny_1.4", 200): (4_674_376, "4.674376"),
    ("resnet18", 1000): (11_689_512, "11.689512"),
    ("resnet34", 1000): (21_797_672, "21.797672"),
    ("resnet50", 1000): (25_557_032, "25.557032"),
    ("resnet18_cifar", 100): (11_220_132, "11.2"),
    ("resnet34_tiny", 200): (21_379_592, "21.3"),
    ("vgg8", 100): (3_965_028, "3.965028"),
    ("vgg13", 100): (9_462_180, "9.462180"),
    ("vgg16", 100): (15_299_748, "15.3"),
    ("densenet_40_12", 100): (188_092, "0.19"),
    # By hand: 12 (12 d^2 + 13 d) in the blocks, 48 d + d patches, 65 d positions, d token, 2 d norm, 100 d + 100 head.
    ("vit_small", 100): (12 * (12 * 384**2 + 13 * 384) + (49 + 65 + 1 + 2 + 100) * 384 + 100, "21.4"),
    ("vit_base", 100): (12 * (12 * 768**2 + 13 * 768) + (49 + 65 + 1 + 2 + 100) * 768 + 100, "85.2"),
    # timm's at 1000 classes for 4-pixel patches and windows of 7, minus what smaller ones lack: 36 inputs of each
    # patch, 13^2 - 7^2 offsets of each head of the first three stages, 13^2 - 3^2 of the last, whose window is the map.
    ("swin_tiny", 100): (28_288_354 - 36 * 96 - 120 * (2 * 3 + 2 * 6 + 6 * 12) - 160 * 2 * 24 - 900 * 769, "27.6"),
    ("swin_small", 100): (49_606_258 - 36 * 96 - 120 * (2 * 3 + 2 * 6 + 18 * 12) - 160 * 2 * 24 - 900 * 769, "48.9"),
}


def count_params(name: str, classes: int) -> int:
    module = models.create(name, classes)
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    tree = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, train=False), image)
    return sum(leaf.size for leaf in jax.tree.leaves(tree["params"]))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "classes"), PUBLISHED)
def test_parameter_count_is_the_published_one(name: str, classes: int) -> None:
    expected, published = PUBLISHED[name, classes]
    assert count_params(name, classes) == expected
    decimals = len(published.partition(".")[2])
    assert abs(expected / 1e6 - float(published)) <= 1.01 * 10**-decimals  # some papers truncate, others round


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "shape"),
    list(
        itertools.product(
            [
                "wrn_10_1",
                "resnet8",
                "resnet8_rd",
                "wrn_10_1_rd",
                "resnet18",
                "resnet18_cifar",
                "resnet34_tiny",
                "mobilenetv2_0.25",
                "mobilenetv2_tiny_0.5",
                "mobilenet",
                "vgg8",
                "vgg16",
                "densenet_10_4",
            ],
            [(8, 8, 1), (28, 28, 1), (32, 32, 3), (64, 64, 3)],
        )
    ),
)
def test_convolutional_networks_take_images_of_any_size(name: str, shape: tuple[int, int, int]) -> None:
    module = models.create(name, 7)
    image = jnp.zeros((2, *shape))

    def run() -> jax.Array:
        variables = module.init(jax.random.key(0), image, train=False)
        rngs = {"dropout": jax.random.key(1)}
        logits, _ = module.apply(variables, image, train=True, mutable=["batch_stats"], rngs=rngs)
        return logits

    out = jax.eval_shape(run)
    assert out.shape == (2, 7)
    assert out.dtype == jnp.float32


@pytest.mark.parametrize(
    "name",
    [
        "wrn_12_2",
        "wrn_16",
        "wrn_16_0",
        "resnet21",
        "resnet",
        "mobilenetv2_0.01",
        "vgg",
        "vgg9",
        "densenet_41_12",
        "densenet_40_12_rd",
        "wrn_12_2_rd",
        "resnet18_rd",
        "resnet18_small",
        "",
    ],
)
def test_unknown_model_is_refused_by_name(name: str) -> None:
    with pytest.raises(ValueError, match=f"model '{name}'"):
        models.create(name, 10)


class LayeredNetwork(nn.Module):
    """A user's own network with `layers`."""

    num_classes: int
    hidden: int = 64
    layers: Layers = Layers()


def test_create_sets_layer_options_and_fields_of_the_module(own_additions: None) -> None:
    models.MODELS["layered"] = LayeredNetwork
    options: dict[str, Any] = {"dtype": jnp.bfloat16, "axis_name": "devices", "remat": True}
    assert models.create("layered", 7, hidden=8, **options) == LayeredNetwork(7, 8, Layers(**options))


def test_create_refuses_unknown_options() -> None:
    with pytest.raises(TypeError, match="dtpye"):
        models.create("resnet8", 10, dtpye=jnp.bfloat16)


def test_create_refuses_remat_of_a_network_without_blocks() -> None:
    with pytest.raises(ValueError, match="VGG has no blocks to compute again"):
        models.create("vgg8", 10, remat=True)


class PlainNetwork(nn.Module):
    """A user's own network without `layers`: it keeps options in attributes of its own."""

    num_classes: int
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    axis_name: str | None = None
    convolution: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        dense = nn.Dense(self.num_classes, dtype=self.dtype, param_dtype=self.param_dtype)
        return layers.promote_to_float32(dense(x.reshape(x.shape[0], -1)))


@pytest.fixture
def plain_network(own_additions: None) -> PlainNetwork:
    models.MODELS["plain"] = PlainNetwork
    module = models.create("plain", 7, dtype=jnp.bfloat16, axis_name="devices", convolution=lax.conv_general_dilated)
    assert isinstance(module, PlainNetwork)
    return module


def test_layer_options_of_a_network_without_layers_are_its_own_attributes(plain_network: PlainNetwork) -> None:
    expected = Layers(dtype=jnp.bfloat16, axis_name="devices", convolution=lax.conv_general_dilated, remat=None)
    assert layers.layers_of(plain_network) == expected
    changed = layers.with_options(plain_network, axis_name=None, remat=False)
    assert (changed.axis_name, changed.dtype) == (None, jnp.bfloat16)


def test_a_network_without_layers_is_initialized(plain_network: PlainNetwork) -> None:
    variables = jax.eval_shape(lambda: init_variables(plain_network, jax.random.key(0), (8, 8, 1)))
    assert variables["params"]["Dense_0"]["kernel"].shape == (64, 7)


def test_a_network_without_layers_refuses_remat(plain_network: PlainNetwork) -> None:
    with pytest.raises(ValueError, match="PlainNetwork has no blocks to compute again"):
        layers.with_options(plain_network, remat=True)


@pytest.mark.parametrize("side", [8, 32, 64])
def test_vit_has_64_patches_of_any_square_image(side: int) -> None:
    module = models.create("vit_small", 7)
    image = jax.ShapeDtypeStruct((2, side, side, 3), jnp.float32)
    tree = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, train=False), image)
    assert tree["params"]["pos_embed"].shape == (1, 65, 384)
    assert set(tree) == {"params"}


@pytest.mark.parametrize(("name", "multiple"), [("vit_small", 8), ("swin_tiny", 16)])
def test_transformers_refuse_images_that_patches_do_not_fit(name: str, multiple: int) -> None:
    with pytest.raises(ValueError, match=f"square images of {multiple} n pixels a side, not 28x28"):
        models.create(name, 7).init(jax.random.key(0), jnp.zeros((1, 28, 28, 1)), train=False)


@pytest.mark.slow
@pytest.mark.parametrize("side", [16, 32, 64])
def test_swin_has_256_patches_of_any_square_image(side: int) -> None:
    module = models.create("swin_tiny", 7)

    def run(x: jax.Array) -> Any:
        variables = module.init(jax.random.key(0), x, train=False)
        return variables, module.apply(variables, x, train=True, mutable=["intermediates"])

    variables, (logits, mutated) = jax.eval_shape(run, jax.ShapeDtypeStruct((2, side, side, 3), jnp.float32))
    assert logits.shape == (2, 7)
    assert {name: value[0].shape[1:] for name, value in mutated["intermediates"].items()} == {
        **{f"stage{i + 1}": (16 >> i, 16 >> i, 96 << i) for i in range(4)},
        "pooled": (768,),
    }
    assert set(variables) == {"params"}
    tables = [variables["params"][f"layers_{i}"]["blocks_1"]["attn"]["relative_position_bias_table"] for i in range(4)]
    assert [table.shape for table in tables] == [(49, 3), (49, 6), (49, 12), (9, 24)]


@pytest.mark.slow
@pytest.mark.parametrize(("side", "shifted"), [(8, False), (8, True), (16, True), (4, True), (2, True)])
def test_swin_attends_within_its_window_and_never_across_the_edge(side: int, shifted: bool) -> None:
    """Gradients tell which inputs an output depends on; windows are drawn on the map before it is rolled."""
    block = swin.Block(Layers(), 2, shifted)
    x = jax.random.normal(jax.random.key(0), (1, side, side, 4))
    params = jax.jit(block.init)(jax.random.key(1), x)
    gradients = jax.jit(jax.jacobian(lambda x: block.apply(params, x)[0].sum(-1)))(x)
    depends = np.abs(gradients[:, :, 0]).max(-1) > 0
    # Shifted windows begin at 2, 6, 10, ...: at each edge of the map is half a window of its own.
    window = (np.arange(side) + (2 if shifted and side > 4 else 0)) // 4
    same = window[:, None] == window
    np.testing.assert_array_equal(depends, same[:, None, :, None] & same[None, :, None, :])


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.bfloat16, 0.1), (jnp.float64, 1e-5)])
def test_swin_computes_in_its_dtype(dtype: Any, tolerance: float) -> None:
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 96))

    def stage(dtype: Any) -> nn.Module:
        return swin.Stage(Layers(dtype=dtype), 2, 3, False)

    variables = jax.jit(stage(jnp.float32).init)(jax.random.key(1), x)
    expected = jax.jit(stage(jnp.float32).apply)(variables, x)
    with jax.enable_x64(dtype == jnp.float64):
        out = jax.jit(stage(dtype).apply)(variables, jnp.asarray(x, dtype))
        assert out.dtype == dtype
        np.testing.assert_allclose(np.asarray(out, np.float64), expected, atol=tolerance)


@pytest.mark.parametrize(("dtype", "expected"), [(jnp.bfloat16, jnp.float32), (jnp.float64, jnp.float64)])
def test_swin_keeps_float32_parameters_and_returns_float32_logits_at_least(dtype: Any, expected: Any) -> None:
    with jax.enable_x64(True):
        module = models.create("swin_tiny", 5, dtype=dtype)
        init = functools.partial(module.init_with_output, train=False)
        image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
        logits, variables = jax.eval_shape(init, jax.random.key(0), image)
        assert logits.dtype == expected
        assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


@pytest.mark.slow
def test_swin_is_initialized_as_timm_does() -> None:
    """Truncation at two standard deviations would give 0.0176 for the linear layers."""

    @jax.jit
    def stds(key: jax.Array) -> Any:  # jitted, so that XLA draws these parameters only
        params = models.create("swin_tiny", 100).init(key, jnp.zeros((1, 32, 32, 3)), train=False)["params"]
        linear = (params["head"]["fc"], params["layers_0"]["blocks_1"]["attn"]["qkv"])
        return [layer["kernel"].std() for layer in (*linear, params["patch_embed"]["proj"])]

    *linear, patches = stds(jax.random.key(0))
    assert [float(std) for std in linear] == pytest.approx([0.02, 0.02], rel=0.02)
    assert float(patches) == pytest.approx((1 / 3 / 12) ** 0.5, rel=0.1)


@pytest.fixture(scope="module")
def bfloat16_network() -> tuple[nn.Module, Any, jax.Array]:
    """A network, its variables and a batch of images."""
    module = models.create("wrn_10_1", 5, dtype=jnp.bfloat16)
    image = jax.random.normal(jax.random.key(0), (4, 8, 8, 3))
    return module, jax.jit(functools.partial(module.init, train=False))(jax.random.key(1), image), image


@pytest.mark.slow
def test_bfloat16_keeps_float32_parameters_statistics_and_logits(bfloat16_network: Any) -> None:
    module, variables, image = bfloat16_network
    train = functools.partial(module.apply, train=True, mutable=["batch_stats"])
    leaves = jax.tree.leaves((variables, jax.eval_shape(train, variables, image)))
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype("float32")}


@pytest.mark.slow
def test_bfloat16_logits_are_close_to_float32_ones(bfloat16_network: Any) -> None:
    module, variables, image = bfloat16_network
    logits, expected = (
        jax.jit(functools.partial(network.apply, train=False))(variables, image)
        for network in (module, models.create("wrn_10_1", 5))
    )
    np.testing.assert_allclose(logits, expected, atol=0.15)


# A few seconds for each implementation; the fast tests have one of each. Images of one pixel, images smaller than the
# kernel, and those that a stride divides or not.
CONVOLUTIONS = [
    pytest.param((size, stride), side, marks=[] if (size, stride, side) == (3, 2, 7) else [pytest.mark.slow])
    for size, stride, sides in [
        (1, 1, (7,)),
        (1, 2, (1, 7, 8)),
        (3, 1, (1, 2, 7)),
        (3, 2, (1, 2, 7, 8)),
        (2, 3, (2, 7)),
        (5, 3, (1, 8)),
    ]
    for side in sides
]


@pytest.mark.parametrize(("size_and_stride", "side"), CONVOLUTIONS)
@pytest.mark.parametrize(
    ("platform", "single_device", "depthwise"),
    [("cpu", False, False), ("cpu", True, False), ("cpu", False, True), ("cpu", True, True), ("gpu", False, True)],
)
def test_convolution_and_its_gradients_are_lax_s(
    platform: str,
    single_device: bool,
    size_and_stride: tuple[int, int],
    side: int,
    depthwise: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Kernel gradients are those of two groups of three images and a remainder of one, however small the images."""
    monkeypatch.setattr(convolution, "MIN_ELEMENTS", 0)
    monkeypatch.setattr(convolution, "GROUP", 3)
    size, stride = size_and_stride
    channels = 4
    groups = channels if depthwise else 1
    rng = np.random.default_rng(0)
    pads = ((size // 2, size // 2),) * 2
    numbers = ("NHWC", "HWIO", "NHWC")
    with jax.enable_x64(True):
        x = jnp.asarray(rng.normal(size=(7, side, side, channels)))
        kernel = jnp.asarray(rng.normal(size=(size, size, channels // groups, channels if depthwise else 3)))

        def ours(x: jax.Array, k: jax.Array) -> jax.Array:
            fn = convolution.for_devices(platform, single_device=single_device)
            return fn(x, k, (stride, stride), pads, dimension_numbers=numbers, feature_group_count=groups)

        def lax_s(x: jax.Array, k: jax.Array) -> jax.Array:
            return lax.conv_general_dilated(
                x, k, (stride, stride), pads, dimension_numbers=numbers, feature_group_count=groups
            )

        g = jnp.asarray(rng.normal(size=jax.eval_shape(lax_s, x, kernel).shape))

        @functools.partial(jax.jit, static_argnums=0)
        def output_and_gradients(
            fn: Callable[[jax.Array, jax.Array], jax.Array], x: jax.Array, k: jax.Array, g: jax.Array
        ) -> Any:
            y, pullback = jax.vjp(fn, x, k)
            return y, *pullback(g)

        actual, expected = (output_and_gradients(fn, x, kernel, g) for fn in (ours, lax_s))
        for a, b in zip(actual, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-11)


# Standard deviations of the first convolution and the head as the public code initializes them.
INITIAL = {
    "wrn_16_2": ("conv1", (2 * 2 / (27 + 9 * 16)) ** 0.5, "linear", (1 / 3 / 128) ** 0.5),
    "resnet20": ("conv1", (2 / 27) ** 0.5, "linear", (2 / 64) ** 0.5),
    "mobilenetv2_1.0": ("conv1_0", (2 / (9 * 32)) ** 0.5, "classifier_0", 0.01),
    "mobilenet": ("conv1", 1 / 27, "linear", 1 / 1024),
    "mobilenetv2_tiny_1.4": ("features_0_0", 1 / 27, "classifier_1", 1 / 1792),
    "resnet18_cifar": ("conv1", (2 / (9 * 64)) ** 0.5, "linear", (1 / 3 / 512) ** 0.5),
    "vgg8": ("block0_0", (2 / (9 * 64)) ** 0.5, "classifier", 0.01),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", INITIAL)
def test_networks_are_initialized_as_in_the_public_code(name: str) -> None:
    stem, stem_std, head, head_std = INITIAL[name]
    module = models.create(name, 100)

    @jax.jit
    def stds(key: jax.Array) -> Any:  # jitted, so that XLA draws these parameters only
        params = module.init(key, jnp.zeros((1, 32, 32, 3)), train=False)["params"]
        return params[stem]["kernel"].std(), params[head]["kernel"].std()

    actual_stem, actual_head = stds(jax.random.key(0))
    assert float(actual_stem) == pytest.approx(stem_std, rel=0.15)
    assert float(actual_head) == pytest.approx(head_std, rel=0.05)


class Dropout(nn.Module):
    """Dropout at a rate of 0.25."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return layers.dropout(self, x, 0.25, train=True)


def apply_dropout(x: jax.Array, first: int) -> np.ndarray:
    """Drops out elements of examples whose positions in the global batch are first, first + 1, ..."""
    rngs = {"dropout": jax.random.key(0)}
    return np.asarray(Dropout().apply({"batch": {"positions": first + np.arange(len(x))}}, x, rngs=rngs))


def test_dropout_zeroes_its_rate_and_scales_the_rest() -> None:
    out = apply_dropout(jnp.ones((64, 200)), 0)
    assert set(np.unique(out)) == {np.float32(0), np.float32(1 / 0.75)}
    assert (out == 0).mean() == pytest.approx(0.25, abs=0.02)


@pytest.mark.slow
def test_dropout_depends_on_the_position_in_the_global_batch() -> None:
    x = jnp.ones((64, 200))
    out = apply_dropout(x, 0)
    np.testing.assert_array_equal(out[48:], apply_dropout(x[48:], 48))
    assert not np.array_equal(out[:16], apply_dropout(x[:16], 16))


@pytest.mark.slow
def test_dropout_masks_are_the_same_in_float64() -> None:
    out = apply_dropout(jnp.ones((64, 200)), 0)
    with jax.enable_x64(True):
        np.testing.assert_array_equal(out == 0, apply_dropout(jnp.ones((64, 200), jnp.float64), 0) == 0)
