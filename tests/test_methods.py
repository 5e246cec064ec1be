"""Methods on every topology against an independent NumPy computation, and their gradients by differences."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from switokd_jax import topology
from switokd_jax.losses import cross_entropy
from switokd_jax.methods import METHODS, Decision, Outputs

CLASSES, BATCH = 4, 6
TOPOLOGIES = {
    "pair": topology.pair("a", "b", alpha=0.7, beta=1.3),
    "2t1s": topology.star(["a", "b"], ["c"]),
    "1t2s": topology.star(["a"], ["b", "c"]),
    "chain": topology.chain(["a", "b", "c"]),
    "relay": topology.chain(["a", "b", "c"], relay="learn"),
    "complete": topology.complete(["a", "b", "c"]),
}
LABELS = np.asarray([0, 1, 2, 3, 0, 1])


def random_logits(graph: topology.Topology, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    # Sharper from the last node to the first, so that both modes come up over the seeds.
    return {
        name: (2 * rng.normal(size=(BATCH, CLASSES)) + sharp * np.eye(CLASSES)[LABELS]).astype(np.float64)
        for sharp, name in zip(rng.permutation(3)[: len(graph.nodes)] * 2.0, graph.nodes, strict=True)
    }


def decide(method: str, graph: topology.Topology, logits: dict[str, Any], **changes: Any) -> Decision:
    ce = {name: jnp.mean(cross_entropy(jnp.asarray(z), jnp.asarray(LABELS))) for name, z in logits.items()}
    outputs = Outputs({name: jnp.asarray(z) for name, z in logits.items()}, ce)
    entry = METHODS[method]
    return entry.apply(outputs, jnp.asarray(LABELS), graph, entry.hyperparameters(**changes))


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def expected_expert(student: np.ndarray, teacher: np.ndarray, tau: float) -> bool:
    p, q, truth = softmax(student / tau), softmax(teacher / tau), np.eye(CLASSES)[LABELS]
    d_s, d_t, gap = (np.abs(a - b).sum(1).mean() for a, b in ((p, truth), (q, truth), (p, q)))
    return bool(gap > d_s - np.exp(-d_t / (d_s + d_t)) * d_t and d_t < d_s)


def expected_switokd(graph: topology.Topology, z: dict[str, np.ndarray], tau: float) -> tuple[dict, dict]:
    expert = {(t, s): expected_expert(z[s], z[t], tau) for t, s in graph.pairs}
    losses = {}
    for node in graph.nodes:
        log_p = np.log(softmax(z[node]))
        losses[node] = -log_p[np.arange(BATCH), LABELS].mean()
        for e in graph.edges:
            if e.learner == node and not (e.gate and expert[e.gate]):
                p, q = softmax(z[e.source] / tau), softmax(z[node] / tau)
                losses[node] += e.weight * tau**2 * (p * np.log(p / q)).sum(1).mean()
    learn = {}
    for node in graph.nodes:
        own = [not x for (t, _), x in expert.items() if t == node]
        learn[node] = not own or node in graph.relay or any(own)
    return losses, learn


@pytest.mark.parametrize("name", TOPOLOGIES)
@pytest.mark.parametrize("tau", [1.0, 2.0])
def test_switokd(name: str, tau: float) -> None:
    graph = TOPOLOGIES[name]
    modes = set()
    with jax.enable_x64(True):
        for seed in range(40):
            z = random_logits(graph, seed)
            losses, learn = expected_switokd(graph, z, tau)
            decision = decide("switokd", graph, z, temperature=tau)
            for node in graph.nodes:
                assert decision.losses[node] == pytest.approx(losses[node], rel=1e-12)
                assert bool(decision.learn.get(node, True)) == learn[node]
            modes |= {bool(s.expert) for s in decision.switches.values()}
    assert modes == ({True, False} if graph.pairs else set())


def test_teacher_of_two_learns_from_the_student_that_keeps_up() -> None:
    graph = TOPOLOGIES["1t2s"]
    truth = np.eye(CLASSES)[LABELS]
    z = {"a": 2 * truth, "b": 9 * np.roll(truth, 1, axis=1), "c": 8 * truth}  # b is wrong, c is ahead
    with jax.enable_x64(True):
        decision = decide("switokd", graph, z)
        assert bool(decision.switches["a", "b"].expert)
        assert not bool(decision.switches["a", "c"].expert)
        assert bool(decision.learn["a"])
        alone = decide("switokd", topology.pair("a", "c"), {k: z[k] for k in "ac"})
        assert decision.losses["a"] == pytest.approx(float(alone.losses["a"]))


@pytest.mark.parametrize("mode", ["learning", "expert"])
def test_forced_modes(mode: str) -> None:
    for seed in range(3):
        decision = decide("switokd", TOPOLOGIES["pair"], random_logits(TOPOLOGIES["pair"], seed), mode=mode)
        assert bool(decision.learn["a"]) == (mode == "learning")


def test_dml_divides_by_the_others() -> None:
    graph = TOPOLOGIES["complete"]
    z = random_logits(graph, 0)
    with jax.enable_x64(True):
        decision = decide("dml", graph, z, temperature=2.0)
        for node in graph.nodes:
            expected = -np.log(softmax(z[node]))[np.arange(BATCH), LABELS].mean()
            for other in set(graph.nodes) - {node}:
                p, q = softmax(z[other] / 2), softmax(z[node] / 2)
                expected += 4 * (p * np.log(p / q)).sum(1).mean() / 2
            assert decision.losses[node] == pytest.approx(expected, rel=1e-12)
    assert not decision.learn


def test_vanilla_is_cross_entropy() -> None:
    z = random_logits(TOPOLOGIES["pair"], 0)
    decision = decide("vanilla", TOPOLOGIES["pair"], z)
    assert decision.losses["a"] == pytest.approx(-np.log(softmax(z["a"]))[np.arange(BATCH), LABELS].mean(), rel=1e-5)


@pytest.mark.parametrize(("method", "name"), list(itertools.product(METHODS, TOPOLOGIES)))
def test_gradients(method: str, name: str) -> None:
    """Each loss has the finite-difference gradient at its own logits and none at the others'."""
    graph = TOPOLOGIES[name]
    z = random_logits(graph, 1)
    rng = np.random.default_rng(2)
    with jax.enable_x64(True):
        for node in graph.nodes:
            gradient = jax.grad(lambda logits, node=node: decide(method, graph, logits).losses[node])(z)
            for other in graph.nodes:
                if other != node:
                    assert not np.any(gradient[other]), (node, other)
            direction = rng.normal(size=z[node].shape)
            h = 1e-6
            ahead, behind = (
                float(decide(method, graph, {**z, node: z[node] + s * h * direction}).losses[node]) for s in (1, -1)
            )
            assert (ahead - behind) / (2 * h) == pytest.approx(float((gradient[node] * direction).sum()), rel=1e-5)
