"""A forward pass in parts, blocks that are computed again, and the precision of products."""

from __future__ import annotations

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

import tiny_runs
from switokd_jax import models
from switokd_jax.errors import UserError
from switokd_jax.forward import NetworkSpec, NodeOutput, forward
from switokd_jax.models import layers
from switokd_jax.precision import precision_context
from switokd_jax.train import run_spec
from switokd_jax.train.init_state import init_network

BATCH = 16


class WithoutNorm(nn.Module):
    """A convolution, a tap, dropout and a classifier."""

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        options = layers.Layers(dtype=x.dtype, param_dtype=x.dtype)
        x = nn.relu(options.conv(x, 4, 3, name="conv", kernel_init=layers.kaiming_normal))
        x = layers.global_avg_pool(self, layers.sow_feature(self, "stage1", x))
        return options.dense(layers.dropout(self, x, 0.5, train=train), 10, name="head")


def run_forward(module: nn.Module, features: tuple[str, ...], parts: int) -> tuple[NodeOutput, Any, Any]:
    """What the network says of 16 images, its statistics afterwards, and the gradient of a sum of all it says."""
    images = jnp.asarray(np.random.default_rng(1).normal(size=(BATCH, 8, 8, 1)))
    variables = jax.jit(functools.partial(module.init, train=False))(jax.random.key(0), images[:1])
    # Flax draws running statistics in float32 always.
    whole = jax.tree.map(lambda x: x.astype(jnp.float64), {"batch_stats": {}, **variables})
    network = NetworkSpec(module, optax.identity(), lambda step: jnp.asarray(0.1), ("net",), features=features)

    @jax.jit
    def run(variables: Any) -> tuple[NodeOutput, Any, Any]:
        state = init_network(network, variables)
        places = jnp.arange(BATCH, dtype=jnp.int32)
        said, moved, pullback = forward(network, state, images, places, jax.random.key(3), parts)
        weights = jax.tree.map(lambda x: jnp.cos(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape), said)
        return said["net"], moved, pullback(weights)[0]

    out: tuple[NodeOutput, Any, Any] = run(whole)
    return out


def assert_close(a: Any, b: Any) -> None:
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("parts", [2, 4, 16])
def test_parts_are_the_whole_where_examples_do_not_meet(parts: int) -> None:
    """No BatchNorm: logits, features, dropout's masks and gradients are those of the whole batch."""
    with jax.enable_x64(True):
        assert_close(run_forward(WithoutNorm(), ("stage1",), parts), run_forward(WithoutNorm(), ("stage1",), 1))


def test_batch_norm_sees_a_part_after_the_other() -> None:
    with jax.enable_x64(True):
        module = models.create("two_layers", 10, dtype=jnp.float64, param_dtype=jnp.float64)
        said, moved, _ = run_forward(module, (), 2)
        images = np.random.default_rng(1).normal(size=(BATCH, 8, 8, 1))
        init = jax.jit(functools.partial(module.init, train=False))
        variables = jax.tree.map(np.float64, init(jax.random.key(0), images[:1]))
        apply = jax.jit(functools.partial(module.apply, train=True, mutable=["batch_stats"]))
        for part in range(2):
            logits, mutated = apply(variables, images[part::2])
            np.testing.assert_allclose(said.logits[part::2], logits, rtol=1e-9)
            variables = {**variables, **mutated}
        assert_close(moved, variables["batch_stats"])


@functools.cache
def losses(devices: int, *changes: tuple[str, Any]) -> list[float]:
    """The student's loss in three steps in float64."""
    c = tiny_runs.alone_config(batch_size=BATCH, dtype="float64", **dict(changes))
    split = tiny_runs.random_split(3 * BATCH)
    with jax.enable_x64(True):
        run = tiny_runs.tiny_plan(c, len(split), devices)
        state, data = tiny_runs.start(run, split)
        step = run.distribution.compile(run_spec.make_train_step(run), has_state=True)
        seen = []
        for first in range(0, len(split), BATCH):
            rows = np.arange(first, first + BATCH)
            state, metrics = tiny_runs.call(step, state, data, tiny_runs.batch(run, rows))
            seen.append(float(run.distribution.unreplicate(metrics)["student/loss"]))
    return seen


@pytest.mark.slow
def test_parts_are_the_same_on_any_devices() -> None:
    parts = ("gradient_accumulation", 2)
    for parallelism in ("jit", "pmap"):
        there = losses(2, parts, ("parallelism", parallelism))
        np.testing.assert_allclose(there, losses(1, parts), rtol=1e-9)
    assert losses(1)[0] != pytest.approx(losses(1, parts)[0], rel=1e-6)  # BatchNorm


@pytest.mark.parametrize(
    ("batch", "devices", "message"),
    [
        (18, 1, "4, which does not divide a batch, 18 examples on 1 device"),
        (16, 1, "4, which does not divide the last batch of an epoch, 10 examples on 1 device"),
        (16, 8, "4, which does not divide a batch, 16 examples on 8 device"),
    ],
)
def test_parts_have_to_be_equal(batch: int, devices: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        tiny_runs.tiny_plan(tiny_runs.tiny_config(batch_size=batch, gradient_accumulation=4), 5 * batch + 10, devices)


def gradients(name: str, remat: bool) -> Any:
    """At the parameters, of two images."""
    image = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 8, 3)))
    module = models.create(name, 5, dtype=jnp.float64, param_dtype=jnp.float64, remat=remat)
    variables = jax.jit(lambda key: module.init(key, image, train=False))(jax.random.key(0))

    def loss(params: Any) -> Any:
        logits, moved = module.apply({**variables, "params": params}, image, train=True, mutable=["batch_stats"])
        return jnp.sum(jnp.sin(logits)), moved

    return jax.jit(jax.grad(loss, has_aux=True))(variables["params"])


def test_blocks_that_are_computed_again_give_the_same_gradients() -> None:
    with jax.enable_x64(True):
        plain, again = gradients("wrn_10_1", False), gradients("wrn_10_1", True)
    assert str(jax.tree.structure(plain)) == str(jax.tree.structure(again))
    for x, y in zip(jax.tree.leaves(plain), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-7, atol=1e-9)


BLOCKS = {
    **{"wrn_16_2": 6, "resnet20": 9, "resnet18": 8, "resnet50": 16, "mobilenet": 13, "densenet_40_12": 18},
    **{"mobilenetv2_0.5": 17, "mobilenetv2_tiny_1.4": 17, "vit_small": 12, "swin_tiny": 12},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BLOCKS)
def test_every_block_is_computed_again(name: str) -> None:
    """In all models that have blocks; their parameters are the same."""

    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)

    def traced(remat: bool) -> tuple[str, str]:
        module = models.create(name, 5, remat=remat)
        variables = jax.eval_shape(lambda image: module.init(jax.random.key(0), image, train=False), image)
        jaxpr = jax.make_jaxpr(lambda variables, image: module.apply(variables, image, train=False))(variables, image)
        return str(jaxpr), str(jax.tree.structure(variables))

    (plain, parameters), (again, same) = traced(False), traced(True)
    assert parameters == same
    assert [len(re.findall(r"= (?:checkpoint|remat2)\[", jaxpr)) for jaxpr in (plain, again)] == [0, BLOCKS[name]]


def test_remat_by_config() -> None:
    np.testing.assert_allclose(losses(1, ("networks.student.remat", True)), losses(1), rtol=1e-9)
    c = tiny_runs.tiny_config("vgg8")
    c.networks.teacher.remat = True
    with pytest.raises(UserError, match=r"config.networks.teacher.remat: 'vgg8' has no blocks"):
        tiny_runs.tiny_plan(c, 64)


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "text"), [("tensorfloat32", "HIGH"), ("float32", "HIGHEST")])
def test_precision_of_products(precision: str, text: str) -> None:
    """As XLA is told it; only accelerators have less precise products."""
    c = tiny_runs.tiny_config(batch_size=BATCH, precision=precision)
    with precision_context(c.dtype, precision):
        run = tiny_runs.tiny_plan(c, 4 * BATCH)
        state, data = tiny_runs.start(run, tiny_runs.random_split(4 * BATCH))
        step = run.distribution.compile(run_spec.make_train_step(run), has_state=True)
        lowered = step.variants[True].lower(state, data, tiny_runs.batch(run, np.arange(BATCH)).examples, 1).as_text()
    products = [line for line in lowered.splitlines() if re.search(r"stablehlo\.(convolution|dot_general)", line)]
    assert products
    for line in products:
        assert re.search(rf"precision = \[{text}, {text}\]|precision {text}>.*precision {text}>", line), line
