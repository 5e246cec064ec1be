"""Published parameter counts, image sizes, and the layers against lax and torch's conventions."""

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
from switokd_jax.models.ops import convolution

# (model, classes): parameters here, and the figure that the papers or the public code give for them.
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
    # By hand: 12 (12 d^2 + 13 d) in the blocks, 48 d + d patches, 65 d places, d token, 2 d norm, 100 d + 100 head.
    ("vit_small", 100): (12 * (12 * 384**2 + 13 * 384) + (49 + 65 + 1 + 2 + 100) * 384 + 100, "21.4"),
    ("vit_base", 100): (12 * (12 * 768**2 + 13 * 768) + (49 + 65 + 1 + 2 + 100) * 768 + 100, "85.2"),
    # timm's at 1000 classes for 4-pixel patches and windows of 7, less what smaller ones have not: 36 inputs of each
    # patch, 13^2 - 7^2 offsets of each head of the first three stages, 13^2 - 3^2 of the last, whose window is the map.
    ("swin_tiny", 100): (28_288_354 - 36 * 96 - 120 * (2 * 3 + 2 * 6 + 6 * 12) - 160 * 2 * 24 - 900 * 769, "27.6"),
    ("swin_small", 100): (49_606_258 - 36 * 96 - 120 * (2 * 3 + 2 * 6 + 18 * 12) - 160 * 2 * 24 - 900 * 769, "48.9"),
}


def count(name: str, classes: int) -> int:
    module = models.create(name, classes)
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    tree = jax.eval_shape(lambda x: module.init(jax.random.PRNGKey(0), x, train=False), image)
    return sum(leaf.size for leaf in jax.tree.leaves(tree["params"]))


@pytest.mark.parametrize(("name", "classes"), PUBLISHED)
def test_parameter_count(name: str, classes: int) -> None:
    here, published = PUBLISHED[name, classes]
    assert count(name, classes) == here
    places = len(published.partition(".")[2])
    assert abs(here / 1e6 - float(published)) <= 1.01 * 10**-places  # some papers cut, others round


@pytest.mark.parametrize(
    ("name", "shape"),
    list(
        itertools.product(
            [
                "wrn_10_1",
                "resnet8",
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
def test_image_sizes(name: str, shape: tuple[int, int, int]) -> None:
    module = models.create(name, 7)
    image = jnp.zeros((2, *shape))

    def run() -> jax.Array:
        variables = module.init(jax.random.PRNGKey(0), image, train=False)
        rngs = {"dropout": jax.random.PRNGKey(1)}
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
        "resnet18_small",
        "",
    ],
)
def test_unknown_model(name: str) -> None:
    with pytest.raises(ValueError, match=f"model '{name}'"):
        models.create(name, 10)


@pytest.mark.parametrize("side", [8, 32, 64])
def test_vit_has_64_patches_of_any_square_image(side: int) -> None:
    module = models.create("vit_small", 7)
    image = jax.ShapeDtypeStruct((2, side, side, 3), jnp.float32)
    tree = jax.eval_shape(lambda x: module.init(jax.random.PRNGKey(0), x, train=False), image)
    assert tree["params"]["pos_embed"].shape == (1, 65, 384)
    assert set(tree) == {"params"}
    with pytest.raises(ValueError, match="square images of 8 n pixels a side, not 28x28"):
        module.init(jax.random.PRNGKey(0), jnp.zeros((1, 28, 28, 1)), train=False)


@pytest.mark.parametrize("side", [16, 32, 64])
def test_swin_has_256_patches_of_any_square_image(side: int) -> None:
    module = models.create("swin_tiny", 7)

    def run(x: jax.Array) -> Any:
        variables = module.init(jax.random.PRNGKey(0), x, train=False)
        return variables, module.apply(variables, x, train=True, mutable=["intermediates"])

    variables, (logits, taken) = jax.eval_shape(run, jax.ShapeDtypeStruct((2, side, side, 3), jnp.float32))
    assert logits.shape == (2, 7)
    assert {name: value[0].shape[1:] for name, value in taken["intermediates"].items()} == {
        **{f"stage{i + 1}": (16 >> i, 16 >> i, 96 << i) for i in range(4)},
        "pooled": (768,),
    }
    assert set(variables) == {"params"}
    tables = [variables["params"][f"layers_{i}"]["blocks_1"]["attn"]["relative_position_bias_table"] for i in range(4)]
    assert [table.shape for table in tables] == [(49, 3), (49, 6), (49, 12), (9, 24)]
    with pytest.raises(ValueError, match="square images of 16 n pixels a side, not 28x28"):
        module.init(jax.random.PRNGKey(0), jnp.zeros((1, 28, 28, 1)), train=False)


@pytest.mark.parametrize(("side", "shifted"), [(8, False), (8, True), (16, True), (4, True), (2, True)])
def test_swin_sees_its_window_and_nothing_round_the_end(side: int, shifted: bool) -> None:
    """What an output depends on, by its gradients, against borders drawn on the map as it lies."""
    block = swin.Block(2, shifted, nn.Dense, nn.LayerNorm, jnp.float32)
    x = jax.random.normal(jax.random.PRNGKey(0), (1, side, side, 4))
    params = jax.jit(block.init)(jax.random.PRNGKey(1), x)
    gradients = jax.jit(jax.jacobian(lambda x: block.apply(params, x)[0].sum(-1)))(x)
    seen = np.abs(gradients[:, :, 0]).max(-1) > 0
    # Shifted borders lie at 2, 6, 10, ...: both ends of the map are half windows, each for itself.
    window = (np.arange(side) + (2 if shifted and side > 4 else 0)) // 4
    same = window[:, None] == window
    np.testing.assert_array_equal(seen, same[:, None, :, None] & same[None, :, None, :])


def test_swin_in_other_floats() -> None:
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 96))

    def stage(dtype: Any) -> nn.Module:
        linear, norm = (functools.partial(kind, dtype=dtype) for kind in (nn.Dense, nn.LayerNorm))
        return swin.Stage(2, 3, False, linear, norm, jnp.float32, remat=False)

    def run(dtype: Any) -> jax.Array:
        out: jax.Array = jax.jit(stage(dtype).apply)(variables, jnp.asarray(x, dtype))
        assert out.dtype == dtype
        return out

    variables = jax.jit(stage(jnp.float32).init)(jax.random.PRNGKey(1), x)
    full = run(jnp.float32)
    np.testing.assert_allclose(run(jnp.bfloat16).astype(jnp.float32), full, atol=0.1)
    with jax.enable_x64(True):
        np.testing.assert_allclose(run(jnp.float64), full, atol=1e-5)
        image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
        for dtype, expected in ((jnp.bfloat16, jnp.float32), (jnp.float64, jnp.float64)):
            module = models.create("swin_tiny", 5, dtype=dtype)
            logits, drawn = jax.eval_shape(
                functools.partial(module.init_with_output, train=False), jax.random.PRNGKey(0), image
            )
            assert logits.dtype == expected
            assert {leaf.dtype for leaf in jax.tree.leaves(drawn)} == {jnp.dtype("float32")}


def test_swin_initialisation() -> None:
    """As timm draws linear layers: no cut at two standard deviations, which would leave 0.0176."""

    @jax.jit
    def spread(key: jax.Array) -> Any:  # XLA draws no more than it is asked for
        params = models.create("swin_tiny", 100).init(key, jnp.zeros((1, 32, 32, 3)), train=False)["params"]
        linear = (params["head"]["fc"], params["layers_0"]["blocks_1"]["attn"]["qkv"])
        return [layer["kernel"].std() for layer in (*linear, params["patch_embed"]["proj"])]

    *linear, patches = spread(jax.random.PRNGKey(0))
    assert [float(std) for std in linear] == pytest.approx([0.02, 0.02], rel=0.02)
    assert float(patches) == pytest.approx((1 / 3 / 12) ** 0.5, rel=0.1)


def test_bfloat16_keeps_float32_parameters_and_logits() -> None:
    module = models.create("wrn_10_1", 5, dtype=jnp.bfloat16)
    image = jax.random.normal(jax.random.PRNGKey(0), (4, 8, 8, 3))
    variables = jax.jit(functools.partial(module.init, train=False))(jax.random.PRNGKey(1), image)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    logits, moved = jax.jit(functools.partial(module.apply, train=True, mutable=["batch_stats"]))(variables, image)
    assert logits.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(moved)} == {jnp.dtype("float32")}
    full, half = (
        jax.jit(functools.partial(each.apply, train=False))(variables, image)
        for each in (models.create("wrn_10_1", 5), module)
    )
    np.testing.assert_allclose(half, full, atol=0.15)


@pytest.mark.parametrize(
    ("size_and_stride", "side"),
    list(itertools.product([(1, 1), (1, 2), (3, 1), (3, 2), (2, 3), (5, 3)], [1, 2, 7, 8])),
)
@pytest.mark.parametrize(
    ("platform", "alone", "depthwise"),
    [("cpu", False, False), ("cpu", True, False), ("cpu", False, True), ("cpu", True, True), ("gpu", False, True)],
)
def test_convolution_and_gradients(
    platform: str,
    alone: bool,
    size_and_stride: tuple[int, int],
    side: int,
    depthwise: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Our forms, of one device and of several, and XLA's own: the same numbers, forward and in both gradients."""
    monkeypatch.setattr(convolution, "SMALL", 0)
    size, stride = size_and_stride
    channels = convolution.NARROW
    groups = channels if depthwise else 1
    rng = np.random.default_rng(0)
    pads = ((size // 2, size // 2),) * 2
    numbers = ("NHWC", "HWIO", "NHWC")
    with jax.enable_x64(True):
        x = jnp.asarray(rng.normal(size=(6, side, side, channels)))
        kernel = jnp.asarray(rng.normal(size=(size, size, channels // groups, channels if depthwise else 3)))

        def ours(x: jax.Array, k: jax.Array) -> jax.Array:
            here = convolution.for_devices(platform, alone=alone)
            return here(x, k, (stride, stride), pads, dimension_numbers=numbers, feature_group_count=groups)

        def lax_own(x: jax.Array, k: jax.Array) -> jax.Array:
            return lax.conv_general_dilated(
                x, k, (stride, stride), pads, dimension_numbers=numbers, feature_group_count=groups
            )

        g = jnp.asarray(rng.normal(size=jax.eval_shape(lax_own, x, kernel).shape))

        @functools.partial(jax.jit, static_argnums=0)
        def all_three(f: Callable[[jax.Array, jax.Array], jax.Array], x: jax.Array, k: jax.Array, g: jax.Array) -> Any:
            y, pull = jax.vjp(f, x, k)
            return y, *pull(g)

        for mine, theirs in zip(all_three(ours, x, kernel, g), all_three(lax_own, x, kernel, g), strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-10, atol=1e-11)


# Standard deviation of the first convolution and the head as the public code initialises them.
INITIAL = {
    "wrn_16_2": ("conv1", (2 * 2 / (27 + 9 * 16)) ** 0.5, "linear", (1 / 3 / 128) ** 0.5),
    "resnet20": ("conv1", (2 / 27) ** 0.5, "linear", (2 / 64) ** 0.5),
    "mobilenetv2_1.0": ("conv1_0", (2 / (9 * 32)) ** 0.5, "classifier_0", 0.01),
    "mobilenet": ("conv1", 1 / 27, "linear", 1 / 1024),
    "mobilenetv2_tiny_1.4": ("features_0_0", 1 / 27, "classifier_1", 1 / 1792),
    "resnet18_cifar": ("conv1", (2 / (9 * 64)) ** 0.5, "linear", (1 / 3 / 512) ** 0.5),
    "vgg8": ("block0_0", (2 / (9 * 64)) ** 0.5, "classifier", 0.01),
}


@pytest.mark.parametrize("name", INITIAL)
def test_initialisation(name: str) -> None:
    stem, stem_std, head, head_std = INITIAL[name]
    module = models.create(name, 100)

    @jax.jit
    def spread(key: jax.Array) -> Any:  # XLA draws no more than it is asked for
        params = module.init(key, jnp.zeros((1, 32, 32, 3)), train=False)["params"]
        return params[stem]["kernel"].std(), params[head]["kernel"].std()

    of_stem, of_head = spread(jax.random.PRNGKey(0))
    assert float(of_stem) == pytest.approx(stem_std, rel=0.15)
    assert float(of_head) == pytest.approx(head_std, rel=0.05)


class Dropped(nn.Module):
    """Nothing but dropout."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return layers.dropout(self, x, 0.25, train=True)


def test_dropout_depends_on_the_place_in_the_global_batch() -> None:
    def drop(x: jax.Array, first: int) -> np.ndarray:
        rngs = {"dropout": jax.random.PRNGKey(0)}
        return np.asarray(Dropped().apply({"batch": {"places": first + np.arange(len(x))}}, x, rngs=rngs))

    x = jnp.ones((64, 200))
    whole = drop(x, 0)
    assert set(np.unique(whole)) == {np.float32(0), np.float32(1 / 0.75)}
    assert (whole == 0).mean() == pytest.approx(0.25, abs=0.02)
    np.testing.assert_array_equal(whole[48:], drop(x[48:], 48))
    assert not np.array_equal(whole[:16], drop(x[:16], 16))
    with jax.enable_x64(True):
        np.testing.assert_array_equal(whole == 0, drop(jnp.ones((64, 200), jnp.float64), 0) == 0)
