"""Configs: defaults, overrides, validation messages, and every file in configs/."""

from __future__ import annotations

import dataclasses
import functools
import sys
from pathlib import Path
from typing import Any

import jax
import optax
import pytest
from absl import flags
from ml_collections import ConfigDict, config_flags

import tiny_runs
from switokd_jax import config, config_fields, topology
from switokd_jax.data import dataset, normalization
from switokd_jax.errors import UserError
from switokd_jax.methods import METHODS, Method
from switokd_jax.models.init import init_variables
from switokd_jax.optim import OPTIMIZERS, SCHEDULES
from switokd_jax.topology import TOPOLOGIES
from switokd_jax.train import run_spec

CONFIGS = sorted(tiny_runs.CONFIGS.glob("*.py"))


@pytest.mark.parametrize("argument", ["digits", "mnist,dml", "digits,dmll", "digits,dml,trees"])
def test_the_config_of_online_methods_names_a_wrong_argument(argument: str) -> None:
    with pytest.raises(UserError, match=rf"--config argument '{argument}' is not cifar100 or digits, a method"):
        tiny_runs.config_file("online").get_config(argument)


@pytest.mark.slow
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_builds_its_plan(path: Path) -> None:
    """Networks are made in shape only: wrn_16_10 would take seconds to draw."""
    c = config.parse(tiny_runs.config_file(path.stem).get_config())
    classes, shape = {
        "digits": (10, (8, 8, 1)),
        "cifar10": (10, (32, 32, 3)),
        "cifar100": (100, (32, 32, 3)),
        "tiny_imagenet_200": (200, (64, 64, 3)),
        "imagenet2012": (1000, (224, 224, 3)),
    }[c.data.name]
    run = run_spec.make(
        c, dataset.DatasetInfo(classes, shape, 1000, normalization.PUBLISHED[c.data.name]), jax.devices()[:1]
    )
    assert set(run.networks) == set(c.networks)
    for network in run.networks.values():
        draw = functools.partial(init_variables, network.module, image_shape=shape)
        variables = jax.eval_shape(draw, jax.random.key(0))
        assert variables["params"]
    command = f"python -m switokd_jax.main --config=configs/{path.name}"
    assert command in path.read_text(), "the docstring gives the command"


def test_every_ablation_changes_what_it_names() -> None:
    module = tiny_runs.config_file("cifar100_ablations")
    base = config.parse(module.get_config())
    for name in module.ABLATIONS:
        changed = config.parse(module.get_config(name))
        assert changed.hyperparameters != base.hyperparameters, name
        assert dataclasses.replace(changed, hyperparameters=base.hyperparameters) == base, name
    with pytest.raises(ValueError, match=r"no ablation 'epsilon_2'; did you mean 'epsilon_\d'"):
        module.get_config("epsilon_2")


def test_a_pair_is_named_in_the_argument_of_a_config() -> None:
    c = config.parse(tiny_runs.config_file("cifar100_uniokd").get_config("resnet32x4,mobilenetv2_0.5"))
    assert [c.networks[name].model for name in ("teacher", "student")] == ["resnet32x4", "mobilenetv2_0.5"]
    transformers = tiny_runs.config_file("cifar100_uniokd_transformers")
    reverse = config.parse(transformers.get_config("swin_tiny,resnet18_cifar,200"))
    assert (reverse.networks["teacher"].model, reverse.epochs) == ("swin_tiny", 200.0)
    assert config.parse(transformers.get_config("vit_small,resnet18_cifar")).epochs == 400.0


def test_dkds_weight_and_the_rate_depend_on_the_offline_pair() -> None:
    """As in the public code of DKD."""
    offline = tiny_runs.config_file("cifar100_offline")
    for pair, others, rate in (
        ("resnet56_rd,resnet20_rd", 2.0, 0.05),
        ("vgg13,mobilenetv2_0.5", 6.0, 0.01),
        ("resnet32x4,resnet8x4", 8.0, 0.05),
    ):
        raw = offline.get_config(pair)
        raw.method = "dkd"
        c = config.parse(raw)
        assert (c.hyperparameters.others, c.networks["student"].learning_rate) == (others, rate)


@pytest.mark.parametrize("name", ["cifar100_uniokd", "cifar100_uniokd_transformers", "cifar100_offline"])
@pytest.mark.parametrize("argument", ["", "wrn_16_2", "wrn_16_2,", "a,b,c", "a,b,0", "a, b", "a,b,200,1"])
def test_an_argument_that_is_no_pair_is_refused(name: str, argument: str) -> None:
    with pytest.raises(UserError, match=rf"--config argument '{argument}' is not TEACHER,STUDENT"):
        tiny_runs.config_file(name).get_config(argument)


def test_default_parses_to_frozen_values() -> None:
    c = config.parse(config.default())
    assert c.method == "switokd"
    assert c.hyperparameters.epsilon is None
    with pytest.raises(dataclasses.FrozenInstanceError):
        c.seed = 1  # type: ignore[misc]


@pytest.mark.parametrize(("given", "expected"), [("adaptive", None), ("0.25", 0.25), (1, 1.0)])
def test_epsilon_is_adaptive_or_a_number(given: Any, expected: float | None) -> None:
    c = config.default()
    c.switokd.epsilon = given
    assert config.parse(c).hyperparameters.epsilon == expected


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "field": ({"sede": 1}, r"config.sede is not a field; did you mean 'seed'\?"),
    "nested field": ({"networks.teacher.learning_rte": 1.0}, r"networks.teacher.learning_rte .* 'learning_rate'"),
    "method": ({"method": "switokt"}, r"config.method is 'switokt'; did you mean 'switokd'\?"),
    "type": ({"batch_size": "many"}, r"config.batch_size is 'many'; it must be a number"),
    "whole": ({"batch_size": 2.5}, r"config.batch_size is 2.5; it must be a whole number"),
    "zero": ({"batch_size": 0}, r"config.batch_size is 0; it must be .* at least 1"),
    "nan": ({"epochs": float("nan")}, r"config.epochs is nan; it must be a finite number"),
    "temperature": ({"switokd.temperature": -1.0}, r"config.switokd.temperature is -1.0; .* above 0"),
    "epsilon": ({"switokd.epsilon": 1.5}, r"config.switokd.epsilon is 1.5; .* at most 1"),
    "epsilon word": ({"switokd.epsilon": "high"}, r"config.switokd.epsilon is 'high'; .* 'adaptive' or a number"),
    "flag": ({"data.augment": "yes"}, r"config.data.augment is 'yes'; it must be True or False"),
    "sequence": ({"topology.teachers": "teacher"}, r"config.topology.teachers is 'teacher'; it must be a tuple"),
    "topology kind": ({"topology.kind": "stars"}, r"config.topology.kind is 'stars'; did you mean 'star'\?"),
    "optimizer": ({"networks.student.optimizer": "adamww"}, r"student.optimizer is 'adamww'; did you mean 'adamw'\?"),
    "schedule": ({"networks.student.schedule": "cosin"}, r"student.schedule is 'cosin'; did you mean 'cosine'\?"),
    "betas": ({"networks.student.betas": (0.9,)}, r"config.networks.student.betas is \(0.9,\); it must be \(\) or two"),
    "beta": ({"networks.student.betas": (0.9, 1.0)}, r"config.networks.student.betas .* below 1"),
    "final rate": (
        {"networks.student.final_learning_rate": 1.0},
        r"config.networks.student.final_learning_rate is 1.0, above its learning_rate 0.1; lower it",
    ),
    "milestone": ({"networks.student.milestones": (0,)}, r"config.networks.student.milestones holds 0; epochs"),
    "local norm": ({"batch_norm": "local"}, r"config.batch_norm is 'local', which needs .* 'pmap'"),
    "block": ({"data": 3}, r"config.data is 3; it is a block of fields"),
    "no networks": ({"networks": {}}, r"config.networks is empty"),
}


@pytest.mark.parametrize(("changes", "message"), BAD.values(), ids=BAD.keys())
def test_bad_values(changes: dict[str, Any], message: str) -> None:
    raw = config.default().to_dict()
    for name, value in changes.items():
        *blocks, leaf = name.split(".")
        target = raw
        for block in blocks:
            target = target[block]
        target[leaf] = value
    with pytest.raises(UserError, match=message) as error:
        config.parse(raw)
    assert "\n" not in str(error.value)


def test_network_refuses_unknown_fields() -> None:
    with pytest.raises(UserError, match=r"network field 'lr' is not a field; .*learning_rate"):
        config.network(lr=0.1)


FROZEN = {"networks.teacher.frozen": True, "networks.teacher.init_from": "runs/teacher:teacher@best"}
METHOD: dict[str, tuple[dict[str, Any], str]] = {
    "unknown feature": (
        {"method": "at", "at.student": ("stage1", "stage2", "stag3"), **FROZEN},
        r"network 'student' has no feature 'stag3'; did you mean 'stage3'\? known: pooled, stage1, stage2, stage3",
    ),
    "features without counterparts": (
        {"method": "at", "at.student": ("stage1",), **FROZEN},
        "1 features of the student and 3 of the teacher are named",
    ),
    "features that do not fit": (
        {"method": "fitnet", "fitnet.student": "stage3", "fitnet.teacher": "stage1", **FROZEN},
        r"edge student <- teacher: the student's features \(2, 2, 64\) are smaller than the teacher's \(8, 8, 32\)",
    ),
    "offline without a teacher": ({"method": "kd"}, r"config.method 'kd' learns from frozen networks .*frozen = True"),
    "frozen as drawn": ({"networks.teacher.frozen": True}, r"config.networks.teacher is frozen and has no init_from"),
    "frozen average": ({"networks.teacher.ema": 0.9, **FROZEN}, r"config.networks.teacher is frozen, so .* ema to 0"),
    "held-out weights": (
        {"method": "kdcl", "kdcl.target": "general"},
        r"config.data.validation_fraction is 0, and this form of 'kdcl' weights the networks on held-out images",
    ),
    "all frozen": (
        {
            f"networks.{n}.{key}": v
            for n in ("teacher", "student")
            for key, v in (("frozen", True), ("init_from", "x:y"))
        },
        "all networks are frozen",
    ),
}


@pytest.mark.parametrize(("changes", "message"), METHOD.values(), ids=METHOD.keys())
def test_methods_say_what_they_lack(changes: dict[str, Any], message: str) -> None:
    c = config.default()
    c.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=message):
        run_spec.make(
            config.parse(c),
            dataset.DatasetInfo(10, (8, 8, 1), 100, normalization.PUBLISHED["digits"]),
            jax.devices()[:1],
        )


TOPOLOGY: dict[str, tuple[dict[str, Any], str]] = {
    "unknown": ({"topology.students": ("pupil",)}, "unknown network 'pupil'; config.networks has"),
    "unused": ({"topology.kind": "complete", "topology.names": ("teacher",)}, "config.networks.student takes no part"),
    "two pairs": ({"topology.teachers": ("teacher", "student")}, "a pair has one name in teachers"),
    "relay": ({"topology.kind": "chain", "topology.names": ("teacher",)}, "a chain needs two or more"),
}


@pytest.mark.parametrize(("changes", "message"), TOPOLOGY.values(), ids=TOPOLOGY.keys())
def test_topologies_that_do_not_fit_the_networks(changes: dict[str, Any], message: str) -> None:
    c = config.default()
    c.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=message):
        run_spec.make_topology(config.parse(c))


def weights(c: ConfigDict) -> dict[str, float]:
    """The weight of each edge of a config's topology."""
    return {str(edge): edge.weight for edge in run_spec.make_topology(config.parse(c)).edges}


def test_alpha_and_beta_weight_the_edges() -> None:
    c = config.default()
    c.switokd.alpha, c.switokd.beta = 0.5, 2.0
    assert weights(c) == {"student <- teacher": 0.5, "teacher <- student": 2.0}


@dataclasses.dataclass(frozen=True)
class OwnHyperparameters:
    alpha: float = config_fields.number(0.25)
    pull: float = config_fields.number(3.0)


def own_method(**changes: Any) -> ConfigDict:
    """A config of a user's method with an alpha of its own."""
    METHODS["own"] = Method(METHODS["vanilla"].apply, OwnHyperparameters, **changes)
    c = config.default()
    c.method = "own"
    return c


@pytest.mark.usefixtures("own_additions")
def test_a_users_own_alpha_leaves_the_edges_alone() -> None:
    assert set(weights(own_method()).values()) == {1.0}


@pytest.mark.usefixtures("own_additions")
def test_a_users_method_names_the_fields_that_weight_the_edges() -> None:
    c = own_method(edge_weights=("pull", "alpha"))
    assert weights(c) == {"student <- teacher": 3.0, "teacher <- student": 0.25}


def test_edge_weights_are_hyperparameters() -> None:
    with pytest.raises(ValueError, match=r"edge_weights \('push',\) are not one or two fields of OwnHyperparameters"):
        Method(METHODS["vanilla"].apply, OwnHyperparameters, edge_weights=("push",))


EDGES = (("student", "teacher"), ("teacher", "student", ("teacher", "student")))


@pytest.mark.parametrize("kind", ["complete", "custom"])
@pytest.mark.parametrize(("method", "field"), [("switokd", "alpha"), ("switokd", "beta"), ("uniokd", "alpha")])
def test_kinds_without_weights_refuse_alpha_and_beta(kind: str, method: str, field: str) -> None:
    c = config.default()
    c.method, c.topology.kind, c.topology.edges = method, kind, EDGES
    c[method][field] = 3.0
    message = rf"^config.{method}.{field} is 3.0, but topology.kind '{kind}' does not use it; .*topology.edges\)$"
    with pytest.raises(UserError, match=message):
        weights(c)


@pytest.mark.parametrize("alpha", [1.0, 2.0])
def test_kinds_without_weights_take_the_methods_default_and_1(alpha: float) -> None:
    c = config.default()
    c.method, c.topology.kind, c.topology.edges = "uniokd", "custom", EDGES
    c.uniokd.alpha = alpha
    assert set(weights(c).values()) == {1.0}


@pytest.mark.usefixtures("own_additions")
def test_a_users_topology_kind_needs_one_line() -> None:
    TOPOLOGIES["one_way"] = lambda settings: topology.custom(settings.networks, [("student", "teacher")])
    c = config.default()
    c.topology.kind = "one_way"
    assert weights(c) == {"student <- teacher": 1.0}


@pytest.mark.usefixtures("own_additions")
def test_a_users_optimizer_and_schedule_parse() -> None:
    OPTIMIZERS["sign"] = lambda settings: (optax.scale_by_sign(),)
    SCHEDULES["halving"] = lambda settings: lambda step: 0.5**step
    c = config.default()
    c.networks.student.optimizer, c.networks.student.schedule = "sign", "halving"
    run = tiny_runs.tiny_plan(c, 100)
    assert float(run.networks["student"].schedule(jax.numpy.int32(2))) == pytest.approx(0.025)


def test_a_flag_sets_adaptive_or_a_number_whatever_the_config_file_has(monkeypatch: pytest.MonkeyPatch) -> None:
    c = config.default()
    c.switokd.threshold = 0.25
    argv = ["program", "--config.switokd.epsilon=0.5", "--config.switokd.threshold=adaptive"]
    monkeypatch.setattr(sys, "argv", argv)  # config_flags looks for the fields there
    values = flags.FlagValues()
    config_flags.DEFINE_config_dict("config", c, flag_values=values)
    values(argv)
    parsed = config.parse(values.config).hyperparameters
    assert (parsed.epsilon, parsed.threshold) == (0.5, None)
