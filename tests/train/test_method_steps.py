"""One real training step with every method on every topology that it supports, on networks of one layer."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import serialization

import tiny_runs
from switokd_jax import config
from switokd_jax.data import dataset, resident, sampling
from switokd_jax.methods import METHODS
from switokd_jax.models.init import init_variables
from switokd_jax.parallel.collectives import Collectives
from switokd_jax.state import TrainState
from switokd_jax.train import init_state, loop, run_spec
from switokd_jax.train.init_state import create_train_state
from switokd_jax.workdir import restore
from switokd_jax.workdir.checkpointer import open_checkpointer
from switokd_jax.workdir.layout import Workdir

ALL_METHODS = bool(os.environ.get("ALL_METHODS"))
SPLIT = tiny_runs.random_split(32)
TOPOLOGIES: dict[str, dict[str, Any]] = {
    "pair": {"kind": "pair", "teachers": ("a",), "students": ("b",)},
    "2t1s": {"kind": "star", "teachers": ("a", "b"), "students": ("c",)},
    "1t2s": {"kind": "star", "teachers": ("a",), "students": ("b", "c")},
    "chain": {"kind": "chain", "names": ("a", "b", "c")},
    "relay": {"kind": "chain", "names": ("a", "b", "c"), "relay": "learn"},
    "complete": {"kind": "complete", "names": ("a", "b", "c")},
    "custom": {"kind": "custom", "names": ("a", "b"), "edges": (("b", "a"), ("a", "b", ("a", "b"), 0.5))},
    "branches": {"kind": "complete", "names": ("a_1", "a_2", "a_3")},
}


def nodes(topology: str) -> tuple[str, ...]:
    spec = TOPOLOGIES[topology]
    return spec.get("names") or (*spec["teachers"], *spec["students"])


def supported(method: str) -> list[str]:
    """Topologies on which a method can run."""
    entry = METHODS[method]
    return [
        name
        for name in TOPOLOGIES
        if len(nodes(name)) >= entry.min_networks
        and (name == "branches" or not entry.branches)
        and (name != "branches" or not (entry.switches or entry.offline))
    ]


def planned(
    method: str,
    topology: str,
    target: str = "minlogit",
    parallelism: str = "jit",
    devices: int = 1,
    model: str = "one_layer",
    views: str = "shared",
    mix: tuple[str, ...] = (),
    dtype: str = "float32",
    augment: bool = True,
) -> run_spec.RunSpec:
    names = nodes(topology)
    c = config.default()
    c.method, c.batch_size, c.kdcl.target, c.parallelism, c.dtype = method, 16, target, parallelism, dtype
    c.data.validation_fraction, c.data.views, c.data.mix, c.data.augment = 0.1, views, mix, augment
    for key, value in TOPOLOGIES[topology].items():
        c.topology[key] = value
    ema = 0.9 if METHODS[method].mean_teachers else 0.0
    network = {"model": model, "schedule": "constant", "ema": ema}
    c.networks = {name: config.network(**network) for name in names}
    if topology == "branches":
        c.networks = {"a": config.network(branches=3, **network)}
    if METHODS[method].offline:
        c.networks[names[0]].frozen, c.networks[names[0]].init_from = True, "given:by@hand"

    facts = dataset.DatasetInfo(10, tiny_runs.SHAPE, len(SPLIT), tiny_runs.PREPROCESS, SPLIT.labels)
    return run_spec.make(config.parse(c), facts, jax.devices()[:devices])


draw = jax.jit(init_variables, static_argnums=(0, 2))  # compiled once for all tests


def start(run: run_spec.RunSpec) -> TrainState:
    variables = {
        name: draw(network.module, jax.random.key(number), tiny_runs.SHAPE)
        for number, (name, network) in enumerate(run.networks.items())
    }
    memory = init_state.init_memory(run)
    adapters = init_state.init_adapters(run)
    return create_train_state(run.networks, variables, run.pairs, memory=memory, adapters=adapters)


def one_step(run: run_spec.RunSpec) -> tuple[Any, Any, dict[str, Any]]:
    before = start(run)
    untouched = jax.tree.map(np.array, jax.device_get(before))  # the step takes its memory
    state, data = run.distribution.device_put(before), tiny_runs.place(run, SPLIT)
    step = run.distribution.compile(run_spec.make_train_step(run), has_state=True)
    after, metrics = tiny_runs.call(step, state, data, tiny_runs.batch(run, np.arange(16)))
    return (
        untouched,
        jax.device_get(run.distribution.unreplicate(after)),
        jax.device_get(run.distribution.unreplicate(metrics)),
    )


def computed(method: str) -> tuple[str, ...]:
    """Topologies on which a step is computed; it is written once for all of them, and traced on the others."""
    if METHODS[method].switches:
        return ("2t1s", "relay", "custom")
    if "branches" in supported(method):
        return ("branches",)
    return ("custom",)


COMPUTED = {name: computed(name) for name in METHODS if name != "kdcl"}
CASES = [
    *((method, topology, "minlogit") for method, topologies in COMPUTED.items() for topology in topologies),
    *itertools.product(("kdcl",), ("pair", "complete"), ("naive", "general")),
    *itertools.product(("kdcl",), ("complete",), ("linear", "minlogit")),
]


@pytest.mark.parametrize(
    ("method", "topology", "mix"),
    [
        *(
            (method, topology, ())
            for method in COMPUTED
            for topology in supported(method)
            if topology not in COMPUTED[method]
        ),
        *((method, supported(method)[0], ("mixup", "cutmix")) for method in METHODS),
    ],
)
def test_step_is_traced(method: str, topology: str, mix: tuple[str, ...]) -> None:
    """Shapes and dtypes of the next state are those of this one, and every network has a loss."""
    run = planned(method, topology, mix=mix)
    before = jax.eval_shape(lambda: start(run))
    examples = sampling.Batch(np.arange(16, dtype=np.int32))
    step = functools.partial(run_spec.make_train_step(run), Collectives())
    after, metrics = jax.eval_shape(step, before, resident.DeviceDataset(SPLIT.images, SPLIT.labels), examples)
    jax.tree.map(
        lambda was, now: np.testing.assert_equal((was.shape, was.dtype), (now.shape, now.dtype)), before, after
    )
    assert {f"{node}/loss" for node in run.topology.nodes} <= metrics.keys()


def has_more_state(method: str) -> bool:
    """Whether a method trains modules, keeps a memory, or uses averaged weights."""
    entry = METHODS[method]
    spec = entry.features(entry.hyperparameters())
    trains = spec.adapter is not None or spec.has_modules
    return trains or entry.mean_teachers or entry.init_memory is not METHODS["vanilla"].init_memory


def through_checkpoint(run: run_spec.RunSpec, state: TrainState, folder: Path) -> TrainState:
    """Saves a state and restores it as a run does."""
    tree = jax.tree.map(jnp.asarray, state)
    checkpointer = open_checkpointer(Workdir(folder), run.topology.nodes, run.config.checkpoint, run.steps_per_epoch)
    with contextlib.closing(checkpointer):
        checkpointer.save_latest(1, tree, {})
        checkpointer.latest.wait_until_finished()
        restored = checkpointer.restore(tree, run.distribution.abstract_state(serialization.to_state_dict(tree)))
    assert restored is not None
    return restored[0]


def changed(before: Any, after: Any) -> bool:
    """Whether any number of a tree has changed."""
    pairs = zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
    return any(np.any(np.asarray(a) != np.asarray(b)) for a, b in pairs)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "topology", "target"), CASES)
def test_step(method: str, topology: str, target: str, tmp_path: Path) -> None:
    """One step moves all that learns, and a checkpoint of it comes back with the same bits."""
    run = planned(method, topology, target)
    before, after, metrics = one_step(run)
    assert int(after.step) == 1
    for node in run.topology.nodes:
        assert np.isfinite(metrics[f"{node}/loss"])
    for name, network in run.networks.items():
        moved = changed(before.networks[name].params, after.networks[name].params)
        assert moved == (int(after.networks[name].updates) == 1), name
        assert moved or network.frozen or METHODS[method].switches
    if method in ("fitnet", "crd"):
        assert {*run.adapters} == {str(edge) for edge in run.topology.edges_from(frozenset("a"))}
    assert {*after.adapters} == {*run.adapters}
    for name, adapter in after.adapters.items():
        assert int(adapter.updates) == 1
        for part in ("params", "batch_stats") if adapter.batch_stats else ("params",):
            assert changed(getattr(before.adapters[name], part), getattr(adapter, part)), name
    if METHODS[method].offline:
        assert int(after.networks[run.topology.nodes[0]].updates) == 0
    if run.adapters or run.method.mean_teachers or after.memory is not None:
        tiny_runs.assert_same_bits(through_checkpoint(run, after, tmp_path), after)
    assert set(after.expert_steps) == ({f"{t}->{s}" for t, s in run.topology.pairs} if run.method.switches else set())


@pytest.mark.slow
@pytest.mark.parametrize(("parallelism", "devices"), [("jit", 2), ("pmap", 2)])
def test_dropout_is_the_same_on_any_devices(parallelism: str, devices: int) -> None:
    """An example's mask depends on its place in the global batch, not on its device."""
    alone, several = (
        one_step(planned("dml", "pair", parallelism=kind, devices=count, model="dropout"))[2]
        for kind, count in (("jit", 1), (parallelism, devices))
    )
    for node in ("a", "b"):
        assert several[f"{node}/loss"] == pytest.approx(float(alone[f"{node}/loss"]), rel=1e-5)
    without = one_step(planned("dml", "pair"))[2]
    assert float(without["a/loss"]) != pytest.approx(float(alone["a/loss"]), rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("parallelism", ["jit", "pmap"])
def test_views_are_the_same_on_any_devices(parallelism: str) -> None:
    runs = [
        planned("kdcl", "pair", "naive", parallelism=kind, devices=count, views="per_network")
        for kind, count in (("jit", 1), (parallelism, 2))
    ]
    alone, several = (one_step(run)[2] for run in runs)
    shared = one_step(planned("kdcl", "pair", "naive"))[2]
    for node in ("a", "b"):
        assert several[f"{node}/loss"] == pytest.approx(float(alone[f"{node}/loss"]), rel=1e-5)
        assert alone[f"{node}/loss"] != pytest.approx(float(shared[f"{node}/loss"]), rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("parallelism", ["jit", "pmap"])
def test_views_of_branches_are_the_same_on_any_devices(parallelism: str) -> None:
    runs = [
        planned("pcl", "branches", parallelism=kind, devices=count, views="per_branch")
        for kind, count in (("jit", 1), (parallelism, 2))
    ]
    alone, several = (one_step(run)[2] for run in runs)
    shared = one_step(planned("pcl", "branches"))[2]
    for node in runs[0].topology.nodes:
        assert several[f"{node}/loss"] == pytest.approx(float(alone[f"{node}/loss"]), rel=1e-5)
        assert alone[f"{node}/loss"] != pytest.approx(float(shared[f"{node}/loss"]), rel=1e-4)


def test_equal_views_of_branches_are_a_shared_image() -> None:
    """Without augmentation; BatchNorm's statistics of an image and of its copies are the same."""
    views = one_step(planned("pcl", "branches", views="per_branch", augment=False))[2]
    shared = one_step(planned("pcl", "branches", augment=False))[2]
    assert {name: float(views[name]) for name in shared} == pytest.approx(
        {name: float(value) for name, value in shared.items()}, rel=1e-5
    )


# In turn with both kinds of parallelism, which other tests compare for every part of the step. One method each that
# fuses features, averages weights and keeps a memory; ALL_METHODS=1 takes all, in two minutes more.
WITH_MORE_STATE = [
    *zip(
        [name for name in METHODS if has_more_state(name) and (ALL_METHODS or name in ("ffl", "pcl", "crd"))],
        itertools.cycle(("jit", "pmap")),
    )
]


@pytest.mark.slow
@pytest.mark.parametrize(("method", "parallelism"), WITH_MORE_STATE)
def test_what_a_method_keeps_is_the_same_on_eight_devices(method: str, parallelism: str) -> None:
    """Modules see the global batch, negatives are drawn by it, and every device keeps the same memory."""
    topology = "branches" if "branches" in supported(method) else "pair"
    with jax.enable_x64(True):
        alone, several = (
            one_step(planned(method, topology, parallelism=kind, devices=count, dtype="float64"))
            for kind, count in (("jit", 1), (parallelism, 8))
        )
    for ours, theirs in zip(jax.tree.leaves(several[1:]), jax.tree.leaves(alone[1:]), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-8, atol=1e-10)


@pytest.mark.slow
def test_kdcl_general_trains_and_weighs_on_held_out_images(tmp_path: Path) -> None:
    """A whole run: the weights leave their even start, sum to one, and are part of the saved state."""
    c = tiny_run(epochs=2.0, method="kdcl")
    c.kdcl.target, c.data.validation_fraction = "general", 0.1
    loop.train_and_evaluate(c, tmp_path, jax.devices()[:2])
    weights = restore.load_state(tmp_path)["memory"]
    assert weights.shape == (2,)
    assert weights.sum() == pytest.approx(1.0, abs=1e-5)
    assert abs(weights[0] - 0.5) > 1e-3


def tiny_run(**changes: Any) -> Any:
    """Three steps an epoch, of one batch shape."""
    return tiny_runs.tiny_config(**{"batch_size": 160, "data.train_examples": 480, **changes})


@pytest.mark.slow
def test_kd_learns_from_a_run_of_ours(tmp_path: Path) -> None:
    """The whole offline path: train a teacher, freeze it, teach a student."""
    c = tiny_run(epochs=1.0, method="vanilla")
    loop.train_and_evaluate(c, tmp_path / "teacher", jax.devices()[:1])
    c = tiny_run(epochs=1.0, method="kd")
    c.networks.teacher.frozen, c.networks.teacher.init_from = True, f"{tmp_path / 'teacher'}:teacher@best"
    summary = loop.train_and_evaluate(c, tmp_path / "student", jax.devices()[:1])
    assert summary["networks"]["teacher"]["updates"] == 0
    assert summary["networks"]["student"]["updates"] == 3
    tiny_runs.assert_same_bits(
        restore.load_variables(tmp_path / "teacher", "teacher", "best"),
        restore.load_variables(tmp_path / "student", "teacher", "latest"),
    )
    published = json_of(tmp_path / "teacher")["networks"]["teacher"]["best_top1"]
    assert summary["networks"]["teacher"]["final_top1"] == published


@pytest.mark.parametrize(
    ("teacher", "student", "stages", "hint"),
    [
        ("resnet8", "wrn_10_1", (1, 2, 3), 2),
        ("vgg8", "vgg8", (2, 3, 4, 5), 3),
        ("resnet50_cifar", "mobilenetv2_0.5", (1, 2, 3, 4), 2),
    ],
)
def test_features_are_those_of_the_public_code(teacher: str, student: str, stages: tuple[int, ...], hint: int) -> None:
    """RepDistiller compares feat[1:-1] of each network, and hint layer 2; VGG's feat[0] is its first stage."""
    names = tuple(f"stage{i}" for i in stages)
    for method, expected in (("at", names), ("fitnet", f"stage{hint}")):
        run = feature_run(method, teacher, student, {"weight": 3.0})
        found = run.config.hyperparameters
        assert (found.student, found.teacher, found.weight) == (expected, expected, 3.0)
        assert run.networks["student"].features == (expected if method == "at" else (expected,))
        named = names[-1:] if method == "at" else names[-1]
        run = feature_run(method, teacher, student, {"student": named, "teacher": named})
        assert run.networks["teacher"].features == names[-1:]


def feature_run(method: str, teacher: str, student: str, options: dict[str, Any]) -> run_spec.RunSpec:
    c = tiny_run(method=method)
    c.networks.teacher.model, c.networks.student.model = teacher, student
    c.networks.teacher.frozen, c.networks.teacher.init_from = True, "runs/teacher:teacher"
    c[method].update(options)
    info = dataset.DatasetInfo(10, (32, 32, 3), 640, tiny_runs.PREPROCESS)
    return run_spec.make(config.parse(c), info, jax.devices()[:1])


@pytest.mark.slow
def test_resuming_keeps_what_a_method_trains(tmp_path: Path) -> None:
    """FitNet's regressor with its optimizer: a run that goes on from its first save ends with the same bits."""
    c = tiny_run(epochs=1.0, method="vanilla")
    loop.train_and_evaluate(c, tmp_path / "teacher", jax.devices()[:1])
    c = tiny_run(epochs=2.0, method="fitnet")
    c.networks.teacher.frozen, c.networks.teacher.init_from = True, f"{tmp_path / 'teacher'}:teacher@best"
    loop.train_and_evaluate(c, tmp_path / "whole", jax.devices()[:1])
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / "latest" / "6")
    loop.train_and_evaluate(c, tmp_path / "cut", jax.devices()[:1])
    states = [restore.load_state(tmp_path / name) for name in ("whole", "cut")]
    assert int(states[0]["adapters"]["student <- teacher"]["updates"]) == 6
    tiny_runs.assert_same_bits(*states)
    assert (tmp_path / "whole" / "metrics.jsonl").read_text() == (tmp_path / "cut" / "metrics.jsonl").read_text()


@pytest.mark.slow
def test_rco_follows_its_teachers_route(tmp_path: Path) -> None:
    """Three saves of a teacher's run are its anchors; the right one speaks after each, also across a restart."""
    c = tiny_run(epochs=3.0, method="vanilla")
    c.checkpoint.keep = 3
    loop.train_and_evaluate(c, tmp_path / "teacher", jax.devices()[:1])
    c = tiny_run(epochs=4.0, method="rco")
    c.checkpoint.keep = 4
    c.networks.teacher.frozen, c.networks.teacher.init_from = True, f"{tmp_path / 'teacher'}:teacher@3"
    c.rco.anchors, c.rco.every = tuple(f"{tmp_path / 'teacher'}:teacher@{step}" for step in (6, 9)), 1
    loop.train_and_evaluate(c, tmp_path / "student", jax.devices()[:1])
    for step, anchor in ((3, 6), (6, 9), (9, 9), (12, 9)):  # saved after the turn of that step
        tiny_runs.assert_same_bits(
            restore.load_variables(tmp_path / "student", "teacher", str(step)),
            restore.load_variables(tmp_path / "teacher", "teacher", str(anchor)),
        )
    shutil.copytree(tmp_path / "student", tmp_path / "cut")
    for step in (6, 9, 12):
        shutil.rmtree(tmp_path / "cut" / "checkpoints" / "latest" / str(step))
    loop.train_and_evaluate(c, tmp_path / "cut", jax.devices()[:1])
    tiny_runs.assert_same_bits(*(restore.load_state(tmp_path / name) for name in ("student", "cut")))


def json_of(folder: Path) -> Any:
    return json.loads((folder / "summary.json").read_text())
