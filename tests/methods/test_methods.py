"""Methods on every topology against an independent NumPy computation, and their gradients by differences."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from switokd_jax import topology
from switokd_jax.losses import cross_entropy
from switokd_jax.methods import (
    METHODS,
    MemoryInputs,
    MethodInputs,
    MethodOutput,
    add_distillation,
    at,
    crd,
    dkd,
    fitnet,
    kdcl,
)

CLASSES, BATCH = 4, 6
TOPOLOGIES = {
    "pair": topology.pair("a", "b", alpha=0.7, beta=1.3),
    "2t1s": topology.star(["a", "b"], ["c"]),
    "1t2s": topology.star(["a"], ["b", "c"]),
    "chain": topology.chain(["a", "b", "c"]),
    "relay": topology.chain(["a", "b", "c"], relay="learn"),
    "complete": topology.complete(["a", "b", "c"]),
}
LABELS = np.asarray([0, 1, 2, 3, 0, 1], np.int64)
# Those with modules other than adapters of edges are in test_joint_methods.py.
WITHOUT_MODULES = [
    name for name, method in METHODS.items() if not method.features(method.hyperparameters()).has_modules
]


def random_logits(graph: topology.Topology, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    # Sharper from the last node to the first, so that both modes come up over the seeds.
    return {
        name: (2 * rng.normal(size=(BATCH, CLASSES)) + sharp * np.eye(CLASSES)[LABELS]).astype(np.float64)
        for sharp, name in zip(rng.permutation(3)[: len(graph.nodes)] * 2.0, graph.nodes, strict=True)
    }


STAGES = ("stage1", "stage2", "stage3")


def random_features(node: str) -> dict[str, np.ndarray]:
    """Maps of 4x4, 4x4 and 2x2 pixels with three channels, and a vector of five."""
    rng = np.random.default_rng(ord(node))
    maps = {stage: rng.normal(size=(BATCH, side, side, 3)) for stage, side in zip(STAGES, (4, 4, 2), strict=True)}
    return maps | {"pooled": rng.normal(size=(BATCH, 5))}


# Twenty training images: the batch is the first six.
TRAINING_LABELS = np.concatenate([LABELS, np.arange(14) % CLASSES]).astype(np.int32)
SMALL_CRD: dict[str, Any] = {"size": 5, "negatives": 9}


def adapter(method: str) -> Any:
    """FitNet's doubles what it gets, CRD's brings both vectors to unit length."""
    if method != "crd":
        return lambda x, y: (2 * x, {})
    return lambda x, y: (tuple(v / jnp.linalg.norm(v, axis=1, keepdims=True) for v in (x, y)), {})


def keys(graph: topology.Topology) -> dict[str, jax.Array]:
    return {str(edge): jax.random.key(i) for i, edge in enumerate(graph.edges)}


def decide(
    method: str,
    graph: topology.Topology,
    logits: dict[str, Any],
    epoch: int = 1,
    memory: Any = None,
    features: dict[str, Any] | None = None,
    labels: np.ndarray = LABELS,
    **changes: Any,
) -> MethodOutput:
    """The method on these logits; the first node is frozen for the offline ones."""
    ce = {name: jnp.mean(cross_entropy(jnp.asarray(z), jnp.asarray(labels))) for name, z in logits.items()}
    entry = METHODS[method]
    frozen = frozenset(graph.nodes[:1] if entry.offline else ())
    hyperparameters = entry.hyperparameters(**(SMALL_CRD if method == "crd" else {}), **changes)
    if entry.default_features:
        hyperparameters = entry.default_features(hyperparameters, STAGES, STAGES)
    if memory is None:
        memory = entry.init_memory(hyperparameters, MemoryInputs(graph.nodes, TRAINING_LABELS, keys(graph)))
    inputs = MethodInputs(
        {name: jnp.asarray(z) for name, z in logits.items()},
        ce,
        frozen,
        jax.tree.map(jnp.asarray, features or {node: random_features(node) for node in graph.nodes}),
        {str(edge): adapter(method) for edge in graph.edges},
        jnp.arange(BATCH),
        keys(graph),
        epoch,
        memory,
    )
    return entry.apply(inputs, jnp.asarray(labels), graph, hyperparameters)


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
                assert bool(decision.should_update.get(node, True)) == learn[node]
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
        assert bool(decision.should_update["a"])
        alone = decide("switokd", topology.pair("a", "c"), {k: z[k] for k in "ac"})
        assert decision.losses["a"] == pytest.approx(float(alone.losses["a"]))


@pytest.mark.slow
@pytest.mark.parametrize("method", WITHOUT_MODULES)
@pytest.mark.parametrize("name", ["pair", "complete"])
def test_the_distillation_metric_is_the_loss_without_its_task_part(method: str, name: str) -> None:
    graph = TOPOLOGIES[name]
    z = random_logits(graph, 1)
    with jax.enable_x64(True):
        output = decide(method, graph, z)
        task_share = {"kd": 0.1, "rco": 0.1, "cl_ilr": 0.5}.get(method, 1.0)
        assert [*output.metrics] == [f"{node}/distillation" for node in graph.nodes]
        for node in graph.nodes:
            distillation = float(output.losses[node]) - task_share * ce(z[node]).mean()
            assert output.metrics[f"{node}/distillation"] == pytest.approx(distillation, abs=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("method", WITHOUT_MODULES)
def test_probabilities_of_one_class_are_as_good_as_its_number(method: str) -> None:
    """As with mixed images, of which each is its own partner."""
    graph = TOPOLOGIES["pair"]
    for target in ("naive", "linear", "minlogit", "general") if method == "kdcl" else ("",):
        changes: dict[str, Any] = {"target": target} if target else {}
        with jax.enable_x64(True):
            logits = random_logits(graph, 3)
            numbers = decide(method, graph, logits, **changes)
            probabilities = decide(method, graph, logits, labels=np.eye(CLASSES)[LABELS], **changes)
        assert numbers.losses
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-10), numbers, probabilities)


def test_distillation_terms_are_added_in_their_order() -> None:
    task, terms = {"a": jnp.float32(1.0)}, [("a", jnp.float32(term)) for term in (1e8, -1e8, 0.25)]
    assert add_distillation(task, terms).losses["a"] == 0.25, "the 1 is lost in 1e8"


@pytest.mark.parametrize("mode", ["learning", "expert"])
def test_forced_modes(mode: str) -> None:
    for seed in range(3):
        decision = decide("switokd", TOPOLOGIES["pair"], random_logits(TOPOLOGIES["pair"], seed), mode=mode)
        assert bool(decision.should_update["a"]) == (mode == "learning")


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
    assert not decision.should_update


def test_vanilla_is_cross_entropy() -> None:
    z = random_logits(TOPOLOGIES["pair"], 0)
    decision = decide("vanilla", TOPOLOGIES["pair"], z)
    assert decision.losses["a"] == pytest.approx(-np.log(softmax(z["a"]))[np.arange(BATCH), LABELS].mean(), rel=1e-5)


def kl(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    return (p * np.log(p / q)).sum(-1)


def ce(z: np.ndarray) -> np.ndarray:
    return -np.log(softmax(z))[np.arange(BATCH), LABELS]


@pytest.mark.slow
@pytest.mark.parametrize("name", TOPOLOGIES)
def test_uniokd(name: str) -> None:
    """Against the public script's rule, pair by pair; alpha and beta stand on the edges."""
    graph, modes = TOPOLOGIES[name], set()
    truth = np.eye(CLASSES)[LABELS]
    with jax.enable_x64(True):
        for seed in range(40):
            z = random_logits(graph, seed)
            p = {node: softmax(z[node]) for node in graph.nodes}
            d = {node: np.abs(p[node] - truth).sum(1).mean() for node in graph.nodes}
            expert = {}
            for t, s in graph.pairs:
                delta = d[s] - np.exp(-(2 - d[t]) * d[t] / (d[t] + d[s])) * d[t]
                expert[t, s] = np.abs(p[t] - p[s]).sum(1).mean() > delta and d[t] < d[s]
            losses = {node: ce(z[node]).mean() for node in graph.nodes}
            for e in graph.edges:
                tau, weights = 2.0, np.ones(BATCH)
                if e.gate and expert[e.gate]:
                    continue
                if not e.gate and expert.get((e.source, e.learner), False):
                    right = z[e.source].argmax(1) == LABELS
                    tau, weights = 4.0, np.where(right, 1.0, d[e.source] / 2)
                divergence = kl(softmax(z[e.source] / tau), softmax(z[e.learner] / tau))
                losses[e.learner] += e.weight * tau**2 * (weights * divergence).mean()
            decision = decide("uniokd", graph, z)
            for node in graph.nodes:
                assert decision.losses[node] == pytest.approx(losses[node], rel=1e-12)
            modes |= set(expert.values())
    assert modes == ({True, False} if graph.pairs else set())


def target_of(kind: str, z: np.ndarray, weights: np.ndarray, tau: float) -> np.ndarray:
    """KDCL's target [batch, classes], as logits, of logits [n, batch, classes], example by example."""
    out = np.empty(z.shape[1:])
    for b, y in enumerate(LABELS):
        own = z[:, b]
        if kind == "naive":
            out[b] = own[np.argmin([ce(z[i])[b] for i in range(len(z))])]
        elif kind == "minlogit":
            out[b] = [min(own[i, c] - own[i, y] for i in range(len(z))) for c in range(CLASSES)]
        elif kind == "general":
            out[b] = tau * np.log(sum(w * softmax(row / tau) for w, row in zip(weights, own, strict=True)))
        else:  # the best point of the simplex, by SciPy

            def loss(a: np.ndarray, own: np.ndarray = own, y: int = int(y)) -> float:
                return float(-np.log(softmax(a @ own))[y])

            found = optimize.minimize(
                loss,
                np.full(len(own), 1 / len(own)),
                method="SLSQP",
                bounds=[(0, 1)] * len(own),
                constraints={"type": "eq", "fun": lambda a: a.sum() - 1},
                options={"ftol": 1e-14, "maxiter": 500},
            )
            out[b] = found.x @ own
    return out


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["naive", "linear", "minlogit", "general"])
def test_kdcl(kind: str) -> None:
    graph = TOPOLOGIES["complete"]
    weights = np.asarray([0.3, 0.7, 0.0])
    tau = 2.0
    with jax.enable_x64(True):
        for seed in range(3):
            z = random_logits(graph, seed)
            target = target_of(kind, np.stack([z[node] for node in graph.nodes]), weights, tau)
            memory = jnp.asarray(weights) if kind == "general" else None
            decision = decide("kdcl", graph, z, memory=memory, target=kind, steps=2000, weight=0.6)
            gradient = jax.grad(
                lambda logits, memory=memory: sum(
                    decide("kdcl", graph, logits, memory=memory, target=kind, steps=2000, weight=0.6).losses.values()
                )
            )(z)
            for node in graph.nodes:
                p, q = softmax(target / tau), softmax(z[node] / tau)
                expected = ce(z[node]).mean() + 0.6 * tau**2 * kl(p, q).mean()
                assert decision.losses[node] == pytest.approx(expected, rel=1e-5 if kind == "linear" else 1e-12)
                # The target holds still: d/dz = (softmax - onehot) / B + 0.6 tau (q - p) / B.
                by_hand = (softmax(z[node]) - np.eye(CLASSES)[LABELS] + 0.6 * tau * (q - p)) / BATCH
                np.testing.assert_allclose(gradient[node], by_hand, atol=1e-3 if kind == "linear" else 1e-12)


def test_kdcl_linear_is_nowhere_worse_than_any_network_or_their_mean() -> None:
    z = np.random.default_rng(0).normal(size=(3, BATCH, CLASSES)) * 4
    with jax.enable_x64(True):
        mixed = np.asarray(kdcl.linear(jnp.asarray(z), jnp.asarray(LABELS), 200))
    for other in (*z, z.mean(0)):
        assert (ce(mixed) <= ce(other) + 5e-3).all()


def test_kdcl_general_averages_probabilities() -> None:
    """By hand: half of softmax(4, 0) = 0.98201 and half of softmax(0, 0) = 0.5."""
    z = jnp.asarray([[[4.0, 0.0]], [[0.0, 0.0]]])
    target = jax.nn.softmax(kdcl.general(z, jnp.asarray([0.5, 0.5]), 1.0))
    np.testing.assert_allclose(target, [[0.741007, 0.258993]], atol=1e-6)


def test_kdcl_general_weights() -> None:
    """Uncorrelated errors weigh by their inverse variance; the ridge keeps copies apart from a singular matrix."""
    with jax.enable_x64(True):
        # Without bounds the weights would be 4/3 and -1/3.
        beyond = kdcl.general_weights(jnp.asarray([[0.04, 0.05], [0.05, 0.09]]))
        np.testing.assert_allclose(beyond, [1.0, 0.0], atol=1e-12)
        rng = np.random.default_rng(0)
        for _ in range(20):
            errors = rng.random((4, 9)) ** 2
            c = errors @ errors.T / 9
            w = np.asarray(kdcl.general_weights(jnp.asarray(c)), np.float64)
            assert (w >= 0.0).all()
            assert w.sum() == pytest.approx(1.0, abs=1e-6)
            least = min(float(v @ c @ v) for v in rng.dirichlet(np.ones(4) / 2, 5000))
            assert w @ c @ w <= least * 1.002  # the ridge costs a thousandth
        np.testing.assert_allclose(kdcl.general_weights(jnp.diag(jnp.asarray([1.0, 0.5]))), [1 / 3, 2 / 3], atol=1e-3)
        np.testing.assert_allclose(kdcl.general_weights(jnp.full((3, 3), 0.7)), np.full(3, 1 / 3), atol=1e-6)


OFFLINE = {name: TOPOLOGIES[name] for name in ("pair", "1t2s")}


@pytest.mark.parametrize("name", OFFLINE)
def test_kd(name: str) -> None:
    graph, z = OFFLINE[name], random_logits(OFFLINE[name], 0)
    with jax.enable_x64(True):
        decision = decide("kd", graph, z)
        for edge in graph.edges_from(frozenset({"a"})):
            divergence = kl(softmax(z["a"] / 4), softmax(z[edge.learner] / 4)).mean()
            expected = 0.1 * ce(z[edge.learner]).mean() + 0.9 * edge.weight * 16 * divergence
            assert decision.losses[edge.learner] == pytest.approx(expected, rel=1e-12)
    assert len(graph.edges_from(frozenset({"a"}))) == len(graph.nodes) - 1


@pytest.mark.parametrize(("epoch", "warmup"), [(1, 0.05), (10, 0.5), (33, 1.0)])
def test_dkd(epoch: int, warmup: float) -> None:
    """The decoupled parts by plain sums over probabilities."""
    graph, z, t = TOPOLOGIES["pair"], random_logits(TOPOLOGIES["pair"], 0), 4.0
    target, others = 0.0, 0.0
    for b, y in enumerate(LABELS):
        p, q = softmax(z["a"][b] / t), softmax(z["b"][b] / t)
        target += p[y] * np.log(p[y] / q[y]) + (1 - p[y]) * np.log((1 - p[y]) / (1 - q[y]))
        p_others, q_others = (np.delete(x, y) / (1 - x[y]) for x in (p, q))
        others += float(kl(p_others, q_others))
    expected = ce(z["b"]).mean() + warmup * 0.7 * t**2 * (target + 8 * others) / BATCH
    with jax.enable_x64(True):
        decision = decide("dkd", graph, z, epoch=epoch)
        assert decision.losses["b"] == pytest.approx(expected, rel=1e-10)
        # With a = 1 and b = 1 - p_y it is plain KD (equation 7): a check of both parts together.
        parts = dkd.decoupled(jnp.asarray(z["a"]), jnp.asarray(z["b"]), jnp.asarray(LABELS), t)
        p_y = softmax(z["a"] / t)[np.arange(BATCH), LABELS]
        expected_kd = kl(softmax(z["a"] / t), softmax(z["b"] / t))
        np.testing.assert_allclose(parts[0] + (1 - p_y) * parts[1], expected_kd, rtol=1e-10)


@pytest.mark.slow
def test_dist() -> None:
    graph, z, t = TOPOLOGIES["pair"], random_logits(TOPOLOGIES["pair"], 0), 4.0
    p, q = softmax(z["a"] / t), softmax(z["b"] / t)
    rows = np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(p, q, strict=True)])
    columns = np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(p.T, q.T, strict=True)])
    expected = ce(z["b"]).mean() + 0.7 * 2 * t**2 * ((1 - rows) + (1 - columns))
    with jax.enable_x64(True):
        assert decide("dist", graph, z).losses["b"] == pytest.approx(expected, rel=1e-6)  # the public code's 1e-8
        flat = {"a": z["a"], "b": np.zeros_like(z["b"])}
        gradient = jax.grad(lambda logits: decide("dist", graph, logits).losses["b"])(flat)
        assert np.isfinite(gradient["b"]).all(), "the gradient of uniform predictions is finite"


def attention(f: np.ndarray) -> np.ndarray:
    a = (f**2).mean(-1).reshape(BATCH, -1)
    return a / np.linalg.norm(a, axis=1, keepdims=True)


def test_at() -> None:
    """Three stages; in the last one the student's map is larger and averaged down."""
    graph, z = TOPOLOGIES["pair"], random_logits(TOPOLOGIES["pair"], 0)
    f = {node: random_features(node) for node in "ab"}
    expected = ce(z["b"]).mean()
    for stage in STAGES:
        expected += 0.7 * 1000 * ((attention(f["a"][stage]) - attention(f["b"][stage])) ** 2).mean()
    with jax.enable_x64(True):
        assert decide("at", graph, z).losses["b"] == pytest.approx(expected, rel=1e-12)
        larger = decide("at", graph, z, student=("stage2",), teacher=("stage3",)).losses["b"]
    pooled = f["b"]["stage2"].reshape(BATCH, 2, 2, 2, 2, 3).mean((2, 4))
    by_hand = ce(z["b"]).mean() + 0.7 * 1000 * ((attention(f["a"]["stage3"]) - attention(pooled)) ** 2).mean()
    assert larger == pytest.approx(by_hand, rel=1e-12)


def test_fitnet() -> None:
    graph, z = TOPOLOGIES["pair"], random_logits(TOPOLOGIES["pair"], 0)
    f = {node: random_features(node)["stage2"] for node in "ab"}
    with jax.enable_x64(True):
        decision = decide("fitnet", graph, z)
    assert decision.losses["b"] == pytest.approx(
        ce(z["b"]).mean() + 70 * ((2 * f["b"] - f["a"]) ** 2).mean(), rel=1e-12
    )
    assert [*decision.adapter_stats] == ["b <- a"]


def windows(x: np.ndarray, kernel: np.ndarray, stride: int, padding: int) -> np.ndarray:
    """A convolution by loops: [batch, height, width, channels] by [k_h, k_w, channels, features]."""
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    height, width = ((x.shape[i] - kernel.shape[i - 1]) // stride + 1 for i in (1, 2))
    out = np.zeros((len(x), height, width, kernel.shape[3]))
    for i, j in itertools.product(range(height), range(width)):
        part = x[:, i * stride :, j * stride :][:, : kernel.shape[0], : kernel.shape[1]]
        out[:, i, j] = np.einsum("bhwc,hwcf->bf", part, kernel)
    return out


def spread(x: np.ndarray) -> np.ndarray:
    """Puts a zero between any two pixels and at the end, as a transposed convolution of stride 2 reads them."""
    out = np.zeros((len(x), 2 * x.shape[1], 2 * x.shape[2], x.shape[3]))
    out[:, ::2, ::2] = x
    return out[:, :-1, :-1]


@pytest.mark.parametrize(
    ("size", "kernel_size"), [((4, 4), (1, 1)), ((2, 2), (3, 3)), ((8, 8), (4, 4)), ((3, 3), (2, 2)), ((3, 4), (2, 1))]
)
def test_fitnets_regressor(size: tuple[int, int], kernel_size: tuple[int, int]) -> None:
    """The convolution of RepDistiller's ConvReg for that difference of sizes, norm over the batch, relu."""
    x = np.random.default_rng(0).normal(size=(BATCH, 4, 4, 3))
    with jax.enable_x64(True):
        module = fitnet.regressor((1, 4, 4, 3), (1, *size, 5), dtype=np.float64, param_dtype=np.float64)
        variables = module.init(jax.random.key(0), jnp.asarray(x), jnp.asarray(x), train=False)
        got, _ = module.apply(variables, jnp.asarray(x), jnp.asarray(x), train=True, mutable=["batch_stats"])
    conv = jax.tree.map(np.asarray, variables["params"]["conv"])
    kernel = conv["kernel"].reshape(*kernel_size, 3, 5)
    if size == (8, 8):
        y = windows(spread(x), kernel, stride=1, padding=2)
    elif size == (2, 2):
        y = windows(x, kernel, stride=2, padding=1)
    else:
        y = windows(x, kernel, stride=1, padding=0)
    y += conv["bias"]
    assert y.shape == (BATCH, *size, 5)
    expected = np.maximum((y - y.mean((0, 1, 2))) / np.sqrt(y.var((0, 1, 2)) + 1e-5), 0)
    np.testing.assert_allclose(got, expected, atol=1e-10)


def test_fitnet_refuses_features_that_are_too_small() -> None:
    with pytest.raises(ValueError, match=r"\(4, 4, 3\) are smaller than the teacher's \(12, 12, 3\), and not half"):
        fitnet.regressor((1, 4, 4, 3), (1, 12, 12, 3))


@pytest.mark.parametrize(("size", "pooled"), [((7, 7), (4, 4)), ((4, 6), (3, 4)), ((5, 5), (1, 5)), ((8, 8), (2, 4))])
def test_at_pools_sizes_that_do_not_divide(size: tuple[int, int], pooled: tuple[int, int]) -> None:
    """Row i is the mean of the rows floor(i n / m) to ceil((i + 1) n / m), as in torch's adaptive_avg_pool2d."""
    x = np.random.default_rng(0).normal(size=(2, *size, 3))
    expected = np.empty((2, *pooled, 3))
    for i, j in itertools.product(range(pooled[0]), range(pooled[1])):
        rows = slice(i * size[0] // pooled[0], -(-(i + 1) * size[0] // pooled[0]))
        columns = slice(j * size[1] // pooled[1], -(-(j + 1) * size[1] // pooled[1]))
        expected[:, i, j] = x[:, rows, columns].mean((1, 2))
    with jax.enable_x64(True):
        np.testing.assert_allclose(at.adaptive_avg_pool(jnp.asarray(x), *pooled), expected, rtol=1e-12)


def contrast(
    view: np.ndarray, bank: np.ndarray, negatives: np.ndarray, scale: float, positives: np.ndarray | None = None
) -> tuple[float, float]:
    """Eq. 18 of the paper image by image, and Z; the positive is the image itself, or the given one."""
    n, k = len(bank), negatives.shape[1]
    first = np.arange(len(view)) if positives is None else positives
    raw = np.asarray(
        [[np.exp(view[i] @ bank[j] / 0.07) for j in (first[i], *negatives[i])] for i in range(len(view))], np.float64
    )
    scale = scale or raw.mean() * n
    total = 0.0
    for row in raw / scale:
        total += np.log(row[0] / (row[0] + k / n + 1e-7))
        total += sum(np.log((k / n) / (p + k / n + 1e-7)) for p in row[1:])
    return -total / len(view), scale


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def test_crd() -> None:
    """Two steps: the first sets the scales, the second meets the embeddings that the first has left."""
    graph, z = TOPOLOGIES["pair"], random_logits(TOPOLOGIES["pair"], 0)
    views = {node: unit(random_features(node)["pooled"]) for node in "ab"}
    with jax.enable_x64(True):
        memory = METHODS["crd"].init_memory(
            crd.Hyperparameters(**SMALL_CRD), MemoryInputs(("a", "b"), TRAINING_LABELS, keys(graph))
        )
        draws = crd.other_classes(keys(graph)["b <- a"], jnp.asarray(LABELS), 9, memory)
        negatives, scales = np.asarray(draws), [0.0, 0.0]
        for _ in range(2):
            banks = [np.asarray(bank.embeddings) for bank in memory.banks["b <- a"]]
            decision = decide("crd", graph, z, memory=memory)
            student_loss, scales[1] = contrast(views["b"], banks[1], negatives, scales[1])
            teacher_loss, scales[0] = contrast(views["a"], banks[0], negatives, scales[0])
            expected = ce(z["b"]).mean() + 0.7 * 0.8 * (student_loss + teacher_loss)
            assert decision.losses["b"] == pytest.approx(expected, rel=1e-10)
            memory = decision.memory
            for bank, before, node, scale in zip(memory.banks["b <- a"], banks, "ba", scales, strict=True):
                np.testing.assert_allclose(bank.scale, scale, rtol=1e-12)
                np.testing.assert_allclose(bank.embeddings[:BATCH], unit(before[:BATCH] / 2 + views[node] / 2), 1e-12)
                np.testing.assert_array_equal(bank.embeddings[BATCH:], before[BATCH:])


@pytest.mark.parametrize("method", ["at", "fitnet", "crd"])
def test_cross_entropy_and_kd_have_weights_beside_features(method: str) -> None:
    """r CE + a T^2 KL(p_a || p_b) + the method's own term, as RepDistiller's -r, -a and -b."""
    graph, z = TOPOLOGIES["pair"], random_logits(TOPOLOGIES["pair"], 0)
    divergence = kl(softmax(z["a"] / 3), softmax(z["b"] / 3)).mean()
    with jax.enable_x64(True):
        memory = decide(method, graph, z).memory
        own = float(decide(method, graph, z, memory=memory).losses["b"]) - ce(z["b"]).mean()
        weights: dict[str, Any] = {"cross_entropy_weight": 0.2, "kd_weight": 0.8, "kd_temperature": 3.0}
        losses = jax.tree.map(float, decide(method, graph, z, memory=memory, **weights).losses)
    assert losses["b"] == pytest.approx(0.2 * ce(z["b"]).mean() + 0.8 * 0.7 * 9 * divergence + own, rel=1e-9)
    assert losses["a"] == pytest.approx(ce(z["a"]).mean(), rel=1e-6), "the teacher's is not weighted"


def test_relaxed_crd_pulls_images_of_one_class_together() -> None:
    """The loss by hand, with the positives that are drawn."""
    graph, z = TOPOLOGIES["pair"], random_logits(TOPOLOGIES["pair"], 0)
    views = {node: unit(random_features(node)["pooled"]) for node in "ab"}
    with jax.enable_x64(True):
        inputs = MemoryInputs(("a", "b"), TRAINING_LABELS, keys(graph))
        memory = METHODS["crd"].init_memory(crd.Hyperparameters(**SMALL_CRD), inputs)
        key, labels = keys(graph)["b <- a"], jnp.asarray(LABELS)
        positives = np.asarray(crd.same_class(key, labels, memory))
        negatives = np.asarray(crd.other_classes(key, labels, 9, memory))
        banks = [np.asarray(bank.embeddings) for bank in memory.banks["b <- a"]]
        loss = decide("crd", graph, z, memory=memory, relaxed=True).losses["b"]
    assert (positives != np.arange(BATCH)).any()
    student_loss, _ = contrast(views["b"], banks[1], negatives, 0.0, positives)
    teacher_loss, _ = contrast(views["a"], banks[0], negatives, 0.0, positives)
    assert loss == pytest.approx(ce(z["b"]).mean() + 0.7 * 0.8 * (student_loss + teacher_loss), rel=1e-10)


def test_relaxed_positives_are_all_images_of_the_class() -> None:
    inputs = MemoryInputs(("a", "b"), TRAINING_LABELS, keys(TOPOLOGIES["pair"]))
    memory = METHODS["crd"].init_memory(crd.Hyperparameters(**SMALL_CRD), inputs)
    drawn = np.asarray(crd.same_class(jax.random.key(0), jnp.repeat(jnp.asarray(LABELS), 2000), memory))
    for label, row in zip(LABELS, drawn.reshape(BATCH, 2000), strict=True):
        same = label == TRAINING_LABELS
        counts = np.bincount(row, minlength=len(TRAINING_LABELS))
        assert not counts[~same].any()
        np.testing.assert_allclose(counts[same] / 2000, 1 / same.sum(), rtol=0.2)


def test_negatives_without_replacement_are_distinct() -> None:
    """Each image of another class is as likely as any other."""
    inputs = MemoryInputs(("a", "b"), TRAINING_LABELS, keys(TOPOLOGIES["pair"]))
    small = crd.Hyperparameters(**SMALL_CRD, replacement=False)
    memory = METHODS["crd"].init_memory(small, inputs)
    labels = jnp.repeat(jnp.asarray(LABELS), 1000)
    drawn = np.asarray(crd.distinct_of_other_classes(jax.random.key(0), labels, 9, memory))
    assert (np.diff(np.sort(drawn, axis=1), axis=1) > 0).all()
    for label, rows in zip(LABELS, drawn.reshape(BATCH, 1000 * 9), strict=True):
        others = label != TRAINING_LABELS
        counts = np.bincount(rows, minlength=len(TRAINING_LABELS))
        assert not counts[~others].any()
        np.testing.assert_allclose(counts[others] / 1000, 9 / others.sum(), rtol=0.2)
    few = crd.Hyperparameters(negatives=len(TRAINING_LABELS), replacement=False)
    with pytest.raises(ValueError, match=r"crd\.negatives is 20, and a class has \d+ images of others; lower it"):
        METHODS["crd"].init_memory(few, inputs)


def test_crds_negatives_are_all_images_of_other_classes() -> None:
    inputs = MemoryInputs(("a", "b"), TRAINING_LABELS, keys(TOPOLOGIES["pair"]))
    memory = METHODS["crd"].init_memory(crd.Hyperparameters(**SMALL_CRD), inputs)
    drawn = np.asarray(crd.other_classes(jax.random.key(0), jnp.asarray(LABELS), 20_000, memory))
    for label, row in zip(LABELS, drawn, strict=True):
        counts = np.bincount(row, minlength=len(TRAINING_LABELS))
        others = label != TRAINING_LABELS
        assert not counts[~others].any()
        np.testing.assert_allclose(counts[others] / counts.sum(), 1 / others.sum(), rtol=0.2)


@pytest.mark.parametrize(
    ("labels", "message"), [(None, "use data.pipeline 'resident'"), (np.zeros(9, np.int32), "all training images")]
)
def test_crd_wants_labels(labels: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        METHODS["crd"].init_memory(crd.Hyperparameters(), MemoryInputs(("a", "b"), labels))


@pytest.mark.parametrize("method", ["at", "fitnet", "crd"])
def test_gradients_at_the_features(method: str) -> None:
    """Finite differences at the student's features, nothing at the teacher's."""
    graph, z = TOPOLOGIES["pair"], random_logits(TOPOLOGIES["pair"], 0)
    rng = np.random.default_rng(3)
    with jax.enable_x64(True):
        # CRD's scales are set by its first batch and held still from then on.
        memory = decide(method, graph, z).memory

        def loss(features: dict[str, Any]) -> jax.Array:
            return decide(method, graph, z, features=features, memory=memory).losses["b"]

        f = {node: random_features(node) for node in "ab"}
        gradient = jax.grad(loss)(jax.tree.map(jnp.asarray, f))
        assert not any(np.any(g) for g in gradient["a"].values())
        for stage in {"at": STAGES, "fitnet": ("stage2",), "crd": ("pooled",)}[method]:
            direction = rng.normal(size=f["b"][stage].shape)
            h = 1e-6
            ahead, behind = (
                float(loss({**f, "b": {**f["b"], stage: f["b"][stage] + sign * h * direction}})) for sign in (1, -1)
            )
            expected = float((gradient["b"][stage] * direction).sum())
            assert (ahead - behind) / (2 * h) == pytest.approx(expected, rel=1e-5)
            assert expected != 0


# KDCL's target is made of the learner's own logits too and held still: its gradient is tested above.
DIFFERENTIABLE = [name for name in WITHOUT_MODULES if name != "kdcl"]


@pytest.mark.parametrize(("method", "name"), list(itertools.product(DIFFERENTIABLE, TOPOLOGIES)))
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


@pytest.mark.parametrize(("method", "name"), list(itertools.product(WITHOUT_MODULES, TOPOLOGIES)))
def test_losses_depend_on_other_networks_without_a_gradient(method: str, name: str) -> None:
    """Changed logits of a source change the losses of its learners, which send no gradient to it."""
    graph = TOPOLOGIES[name]
    z = random_logits(graph, 1)
    with jax.enable_x64(True):
        before = decide(method, graph, z).losses
        dependencies = set()
        for source in graph.nodes:
            rotated = {**z, source: np.roll(z[source], 1, axis=1)}
            after = decide(method, graph, rotated).losses
            dependencies |= {(node, source) for node in graph.nodes if node != source and after[node] != before[node]}
        for node in graph.nodes:
            gradient = jax.grad(lambda logits, node=node: decide(method, graph, logits).losses[node])(z)
            assert not any(np.any(gradient[other]) for other in graph.nodes if other != node)
    all_pairs = set(itertools.permutations(graph.nodes, 2))
    if method == "vanilla":
        assert dependencies == set()
    elif method in ("dml", "kdcl", "cl_ilr"):
        assert dependencies == all_pairs
    elif method in ("at", "fitnet", "crd"):
        assert dependencies == set(), "they learn from features"
    elif METHODS[method].offline:
        assert dependencies == {(e.learner, e.source) for e in graph.edges_from(frozenset(graph.nodes[:1]))}
    else:
        assert {(e.learner, e.source) for e in graph.edges if not e.gate} <= dependencies
