"""Networks with branches: each branch with the trunk is the ordinary network, and the trunk learns from all."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import tiny_runs  # registers its networks
from switokd_jax import models
from switokd_jax.forward import NetworkSpec, apply_network
from switokd_jax.models import branches
from switokd_jax.models.init import init_variables

MODELS = (
    "resnet8",
    "wrn_10_1",
    "resnet8_rd",
    "wrn_10_1_rd",
    "densenet_10_4",
    "vgg8",
    "mobilenet",
    "mobilenetv2_0.25",
    "mobilenetv2_tiny_0.25",
)
IMAGENET = ("resnet18_cifar", "resnet18", "resnet50_cifar")
FLOAT64 = {"dtype": jnp.float64, "param_dtype": jnp.float64}


def shapes(module: Any, size: int = 32) -> Any:
    return jax.eval_shape(lambda: init_variables(module, jax.random.key(0), (size, size, 3)))


def count(tree: Any) -> int:
    return sum(x.size for x in jax.tree.leaves(tree))


@pytest.mark.parametrize("branch_from", ["", "stage2"])
@pytest.mark.parametrize("name", MODELS + IMAGENET)
def test_trunk_and_branch_have_the_variables_of_the_ordinary_network(name: str, branch_from: str) -> None:
    ordinary = models.create(name, 10)
    module = models.create(name, 10, branches=3, branch_from=branch_from)
    whole, single = shapes(module), shapes(ordinary)
    for variables, network in zip(
        branches.split_variables(module, whole), branches.single_networks(module), strict=True
    ):
        assert network == ordinary
        assert variables == single
    trunk, branch = count(whole["params"]["trunk"]), count(whole["params"]["branch1"])
    assert trunk + branch == count(single["params"])
    assert trunk + 3 * branch == count(whole["params"])


@pytest.mark.parametrize(
    ("name", "num_branches", "branch_from", "parameters"),
    [
        # By hand: the trunk has conv1 and bn1, five blocks of 16 channels, one from 16 to 32 and four of 32; a branch
        # has one block from 32 to 64, four of 64, and the classifier.
        ("resnet32", 3, "", 432 + 32 + 5 * 4_672 + 13_952 + 4 * 18_560 + 3 * (55_552 + 4 * 73_984 + 6_500)),
        ("resnet8", 3, "", 19_088 + 3 * 56_202),
    ],
)
def test_parameter_count(name: str, num_branches: int, branch_from: str, parameters: int) -> None:
    classes = 100 if name == "resnet32" else 10
    module = models.create(name, classes, branches=num_branches, branch_from=branch_from)
    assert count(shapes(module)["params"]) == parameters


@functools.cache
def computed(mean_gradient: bool) -> tuple[Any, Any, Any, Any]:
    """A network of three branches, its variables, its logits, and the gradient of a sum of all logits' sines."""
    module = models.create("two_layers", 10, branches=3, branch_from="stage2", mean_gradient=mean_gradient, **FLOAT64)
    images = jnp.asarray(np.random.default_rng(0).normal(size=(4, 8, 8, 1)))
    variables = jax.tree.map(jnp.float64, init_variables(module, jax.random.key(0), tiny_runs.SHAPE))

    def loss(params: Any) -> tuple[jax.Array, Any]:
        logits: Any = module.apply({**variables, "params": params}, images, train=False)
        return jnp.sum(jnp.sin(jnp.stack(logits))), logits

    gradient, logits = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
    return module, variables, logits, gradient


def test_every_branch_computes_the_ordinary_network() -> None:
    with jax.enable_x64(True):
        module, variables, logits, _ = computed(False)
        images = jnp.asarray(np.random.default_rng(0).normal(size=(4, 8, 8, 1)))
        for branch, own in zip(logits, branches.split_variables(module, variables), strict=True):
            ordinary = branches.single_networks(module)[0].apply(own, images, train=False)
            np.testing.assert_allclose(branch, ordinary, rtol=1e-12)


def test_branches_start_from_different_draws() -> None:
    with jax.enable_x64(True):
        _, variables, logits, _ = computed(False)
    kernels = [variables["params"][f"branch{i}"]["conv2"]["kernel"] for i in (1, 2, 3)]
    assert not np.any(np.asarray(kernels[0] == kernels[1]))
    assert not np.any(np.asarray(kernels[1] == kernels[2]))
    assert np.all(np.abs(logits[0] - logits[1]) > 1e-6)


def test_the_trunk_learns_from_the_sum_or_the_mean_of_the_branches() -> None:
    """CL-ILR divides the gradient that arrives at the trunk; the branches' own gradients stay."""
    with jax.enable_x64(True):
        total, mean = (computed(mean_gradient)[3] for mean_gradient in (False, True))
    for name, tree in total.items():
        divisor = 3.0 if name == "trunk" else 1.0
        jax.tree.map(
            lambda a, b, d=divisor: np.testing.assert_allclose(np.asarray(a) / d, b, rtol=1e-12), tree, mean[name]
        )


def test_features_of_branches_and_trunk_have_names() -> None:
    module = models.create("two_layers", 10, branches=2, branch_from="stage2")
    variables = init_variables(module, jax.random.key(0), tiny_runs.SHAPE)
    images = jax.random.normal(jax.random.key(1), (2, *tiny_runs.SHAPE))
    _, mutated = module.apply(variables, images, train=False, mutable=["intermediates"])
    first, second = branches.split_collection(module, mutated["intermediates"])
    assert {*first} == {*second} == {"stage1", "stage2", "stage3", "pooled", "trunk_pooled"}
    assert first["stage1"] is second["stage1"]
    assert np.any(np.asarray(first["pooled"][0]) != np.asarray(second["pooled"][0]))
    np.testing.assert_allclose(first["trunk_pooled"][0], np.mean(first["stage1"][0], axis=(1, 2)), rtol=1e-6)


def test_every_branch_computes_its_own_view() -> None:
    """Its logits, and the features of its trunk, are those of the ordinary network on that view."""
    module = models.create("two_layers", 10, branches=2, branch_from="stage2")
    variables = init_variables(module, jax.random.key(0), tiny_runs.SHAPE)
    views = jax.random.normal(jax.random.key(1), (3, 2, *tiny_runs.SHAPE))
    spec = NetworkSpec(
        module,
        optax.identity(),
        optax.constant_schedule(0.1),
        ("a", "b"),
        frozen=True,
        features=("stage1", "trunk_pooled"),
    )
    outputs, _ = apply_network(spec, variables, views)
    for i, own in enumerate(branches.split_variables(module, variables)):
        output = outputs["ab"[i]]
        logits, seen = branches.single_networks(module)[i].apply(
            own, views[:, i], train=False, mutable=["intermediates"]
        )
        np.testing.assert_allclose(output.logits, logits, rtol=1e-5)
        stage1 = seen["intermediates"]["stage1"][0]
        np.testing.assert_allclose(output.features["stage1"], stage1, rtol=1e-5)
        np.testing.assert_allclose(output.features["trunk_pooled"], np.mean(stage1, axis=(1, 2)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "branch_from", "message"),
    [
        ("vit_small", "", "VisionTransformer cannot have branches; take one of the CNN families"),
        ("resnet8", "stage1", "branches cannot start at 'stage1'; choose from stage2, stage3"),
        ("resnet8", "layer3", "branches cannot start at 'layer3'; choose from stage2, stage3"),
    ],
)
def test_what_cannot_branch_is_told(name: str, branch_from: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        models.create(name, 10, branches=2, branch_from=branch_from)
