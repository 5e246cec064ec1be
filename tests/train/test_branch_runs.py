"""Runs whose nodes are branches of one network."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import tiny_runs
from switokd_jax import config, evaluate, export
from switokd_jax.analysis import trained_network
from switokd_jax.errors import UserError
from switokd_jax.interop import stablehlo
from switokd_jax.train import init_state, loop, run_spec
from switokd_jax.workdir import restore

NODES = ("student_1", "student_2", "student_3")


def branch_config(**changes: Any) -> Any:
    """One network of three branches that learn from each other: three steps an epoch."""
    c = tiny_runs.tiny_config(method="dml", batch_size=160)
    del c.networks.teacher
    c.topology.kind = "complete"
    c.networks.student.branches, c.networks.student.branch_from = 3, "stage2"
    c.data.train_examples = 480
    c.update_from_flattened_dict(changes)
    return c


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("branches") / "run"
    loop.train_and_evaluate(branch_config(epochs=2.0), folder, jax.devices()[:1])
    return folder


def test_every_branch_has_scores_and_checkpoints(finished: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    assert (*summary["networks"],) == NODES
    assert {path.name for path in (finished / "checkpoints" / "best").iterdir()} == {*NODES}
    scores = evaluate.evaluate(finished, "latest")["networks"]
    for node, of in summary["networks"].items():
        assert of["parameters"] == 144 + 32 + 4608 + 64 + 330  # those of the ordinary network
        assert of["updates"] == 6
        assert scores[node]["top1"] == pytest.approx(of["final_top1"], abs=1e-4)
        assert scores[node]["loss"] == pytest.approx(of["final_loss"], abs=1e-5)


def test_the_run_costs_what_its_network_costs(finished: Path) -> None:
    """Three branches behind one trunk cost less than three networks."""
    networks = json.loads((finished / "summary.json").read_text())["networks"]
    trunk = 2 * 22**2 * 16
    branch = 2 * 11 * 12 * 16 * 32 + 2 * 32 * 10  # a 3x3 kernel of stride 2 on 8 pixels: 3 * 3 + 2 products per row
    assert sum(of["forward_flops"] for of in networks.values()) == pytest.approx(trunk + 3 * branch, rel=0.1)


def test_branches_share_their_trunk_and_nothing_else(finished: Path) -> None:
    first, second = (restore.load_variables(finished, node, "latest") for node in NODES[:2])
    for kind in ("params", "batch_stats"):
        tiny_runs.assert_same_bits(first[kind]["bn1"], second[kind]["bn1"])
    assert np.any(first["params"]["conv2"]["kernel"] != second["params"]["conv2"]["kernel"])


def test_a_branch_starts_another_run(finished: Path) -> None:
    c = tiny_runs.tiny_config()
    c.networks.teacher.init_from = f"{finished}:student_2@latest"
    state = init_state.init_state(tiny_runs.tiny_plan(c, 64)).networks["teacher"]
    tiny_runs.assert_same_bits(state.params, restore.load_variables(finished, "student_2", "latest")["params"])


@pytest.mark.slow
def test_a_branch_is_exported_as_an_ordinary_network(finished: Path, tmp_path: Path) -> None:
    images = tiny_runs.random_split(7).images
    path = export.export(finished, "student_3", "stablehlo", "latest", tmp_path / "student.stablehlo")
    network = trained_network.read(finished, "student_3", "latest")
    np.testing.assert_allclose(stablehlo.read(path).logits(images), network.logits(images), atol=1e-5)


@pytest.mark.slow
def test_resuming_changes_no_bit(finished: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut"
    shutil.copytree(finished, cut)
    shutil.rmtree(cut / "checkpoints" / "latest" / "6")
    loop.train_and_evaluate(branch_config(epochs=2.0), cut, jax.devices()[:1])
    tiny_runs.assert_same_bits(restore.load_state(finished), restore.load_state(cut))
    assert (finished / "metrics.jsonl").read_text() == (cut / "metrics.jsonl").read_text()


def three_steps(parallelism: str, devices: int) -> tuple[Any, Any]:
    """The state and the losses after three steps in float64."""
    with jax.enable_x64(True):
        c = branch_config(batch_size=16, parallelism=parallelism, dtype="float64")
        c.networks.student.trunk_gradient, c.networks.student.model = "mean", "dropout"
        split = tiny_runs.random_split(48)
        run = tiny_runs.tiny_plan(c, len(split), devices)
        state, data = tiny_runs.start(run, split)
        step = run.distribution.compile(run_spec.make_train_step(run), has_state=True)
        for first in range(0, 48, 16):
            state, metrics = tiny_runs.call(step, state, data, tiny_runs.batch(run, np.arange(first, first + 16)))
        return jax.device_get(run.distribution.unreplicate((state.networks, metrics)))


@pytest.mark.slow
def test_branches_are_the_same_on_eight_devices() -> None:
    alone, several = three_steps("jit", 1), three_steps("pmap", 8)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11), alone, several)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"networks.student.branches": 1}, r"student has one branch, so branch_from and trunk_gradient change nothing"),
        ({"networks.student.init_from": "run:student@best"}, r"student has 3 branches and init_from"),
        ({"networks.student.model": "vit_small"}, r"student.model: VisionTransformer cannot have branches"),
        ({"networks.student.branch_from": "stage9"}, r"student.model: branches cannot start at 'stage9'"),
        ({"topology.names": ("student", "student_1")}, r"names the unknown network 'student'; .* student_1, student_2"),
        ({"topology.names": ("student_1", "student_2")}, r"student_3 takes no part in config.topology"),
        (
            {
                "method": "switokd",
                "topology.kind": "star",
                "topology.teachers": NODES[:1],
                "topology.students": NODES[1:],
            },
            r"'switokd' would pause student_1, a branch, whose trunk learns from the other branches",
        ),
    ],
)
def test_what_does_not_fit_branches_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        tiny_runs.tiny_plan(branch_config(**changes), 480)


def test_a_network_with_the_name_of_a_branch_is_refused() -> None:
    c = branch_config()
    c.networks.student_2 = config.network()
    with pytest.raises(UserError, match=r"config.networks.student_2 has the name of a branch of 'student'"):
        config.parse(c)


def test_branches_may_teach_a_student_with_pauses_of_a_whole_network() -> None:
    """A network that is no branch can be paused by a branch that it teaches."""
    c = branch_config(method="switokd", **{"topology.kind": "star", "topology.students": NODES})
    c.networks.teacher = tiny_runs.tiny_config().networks.teacher
    c.topology.teachers = ("teacher",)
    run = tiny_runs.tiny_plan(c, 480)
    assert run.topology.pairs == tuple(("teacher", node) for node in NODES)
    assert [*run.networks] == ["teacher", "student"]
