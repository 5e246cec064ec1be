"""Thousands of configs: `--dry_run` ends with a plan that an independent checker accepts, or with one clear error."""

from __future__ import annotations

import collections
import contextlib
import functools
import io
import math
import os
import re
from typing import Any

import hypothesis
import jax
import jax.numpy as jnp
import pytest
import sklearn.datasets
from hypothesis import strategies as st

import tiny_runs
from switokd_jax import config, main
from switokd_jax.data import dataset
from switokd_jax.errors import UserError
from switokd_jax.methods import METHODS
from switokd_jax.train import run_spec

CASES = int(os.environ.get("FUZZ_CASES", "200"))  # more of them find more: FUZZ_CASES=5000 takes eight minutes
NAMES = ("teacher", "student", "a", "b", "c")
# Parameters at one channel and ten classes: two convolutions of 3x3 and their norms, say, and the classifier.
PARAMETERS = {
    "one_layer": 9 * 4 + 8 + 50,
    "two_layers": 9 * 16 + 32 + 9 * 16 * 32 + 64 + 330,
    "dropout": 9 * 4 + 8 + 50,
    "resnet8": 176 + 4_672 + 13_952 + 55_552 + 650,  # the stem, three blocks, the classifier
}
MODELS = st.sampled_from([*["one_layer", "two_layers", "dropout"] * 5, "resnet8"])
NUMBER = st.one_of(st.floats(allow_nan=True), st.integers(-3, 1000), st.booleans(), st.none(), st.text(max_size=5))
ANYTHING = st.one_of(NUMBER, st.lists(NUMBER, max_size=3), st.dictionaries(st.text(max_size=5), NUMBER, max_size=2))

# Values that are valid by themselves.
VALID: dict[str, st.SearchStrategy[Any]] = {
    "seed": st.integers(0, 2**31),
    "epochs": st.floats(0.01, 300.0),
    "steps": st.integers(0, 1000),
    "batch_size": st.integers(1, 64).map(lambda n: 8 * n),
    "steps_per_call": st.integers(1, 200),
    "gradient_accumulation": st.sampled_from([1, 1, 1, 2]),
    "eval_every": st.floats(0.1, 5.0),
    "dtype": st.sampled_from(["float32", "bfloat16", "float64"]),
    "precision": st.sampled_from(["default", "tensorfloat32", "float32"]),
    "method": st.sampled_from(sorted(METHODS)),
    "parallelism": st.sampled_from(["jit", "pmap"]),
    "sharding": st.sampled_from(["replicated", "replicated", "fsdp"]),
    "batch_norm": st.sampled_from(["global", "global", "local"]),
    "on_nonfinite": st.sampled_from(["stop", "skip"]),
    "switokd.temperature": st.floats(0.1, 10.0),
    "switokd.alpha": st.floats(0.0, 5.0),
    "switokd.epsilon": st.one_of(st.just("adaptive"), st.floats(0.0, 1.0)),
    "switokd.threshold": st.one_of(st.just("adaptive"), st.floats(0.0, 2.0)),
    "switokd.require_better_teacher": st.booleans(),
    "switokd.mode": st.sampled_from(["switch", "learning", "expert"]),
    "data.augment": st.booleans(),
    "data.flip": st.sampled_from(["auto", "on", "off"]),
    "data.transforms": st.lists(st.sampled_from(["cutout(2)", "rand_augment"]), max_size=2, unique=True).map(tuple),
    "data.mix": st.lists(st.sampled_from(["mixup", "cutmix(alpha=2)"]), max_size=2, unique=True).map(tuple),
    "data.validation_fraction": st.floats(0.0, 0.5),
    "data.train_examples": st.integers(0, 1000),
    "checkpoint.every": st.floats(0.0, 5.0),
    "checkpoint.keep": st.integers(1, 5),
    "checkpoint.on_corrupt": st.sampled_from(["fallback", "stop"]),
    "log.every": st.integers(1, 100),
    "topology.relay": st.sampled_from(["pause", "learn"]),
}
VALID_IN_A_NETWORK: dict[str, st.SearchStrategy[Any]] = {
    "model": MODELS,
    "optimizer": st.sampled_from(["sgd", "adam", "adamw"]),
    "learning_rate": st.floats(0.0, 10.0),
    "momentum": st.floats(0.0, 1.0),
    "weight_decay": st.floats(0.0, 1.0),
    "schedule": st.sampled_from(["multistep", "cosine", "constant"]),
    "milestones": st.lists(st.integers(1, 300), max_size=3).map(tuple),
    "warmup_epochs": st.floats(0.0, 10.0),
    "label_smoothing": st.floats(0.0, 0.9),
    "clip_norm": st.floats(0.0, 10.0),
    "ema": st.floats(0.0, 0.999),
    "ema_warmup": st.booleans(),
    "decay_bn_bias": st.booleans(),
}


@st.composite
def configs(draw: st.DrawFn) -> dict[str, Any]:
    """Draws a config as a nested dict: networks, their topology, a few other fields; sometimes an invalid value."""
    c = config.default()
    names = list(NAMES[: draw(st.integers(2, 4))])
    c.networks = {name: config.network(model=draw(MODELS), schedule="constant") for name in names}
    kinds = ["chain", "complete", "custom", "star"] + ["pair"] * 2 * (len(names) == 2)
    c.topology.kind = draw(st.sampled_from(kinds))
    c.topology.names = tuple(names)
    split = draw(st.sampled_from([1, len(names) - 1]))
    c.topology.teachers, c.topology.students = tuple(names[:split]), tuple(names[split:])
    if c.topology.kind == "custom":
        pairs = [(one, other) for one in names for other in names if one != other]
        c.topology.edges = tuple((*pair, None, 1.0) for pair in draw(st.lists(st.sampled_from(pairs), max_size=6)))
    raw: dict[str, Any] = c.to_dict()
    for field in draw(st.lists(st.sampled_from([*VALID]), max_size=5, unique=True)):
        put(raw, field, draw(VALID[field]))
    for field in draw(st.lists(st.sampled_from([*VALID_IN_A_NETWORK]), max_size=3, unique=True)):
        raw["networks"][draw(st.sampled_from(names))][field] = draw(VALID_IN_A_NETWORK[field])
    if draw(st.integers(0, 3)) == 0:
        block = draw(
            st.sampled_from(["", "switokd.", "data.", "checkpoint.", "log.", "topology.", "networks.teacher."])
        )
        known = raw
        for part in block.split(".")[:-1]:
            known = known[part]
        field = draw(st.one_of(st.sampled_from(sorted(known)), st.text("abcdefgh_.", min_size=1, max_size=8)))
        known[field] = draw(ANYTHING)
    return raw


def put(raw: dict[str, Any], field: str, value: Any) -> None:
    *blocks, leaf = field.split(".")
    for block in blocks:
        raw = raw[block]
    raw[leaf] = value


def check_text(raw: dict[str, Any], text: str) -> int:
    """Checks a printed plan; returns the number of training images in it."""
    train, validation, test = (int(size) for size in re.findall(r"(\d+) (?:train|validation|test)", text))
    assert test == 360
    assert (validation > 0) == (raw["data"]["validation_fraction"] > 0)
    if not raw["data"]["train_examples"]:
        assert train + validation == 1437
    steps, epochs, per_epoch = re.search(r"^steps +(\d+): (\S+) epochs of (\d+)$", text, re.M).groups()  # type: ignore[union-attr]
    assert int(per_epoch) == -(-train // raw["batch_size"])
    assert float(epochs) == pytest.approx(int(steps) / int(per_epoch), rel=1e-4)
    assert f"\nbatch    {raw['batch_size']} over all devices\n" in text
    assert f"\nmethod   {raw['method']}\n" in text
    described = re.findall(r"^network  (\w+): (\S+), ([\d,]+) parameters$", text, re.M)
    assert {name: (model, int(size.replace(",", ""))) for name, model, size in described} == {
        name: (network["model"], PARAMETERS[network["model"]]) for name, network in raw["networks"].items()
    }
    return train


def check(raw: dict[str, Any], run: run_spec.RunSpec, devices: int) -> None:
    """Checks a plan by the config alone."""
    nodes = set(raw["networks"])
    assert set(run.networks) == set(run.topology.nodes) == nodes
    assert raw["batch_size"] % devices == 0
    assert run.steps_per_epoch == -(-run.dataset_info.train_examples // raw["batch_size"])
    assert run.total_steps == (raw["steps"] or max(round(raw["epochs"] * run.steps_per_epoch), 1))
    sources: dict[str, set[str]] = collections.defaultdict(set)
    for edge in run.topology.edges:
        assert {edge.learner, edge.source} <= nodes
        assert edge.learner != edge.source
        assert math.isfinite(edge.weight)
        assert edge.source not in sources[edge.learner], "the same edge twice"
        sources[edge.learner].add(edge.source)
    if raw["topology"]["kind"] == "pair":
        assert len(nodes) == 2
    if raw["topology"]["kind"] == "chain":
        order = raw["topology"]["names"]
        assert all(order[i] in sources[order[i + 1]] for i in range(len(order) - 1))
    if raw["topology"]["kind"] == "complete":
        assert all(sources[node] == nodes - {node} for node in nodes)
    # A network that may pause is a source of the network that it waits for, and no network waits for itself in a cycle.
    waits = {(teacher, student) for teacher, student in run.topology.pairs}
    assert all(teacher in sources[student] for teacher, student in waits)
    for start in nodes:
        reached: set[str] = set()
        ahead = {start}
        while ahead:
            ahead = {student for teacher, student in waits if teacher in ahead} - reached
            reached |= ahead
        assert start not in reached
    for name, network in run.networks.items():
        assert math.isfinite(float(network.schedule(jnp.int32(0))))
        assert network.ema == raw["networks"][name]["ema"]


def dry_run(raw: dict[str, Any]) -> tuple[str, str]:
    """Returns the printed text and the message of the error."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            main.main(raw, None, dry_run=True)
    except UserError as error:
        return printed.getvalue(), str(error)
    return printed.getvalue(), ""


@pytest.mark.slow
def test_every_config_gives_a_plan_or_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sklearn.datasets, "load_digits", functools.cache(sklearn.datasets.load_digits))
    counts: collections.Counter[str] = collections.Counter()

    @hypothesis.settings(max_examples=CASES, deadline=None, database=None, derandomize=True)
    @hypothesis.given(configs())
    def check_config(raw: dict[str, Any]) -> None:
        text, error = dry_run(raw)
        if error:
            assert not text
            assert "config." in error or error.startswith("data set")
            assert "\n" not in error
            assert len(error) < 500
        else:
            train = check_text(raw, text)
            dataset_info = dataset.DatasetInfo(10, tiny_runs.SHAPE, train, tiny_runs.PREPROCESS)
            check(raw, run_spec.make(config.parse(raw), dataset_info), jax.device_count())
        counts["error" if error else "plan"] += 1

    check_config()
    assert counts.total() >= CASES
    assert counts["plan"] >= 0.3 * counts.total(), counts
    assert counts["error"] >= 0.02 * counts.total(), counts
