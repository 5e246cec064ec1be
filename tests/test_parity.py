"""The recorded runs of the public PyTorch code, rebuilt with the product's own step in float64."""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import tiny_runs
from switokd_jax import config, models
from switokd_jax.data import dataset, normalization, resident, transforms
from switokd_jax.interop import pytorch
from switokd_jax.models.ops import convolution
from switokd_jax.train import run_spec
from switokd_jax.train.init_state import create_train_state

FOLDERS = [Path(__file__).parent / "data" / "parity"]
if extra := os.environ.get("SWITOKD_PARITY_DIR"):
    FOLDERS.append(Path(extra))
RECORDINGS = sorted(path for folder in FOLDERS for path in folder.glob("*.npz"))

# Roles of the networks, in the recording's order.
KINDS = {
    "pair": (["t"], ["s"]),
    "2t1s": (["t1", "t2"], ["s"]),
    "1t2s": (["t"], ["s1", "s2"]),
}


def build(meta: dict[str, Any]) -> run_spec.RunSpec:
    """The plan of a recording: nothing but a config and the recording's normalisation."""
    teachers, students = KINDS[meta["kind"]]
    c = config.default()
    c.dtype, c.steps, c.batch_size = "float64", meta["steps"], meta["batch_size"]
    c.data.augment = False
    c.switokd.temperature = float(meta["temperature"])
    c.topology.kind = "pair" if meta["kind"] == "pair" else "star"
    c.topology.teachers, c.topology.students = tuple(teachers), tuple(students)
    c.networks = {
        name: config.network(
            model=model, learning_rate=rate, weight_decay=decay, momentum=meta["momentum"], schedule="constant"
        )
        for name, model, rate, decay in zip(
            teachers + students, meta["networks"], meta["learning_rate"], meta["weight_decay"], strict=True
        )
    }
    how = normalization.Preprocess(tuple(meta["mean"]), tuple(meta["std"]))
    examples = meta["steps"] * meta["batch_size"]
    devices = jax.devices()[:1]
    facts = dataset.DatasetInfo(meta["num_classes"], (32, 32, 3), examples, how)
    return run_spec.make(config.parse(c), facts, devices)


@pytest.mark.slow
@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.stem)
def test_recording(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On one device, as on a laptop; test_distribution compares eight with one, under jit and pmap."""
    monkeypatch.setattr(convolution, "MIN_ELEMENTS", 0)
    monkeypatch.setattr(convolution, "GROUP", 3)
    with np.load(path) as file, jax.enable_x64(True):
        recorded = {name: file[name] for name in file.files}
        check(recorded, json.loads(str(recorded["meta"])))


def check(recorded: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
    run = build(meta)
    names = run.topology.nodes
    variables = {}
    for i, name in enumerate(names):
        prefix = f"init/{i}/"
        official = {k.removeprefix(prefix): v for k, v in recorded.items() if k.startswith(prefix)}
        made = pytorch.variables(meta["networks"][i], official, meta["num_classes"])
        variables[name] = jax.tree.map(lambda x: x.astype(np.float64), made)
    state = run.distribution.device_put(create_train_state(run.networks, variables, run.pairs, seed=0))
    flat = recorded["images"].reshape(-1, *recorded["images"].shape[2:])
    data = run.distribution.device_put(resident.DeviceDataset(flat, recorded["labels"].reshape(-1).astype(np.int32)))
    step = run.distribution.compile(run_spec.make_train_step(run), has_state=True)

    for index in range(meta["steps"]):
        batch = np.arange(index * meta["batch_size"], (index + 1) * meta["batch_size"])
        before = {name: int(run.distribution.unreplicate(state.networks[name].updates)) for name in names}
        state, metrics = tiny_runs.call(step, state, data, tiny_runs.batch(run, batch))
        metrics = jax.device_get(run.distribution.unreplicate(metrics))
        for p, (teacher, student) in enumerate(run.pairs):
            pair = f"{teacher}->{student}"
            for field, recorded_as in [
                ("gap", "gap"),
                ("threshold", "threshold"),
                ("epsilon", "epsilon"),
                ("student_distance", "student_dist"),
                ("teacher_distance", "teacher_dist"),
            ]:
                expected = recorded[f"switch/{recorded_as}"][index, p]
                np.testing.assert_allclose(metrics[f"{pair}/{field}"], expected, rtol=1e-9, err_msg=f"{index} {pair}")
            assert bool(metrics[f"{pair}/expert"]) == bool(recorded["switch/expert"][index, p]), (index, pair)
        for i, name in enumerate(names):
            took_step = int(run.distribution.unreplicate(state.networks[name].updates)) > before[name]
            if took_step:
                np.testing.assert_allclose(metrics[f"{name}/loss"], recorded["losses"][index, i], rtol=1e-9)

    final = jax.device_get(run.distribution.unreplicate(state))
    for i, name in enumerate(names):
        ours = pytorch.state_dict(final.networks[name].eval_variables)
        for tensor, value in ours.items():
            rtol, atol = 1e-8, 1e-10
            expected = recorded[f"final_norm/{i}/{tensor}"]
            np.testing.assert_allclose(np.linalg.norm(value.ravel()), expected, rtol=rtol, atol=atol, err_msg=tensor)
            head = recorded[f"final_head/{i}/{tensor}"]
            np.testing.assert_allclose(value.ravel()[: len(head)], head, rtol=rtol, atol=atol, err_msg=tensor)
        check_eval(recorded, meta, run, final, i, name)


def check_eval(
    recorded: dict[str, np.ndarray], meta: dict[str, Any], run: run_spec.RunSpec, final: Any, i: int, name: str
) -> None:
    module = models.create(meta["networks"][i], meta["num_classes"], dtype=np.float64, param_dtype=np.float64)
    images = transforms.normalize(recorded["eval_images"], run.dataset_info.preprocess, np.float64)
    logits = jax.jit(functools.partial(module.apply, train=False))(final.networks[name].eval_variables, images)
    np.testing.assert_allclose(logits, recorded[f"eval_logits/{i}"], rtol=1e-8, atol=1e-8)


@pytest.mark.torch
@pytest.mark.parametrize(
    ("kind", "networks"),
    [
        ("2t1s", ["resnet8", "wrn_10_1", "mobilenetv2_0.25"]),
        ("1t2s", ["wrn_10_1", "resnet14", "resnet8"]),
    ],
)
def test_plain_torch_run(kind: str, networks: list[str]) -> None:
    """The same against a PyTorch loop of our own: the stars, of other networks."""
    import torch_recording

    recorded = torch_recording.record(kind, networks, steps=12)
    assert set(np.unique(recorded["switch/expert"])) == {0, 1}, "both modes"
    with jax.enable_x64(True):
        check(recorded, json.loads(str(recorded["meta"])))
