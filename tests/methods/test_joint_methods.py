"""Methods with ensembles and trained modules against NumPy versions of their papers, gradients included.

A reference takes complex numbers: the imaginary part after a step of i h along a direction, divided by h, is the
derivative along it to the last digits (Squire and Trapp 1998). What a paper holds still stands in `still`.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from switokd_jax import topology
from switokd_jax.losses import cross_entropy
from switokd_jax.methods import METHODS, MethodInputs, MethodOutput, rampup_weight
from switokd_jax.models.init import init_in_float32
from switokd_jax.models.ops import convolution

BATCH, CLASSES = 8, 4
LABELS = np.asarray([0, 1, 2, 3, 0, 1, 2, 0])  # 3 is alone
NODES = ("a", "b", "c")
GRAPH = topology.complete(NODES)
FEATURES = {
    "stage1": (8, 8, 3),
    "stage2": (4, 4, 4),
    "stage3": (2, 2, 5),
    "pooled": (16,),
    "trunk_pooled": (3,),
}
EPOCH, STEP = 21, 1e-30
Reference = Callable[[Any, Any, Any], dict[str, Any]]


@functools.cache
def make_state(method: str) -> dict[str, Any]:
    """Logits and features of all networks, and the parameters of the method's modules."""
    rng = np.random.default_rng(0)
    entry = METHODS[method]
    spec = entry.features(entry.hyperparameters())
    shapes = {node: {"logits": (1, CLASSES)} | {k: (1, *v) for k, v in FEATURES.items()} for node in NODES}
    dtypes = {"dtype": jnp.float64, "param_dtype": jnp.float64}
    modules = dict(spec.modules(GRAPH, shapes, **dtypes))
    for edge in GRAPH.edges_from(frozenset("a")) if entry.offline else GRAPH.edges:
        modules |= spec.of_edge(edge, shapes[edge.learner], shapes[edge.source], **dtypes)
    variables = {
        name: init_in_float32(
            trained.module, jax.random.key(i), *(jnp.zeros((2, *shape[1:])) for shape in trained.inputs)
        )
        for i, (name, trained) in enumerate(modules.items())
    }
    params = jax.tree.map(
        lambda x: np.asarray(x, np.float64) + 0.1 * rng.normal(size=x.shape),
        {name: of["params"] for name, of in variables.items()},
    )
    return {
        "z": {node: 2 * rng.normal(size=(BATCH, CLASSES)) for node in NODES},
        "f": {node: {k: rng.normal(size=(BATCH, *v)) for k, v in FEATURES.items()} for node in NODES},
        "params": params,
        "modules": {name: trained.module for name, trained in modules.items()},
        "shapes": {name: trained.inputs for name, trained in modules.items()},
        "stats": {name: of["batch_stats"] for name, of in variables.items()},
        "averaged": {node: rng.normal(size=(BATCH, CLASSES)) for node in NODES},
    }


def apply(method: str, state: dict[str, Any], x: Any) -> MethodOutput:
    """The method itself, at {'z', 'f', 'params'}."""
    entry = METHODS[method]

    def bind(name: str) -> Any:
        def call(*inputs: jax.Array, frozen: bool = False) -> Any:
            params = jax.lax.stop_gradient(x["params"][name]) if frozen else x["params"][name]
            variables = {"params": params, "batch_stats": state["stats"][name]}
            output, mutated = state["modules"][name].apply(variables, *inputs, train=True, mutable=["batch_stats"])
            return output, mutated.get("batch_stats", {})

        return call

    inputs = MethodInputs(
        logits=x["z"],
        cross_entropy={node: jnp.mean(cross_entropy(z, jnp.asarray(LABELS))) for node, z in x["z"].items()},
        frozen=frozenset("a") if entry.offline else frozenset(),
        features=x["f"],
        adapters={name: bind(name) for name in state["modules"]},
        epoch=EPOCH,
        averaged_logits=jax.tree.map(jnp.asarray, state["averaged"]),
    )
    return entry.apply(inputs, jnp.asarray(LABELS), GRAPH, entry.hyperparameters())


def variables_of(state: dict[str, Any]) -> dict[str, Any]:
    return {name: state[name] for name in ("z", "f", "params")}


@functools.cache
def losses_and_gradients(method: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Every loss, and its gradient at {'z', 'f', 'params'}, in one program in float64."""
    with jax.enable_x64(True):
        state = make_state(method)

        def losses(x: Any) -> dict[str, jax.Array]:
            return dict(apply(method, state, x).losses)

        x = jax.tree.map(jnp.asarray, variables_of(state))
        return jax.device_get(jax.jit(lambda x: (losses(x), jax.jacrev(losses)(x)))(x))


def softmax(z: Any) -> Any:
    e = np.exp(z - z.real.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def kl(target: Any, z: Any, t: float) -> Any:
    """T^2 KL(softmax(target / T) || softmax(z / T)), the mean over rows."""
    p, q = softmax(target / t), softmax(z / t)
    return t**2 * (p * np.log(p / q)).sum(-1).mean()


def ce(z: Any) -> Any:
    return -np.log(softmax(z)[np.arange(BATCH), LABELS]).mean()


def relu(x: Any) -> Any:
    return np.where(x.real > 0, x, 0)


def norm(x: Any, of: Any) -> Any:
    axes = tuple(range(x.ndim - 1))
    mean = x.mean(axes)
    return (x - mean) / np.sqrt(((x - mean) ** 2).mean(axes) + 1e-5) * of["scale"] + of["bias"]


def conv(x: Any, kernel: Any, stride: int = 1, *, depthwise: bool = False) -> Any:
    """A convolution with padding kernel // 2, by loops over the kernel."""
    k = len(kernel)
    x = np.pad(x, ((0, 0), (k // 2, k // 2), (k // 2, k // 2), (0, 0)))
    height, width = ((x.shape[i] - k) // stride + 1 for i in (1, 2))
    out: Any = 0
    for i, j in itertools.product(range(k), range(k)):
        part = x[:, i : i + stride * height : stride, j : j + stride * width : stride]
        out = out + (part * kernel[i, j, 0] if depthwise else part @ kernel[i, j])
    return out


def linear(x: Any, of: Any) -> Any:
    return x @ of["kernel"] + of.get("bias", 0.0)


RAMP = float(np.exp(-5 * (1 - 20 / 80) ** 2))


def cl_ilr(x: Any, still: Any, averaged: Any) -> dict[str, Any]:
    losses = {}
    for i in NODES:
        others = sum(still["z"][j] for j in NODES if j != i) / 2
        losses[i] = 0.5 * ce(x["z"][i]) + 0.5 * kl(others, x["z"][i], 2.0)
    return losses


def one(x: Any, still: Any, averaged: Any) -> dict[str, Any]:
    def ensemble(x: Any) -> Any:
        gate = x["params"]["gate"]
        weights = softmax(relu(norm(linear(x["f"]["a"]["trunk_pooled"], gate["linear"]), gate["bn"])))
        return sum(weights[:, n : n + 1] * x["z"][node] for n, node in enumerate(NODES))

    losses = {i: ce(x["z"][i]) + RAMP * kl(ensemble(still), x["z"][i], 3.0) for i in NODES}
    return {**losses, "ensemble": ce(ensemble(x))}


def okddip(x: Any, still: Any, averaged: Any) -> dict[str, Any]:
    """The targets move, as in the public code."""
    query, key = (x["params"]["attention"][name]["kernel"] for name in ("query", "key"))
    losses = {}
    for i in "ab":
        scores = [(x["f"][i]["pooled"] @ query * (x["f"][j]["pooled"] @ key)).sum(1) for j in "ab"]
        weights = softmax(np.stack(scores, axis=1))
        target = weights[:, :1] * x["z"]["a"] + weights[:, 1:] * x["z"]["b"]
        losses[i] = ce(x["z"][i]) + RAMP * kl(target, x["z"][i], 3.0)
    losses["c"] = ce(x["z"]["c"]) + RAMP * kl((x["z"]["a"] + x["z"]["b"]) / 2, x["z"]["c"], 3.0)
    return losses


def ffl(x: Any, still: Any, averaged: Any) -> dict[str, Any]:
    def fused(x: Any) -> Any:
        of = x["params"]["fusion"]
        maps = np.concatenate([x["f"][i]["stage3"] for i in NODES], axis=-1)
        maps = relu(norm(conv(maps, of["depthwise"]["kernel"], depthwise=True), of["bn1"]))
        return linear(relu(norm(linear(maps, of["pointwise"]), of["bn2"])).mean((1, 2)), of["linear"])

    mean = sum(still["z"].values()) / 3
    losses = {i: ce(x["z"][i]) + RAMP * kl(fused(still), x["z"][i], 3.0) for i in NODES}
    return {**losses, "ensemble": ce(fused(x)) + RAMP * kl(mean, fused(x), 3.0)}


def pcl(x: Any, still: Any, averaged: Any) -> dict[str, Any]:
    def ensemble(x: Any) -> Any:
        return linear(np.concatenate([x["f"][i]["pooled"] for i in NODES], axis=-1), x["params"]["ensemble"]["linear"])

    losses = {"ensemble": ce(ensemble(x))}
    for i in NODES:
        others = sum(kl(averaged[j], x["z"][i], 3.0) for j in NODES if j != i) / 2
        losses[i] = ce(x["z"][i]) + RAMP * (kl(ensemble(still), x["z"][i], 3.0) + others)
    return losses


def mcl(x: Any, still: Any, averaged: Any) -> dict[str, Any]:
    def embed(x: Any, i: str) -> Any:
        of = x["params"][f"{i}/embedding"]
        v = linear(relu(linear(x["f"][i]["pooled"], of["linear1"])), of["linear2"])
        return v / np.sqrt((v**2).sum(1, keepdims=True))

    def contrast(s: Any) -> Any:
        """Image by image, with those that have another one of their class."""
        of_image = []
        for b in range(BATCH):
            log_total = np.log(sum(np.exp(s[b, k]) for k in range(BATCH) if k != b))
            positives = [s[b, k] - log_total for k in range(BATCH) if k != b and LABELS[k] == LABELS[b]]
            of_image += [-sum(positives) / len(positives)] if positives else []
        assert len(of_image) == BATCH - 1
        return sum(of_image) / len(of_image)

    def similarity(x: Any, i: str, j: str) -> Any:
        return embed(x, i) @ embed(x, j).T / 0.07

    losses = {}
    for i in NODES:
        losses[i] = ce(x["z"][i]) + kl(sum(still["z"].values()) / 3, x["z"][i], 3.0)
        losses[i] += 0.1 * contrast(similarity(x, i, i))
        for j in set(NODES) - {i}:
            losses[i] += kl(similarity(still, j, j), similarity(x, i, i), 3.0)
            losses[i] += 0.1 * contrast(similarity(x, i, j))
            losses[i] += kl(similarity(still, j, i), similarity(x, i, j), 3.0)
    return losses


def afd(x: Any, still: Any, averaged: Any) -> dict[str, Any]:
    def transfer(x: Any, i: str) -> Any:
        of = x["params"][f"{i}/transfer"]
        return relu(norm(linear(x["f"][i]["stage3"], of["conv"]), of["bn"]))

    def discriminate(of: Any, maps: Any) -> Any:
        for name in ("conv1", "conv2"):
            maps = conv(maps, of[name]["kernel"]) + of[name]["bias"]
            maps = np.where(maps.real > 0, maps, 0.1 * maps)
        return 1 / (1 + np.exp(-linear(maps.mean((1, 2)), of["linear"])[:, 0]))

    losses = {}
    for i, following in zip("abc", "bca", strict=True):
        of, of_still = (y["params"][f"{i}/discriminator"] for y in (x, still))
        others = sum(kl(still["z"][j], x["z"][i], 3.0) for j in NODES if j != i) / 2
        losses[i] = ce(x["z"][i]) + others + ((1 - discriminate(of_still, transfer(x, i))) ** 2).mean()
        fake, real = discriminate(of, transfer(still, i)), discriminate(of, still["f"][following]["stage3"])
        losses[f"{i}/discriminator"] = (fake**2).mean() + ((1 - real) ** 2).mean()
    return losses


def shake(x: Any, still: Any, averaged: Any) -> dict[str, Any]:
    """Node a is the frozen teacher."""
    losses = {"a": ce(x["z"]["a"])}
    for i in "bc":

        def shadow(x: Any, i: str = i) -> Any:
            of = x["params"][f"{i} <- a/shadow"]
            first, second, third = (still["f"]["a"][stage] for stage in ("stage1", "stage2", "stage3"))

            def block(name: str, maps: Any, stride: int = 1) -> Any:
                return relu(norm(conv(maps, of[name]["kernel"], stride), of[f"{name}_bn"]))

            maps = block("first", first, 2) + block("second", second)
            maps = block("last", block("fused", maps, 2) + block("third", third))
            return linear(maps.mean((1, 2)), of["linear"])

        losses[i] = ce(x["z"][i]) + kl(still["z"]["a"], x["z"][i], 4.0) + kl(shadow(still), x["z"][i], 4.0)
        error = ((shadow(x) - still["z"]["a"]) ** 2).mean()
        losses[f"{i} <- a/shadow"] = kl(still["z"][i], shadow(x), 4.0) + ce(shadow(x)) + error
    return losses


REFERENCES: dict[str, Reference] = {
    **{"cl_ilr": cl_ilr, "one": one, "okddip": okddip, "ffl": ffl, "pcl": pcl, "mcl": mcl, "afd": afd, "shake": shake}
}


@pytest.mark.slow
@pytest.mark.parametrize("method", REFERENCES)
def test_losses_and_gradients_are_those_of_the_paper(method: str) -> None:
    """To 1e-10 in float64, along random directions through logits, features and the modules' parameters."""
    rng = np.random.default_rng(1)
    losses, gradients = losses_and_gradients(method)
    with jax.enable_x64(True):
        state = make_state(method)
    x = variables_of(state)
    expected = REFERENCES[method](x, x, state["averaged"])
    assert losses.keys() == expected.keys()
    for name, loss in losses.items():
        np.testing.assert_allclose(loss, expected[name], rtol=1e-10, err_msg=name)
    for part in x if state["modules"] else ("z",):
        direction = jax.tree.map(lambda a: np.zeros(a.shape), x)
        direction[part] = jax.tree.map(lambda a: rng.normal(size=a.shape), x[part])
        ahead = jax.tree.map(lambda a, d: a + 1j * STEP * d, x, direction)
        derivatives = REFERENCES[method](ahead, x, state["averaged"])
        for name, gradient in gradients.items():
            products = jax.tree.map(lambda g, d: np.sum(g * d), gradient, direction)
            found, derivative = sum(jax.tree.leaves(products)), derivatives[name].imag / STEP
            np.testing.assert_allclose(found, derivative, rtol=1e-10, atol=1e-12, err_msg=f"{name} along {part}")


@pytest.mark.slow
@pytest.mark.parametrize("method", REFERENCES)
def test_joint_losses_and_no_others_reach_several_networks(method: str) -> None:
    """Gradients at the logits and the features of other networks."""
    most = 0
    for name, gradient in losses_and_gradients(method)[1].items():
        reached = {
            node for node in NODES if any(np.any(g) for g in (gradient["z"][node], *gradient["f"][node].values()))
        }
        most = max(most, len(reached))
        assert name not in NODES or name in reached
    assert (most > 1) == METHODS[method].joint


@pytest.mark.slow
def test_fooling_does_not_train_the_discriminator() -> None:
    gradients = losses_and_gradients("afd")[1]
    of_network, of_discriminator = gradients["a"], gradients["a/discriminator"]
    assert not any(np.any(g) for g in jax.tree.leaves(of_network["params"]["a/discriminator"]))
    assert all(np.any(g) for g in jax.tree.leaves(of_network["params"]["a/transfer"]["conv"]))
    assert all(np.any(g) for g in jax.tree.leaves(of_discriminator["params"]["a/discriminator"]))
    assert not np.any(of_discriminator["f"]["a"]["stage3"])


@pytest.mark.parametrize("method", ["ffl", "afd", "shake"])
def test_modules_take_the_convolution_of_their_run(method: str) -> None:
    """It has the same values and gradients; its padding is written in numbers."""
    with jax.enable_x64(True):
        state = make_state(method)
        found = [name for name, module in state["modules"].items() if hasattr(module, "convolution")]
        assert found
        for name in found:
            module, rng = state["modules"][name], np.random.default_rng(0)
            variables = {"params": state["params"][name], "batch_stats": state["stats"][name]}
            inputs = [jnp.asarray(rng.normal(size=(BATCH, *shape[1:]))) for shape in state["shapes"][name]]

            def loss(params: Any, module: Any = module, variables: Any = variables, inputs: Any = inputs) -> Any:
                output, _ = module.apply({**variables, "params": params}, *inputs, train=True, mutable=["batch_stats"])
                return jnp.sum(jnp.sin(output))

            plain = jax.value_and_grad(loss)(variables["params"])
            own = convolution.for_devices("cpu", single_device=True)
            fast = jax.value_and_grad(loss)(variables["params"], module.clone(convolution=own))
            jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-12), plain, fast)


def test_an_ensemble_reports_its_accuracy() -> None:
    with jax.enable_x64(True):
        state = make_state("ffl")
        output = apply("ffl", state, jax.tree.map(jnp.asarray, variables_of(state)))
    assert 0.0 <= float(output.metrics["ensemble/top1"]) <= 100.0
    assert {f"{node}/distillation" for node in NODES} < output.metrics.keys()


def test_every_method_with_modules_has_a_reference() -> None:
    """A new method cannot be left out."""
    with_modules = {name for name, method in METHODS.items() if method.features(method.hyperparameters()).has_modules}
    assert with_modules <= {*REFERENCES}


@pytest.mark.parametrize(("epoch", "weight"), [(1, np.exp(-5.0)), (21, RAMP), (81, 1.0), (300, 1.0)])
def test_rampup(epoch: int, weight: float) -> None:
    assert float(rampup_weight(jnp.asarray(epoch), 80.0)) == pytest.approx(weight, rel=1e-6)
