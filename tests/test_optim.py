"""Schedules and optimizers against torch's rules, worked out in NumPy, and against optax with the rate inside."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from switokd_jax import config, config_fields, optim


def spec(**changes: Any) -> config.NetworkConfig:
    return config_fields.from_mapping(config.NetworkConfig, changes, "network")


def rates(network: config.NetworkConfig, per_epoch: int, total: int) -> list[float]:
    rate = optim.make_schedule(network.schedule, network.schedule_settings(per_epoch, total))
    return np.asarray(jax.vmap(rate)(jnp.arange(total))).tolist()


def test_multistep_changes_at_the_first_step_of_an_epoch() -> None:
    got = rates(spec(learning_rate=0.1, milestones=(2, 4)), per_epoch=3, total=12)
    np.testing.assert_allclose(got, [0.1] * 3 + [0.01] * 6 + [0.001] * 3, rtol=1e-6)


def test_cosine_with_warmup() -> None:
    got = rates(spec(learning_rate=1.0, schedule="cosine", warmup_epochs=1), per_epoch=4, total=12)
    expected = [0.25, 0.5, 0.75, 1.0] + [0.5 * (1 + np.cos(np.pi * i / 8)) for i in range(8)]
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-7)


def test_two_milestones_in_one_step_decay_twice() -> None:
    got = rates(spec(learning_rate=1.0, milestones=(2, 2.1)), per_epoch=3, total=6)
    np.testing.assert_allclose(got, [1.0] * 3 + [0.01] * 3, rtol=1e-6)


def test_milestones_count_from_the_start_of_the_run_despite_warmup() -> None:
    got = rates(spec(learning_rate=1.0, milestones=(3,), warmup_epochs=1), per_epoch=2, total=6)
    np.testing.assert_allclose(got, [0.5, 1.0, 1.0, 1.0, 0.1, 0.1], rtol=1e-6)


def test_cosine_ends_at_the_final_learning_rate() -> None:
    got = rates(spec(learning_rate=0.5, schedule="cosine", final_learning_rate=0.1), per_epoch=4, total=8)
    expected = [0.1 + 0.4 * 0.5 * (1 + np.cos(np.pi * i / 8)) for i in range(8)]
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_linear_decays_after_the_warmup() -> None:
    got = rates(spec(learning_rate=1.0, schedule="linear", final_learning_rate=0.2, warmup_epochs=1), 2, 6)
    np.testing.assert_allclose(got, [0.5, 1.0, 1.0, 0.8, 0.6, 0.4], rtol=1e-6)


def test_onecycle_rises_for_the_warmup_epochs_and_falls_to_the_final_learning_rate() -> None:
    network = spec(learning_rate=1.0, schedule="onecycle", final_learning_rate=0.01, warmup_epochs=2)
    got = rates(network, per_epoch=2, total=11)[:11]
    rising = [1 / 25 + (1 - 1 / 25) * 0.5 * (1 - np.cos(np.pi * i / 4)) for i in range(4)]
    falling = [0.01 + (1 - 0.01) * 0.5 * (1 + np.cos(np.pi * i / 7)) for i in range(7)]
    np.testing.assert_allclose(got, rising + falling, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("total", [1, 2, 3, 49])
def test_onecycle_is_finite_however_short_the_run(total: int) -> None:
    assert np.isfinite(rates(spec(schedule="onecycle"), per_epoch=1, total=total)).all()


def run(network: config.NetworkConfig, gradients: list[np.ndarray], start: np.ndarray) -> np.ndarray:
    optimizer = optim.make_optimizer(network.optimizer, network.optimizer_settings, network.clip_norm)
    params = {"layer": {"kernel": jnp.asarray(start), "bias": jnp.asarray(start)}}
    state = optimizer.init(params)
    for g in gradients:
        updates, state = optimizer.update({"layer": {"kernel": jnp.asarray(g), "bias": jnp.asarray(g)}}, state, params)
        params = jax.tree.map(lambda p, d: p - network.learning_rate * d, params, updates)
    return np.stack([params["layer"]["kernel"], params["layer"]["bias"]])


GRADIENTS = [np.random.default_rng(i).normal(size=5) for i in range(4)]
START = np.linspace(-1, 1, 5)


@pytest.mark.parametrize("decay_all", [True, False])
def test_sgd_is_torchs(decay_all: bool) -> None:
    with jax.enable_x64(True):
        got = run(spec(learning_rate=0.3, weight_decay=0.01, decay_bn_bias=decay_all), GRADIENTS, START)
    for row, wd in zip(got, (0.01, 0.01 if decay_all else 0.0), strict=True):
        p, buffer = START.copy(), np.zeros(5)
        for g in GRADIENTS:
            buffer = 0.9 * buffer + (g + wd * p)
            p = p - 0.3 * buffer
        np.testing.assert_allclose(row, p, rtol=1e-12)


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_adam_is_torchs(name: str) -> None:
    lr, wd = 0.01, 0.1
    with jax.enable_x64(True):
        got = run(spec(optimizer=name, learning_rate=lr, weight_decay=wd), GRADIENTS, START)[0]
    p, m, v = START.copy(), np.zeros(5), np.zeros(5)
    for t, raw in enumerate(GRADIENTS, 1):
        g = raw + (wd * p if name == "adam" else 0.0)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        if name == "adamw":
            p = p * (1 - lr * wd)
        p = p - lr * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    np.testing.assert_allclose(got, p, rtol=1e-9)


def test_nesterov_sgd_is_torchs() -> None:
    with jax.enable_x64(True):
        got = run(spec(learning_rate=0.3, weight_decay=0.01, nesterov=True), GRADIENTS, START)[0]
    p, buffer = START.copy(), np.zeros(5)
    for g in GRADIENTS:
        decayed = g + 0.01 * p
        buffer = 0.9 * buffer + decayed
        p = p - 0.3 * (decayed + 0.9 * buffer)
    np.testing.assert_allclose(got, p, rtol=1e-12)


WITH_RATE = {
    "lars": lambda lr: optax.lars(lr, weight_decay=0.1, momentum=0.8),
    "lamb": lambda lr: optax.lamb(lr, weight_decay=0.1),
    "lion": lambda lr: optax.lion(lr, weight_decay=0.1),
    "adamw": lambda lr: optax.adamw(lr, weight_decay=0.1),
}


def inside(optimizer: optax.GradientTransformation, params: Any, gradients: list[Any]) -> Any:
    """The parameters after updates by an optimizer that contains its learning rate."""
    state = optimizer.init(params)
    for gradient in gradients:
        updates, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    return params


@pytest.mark.parametrize("name", WITH_RATE)
def test_the_rate_outside_equals_optaxs_inside(name: str) -> None:
    with jax.enable_x64(True):
        got = run(spec(optimizer=name, learning_rate=0.03, weight_decay=0.1, momentum=0.8), GRADIENTS, START)[0]
        expected = inside(WITH_RATE[name](0.03), jnp.asarray(START), [jnp.asarray(g) for g in GRADIENTS])
    np.testing.assert_allclose(got, expected, rtol=1e-12)


def test_betas_are_the_configs() -> None:
    with jax.enable_x64(True):
        got = run(spec(optimizer="adamw", learning_rate=0.03, weight_decay=0.1, betas=(0.8, 0.95)), GRADIENTS, START)[0]
        adamw = optax.adamw(0.03, b1=0.8, b2=0.95, weight_decay=0.1)
        expected = inside(adamw, jnp.asarray(START), [jnp.asarray(g) for g in GRADIENTS])
    np.testing.assert_allclose(got, expected, rtol=1e-12)


@pytest.mark.slow
def test_muon_orthogonalizes_kernels_and_updates_the_rest_by_adam() -> None:
    rng = np.random.default_rng(0)
    shapes = {"conv": {"kernel": (3, 3, 2, 4), "bias": (4,)}, "linear": {"kernel": (5, 4)}}
    settings = optim.OptimizerSettings(momentum=0.95, weight_decay=0.1)
    with jax.enable_x64(True):
        params, gradient = (
            jax.tree.map(lambda shape: jnp.asarray(rng.normal(size=shape)), shapes, is_leaf=lambda x: type(x) is tuple)
            for _ in range(2)
        )
        ours = optim.make_optimizer("muon", settings)
        updates, _ = ours.update(gradient, ours.init(params), params)
        as_matrix = optax.contrib.muon(1.0, beta=0.95, weight_decay=0.1)
        g, kernel = (tree["conv"]["kernel"].reshape(18, 4) for tree in (gradient, params))
        matrix, _ = as_matrix.update(g, as_matrix.init(kernel), kernel)
        np.testing.assert_allclose(updates["conv"]["kernel"].reshape(18, 4), -matrix, rtol=1e-9)
        # Adam's first update is the gradient's sign; optax's Muon gives it Nesterov momentum.
        adam = optax.adamw(1.0, weight_decay=0.1, nesterov=True)
        bias, _ = adam.update(gradient["conv"]["bias"], adam.init(params["conv"]["bias"]), params["conv"]["bias"])
        np.testing.assert_allclose(updates["conv"]["bias"], -bias, rtol=1e-9)


@pytest.mark.usefixtures("own_additions")
def test_a_users_optimizer_and_schedule_need_one_line_each() -> None:
    optim.OPTIMIZERS["sign"] = lambda settings: (optax.scale_by_sign(),)
    optim.SCHEDULES["halving"] = lambda settings: lambda step: 0.5**step
    network = spec(optimizer="sign", schedule="halving", learning_rate=1.0)
    assert rates(network, per_epoch=1, total=3) == [1.0, 0.5, 0.25]
    np.testing.assert_array_equal(run(network, [np.full(5, 3.0)], START)[0], (START - 1.0).astype(np.float32))


def test_clip_comes_before_decay() -> None:
    with jax.enable_x64(True):
        g = np.full(5, 10.0)
        got = run(spec(learning_rate=1.0, momentum=0.0, weight_decay=0.5, clip_norm=1.0), [g], START)[0]
    # Kernel and bias have ten elements of 10 in all: the global norm is 10 sqrt(10).
    np.testing.assert_allclose(got, START - (g / (10 * np.sqrt(10)) + 0.5 * START), rtol=1e-12)


@pytest.mark.torch
@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_against_torch_itself(name: str) -> None:
    import torch

    p = torch.nn.Parameter(torch.tensor(START))
    optimizer = {
        "sgd": lambda: torch.optim.SGD([p], lr=0.05, momentum=0.9, weight_decay=0.02),
        "adam": lambda: torch.optim.Adam([p], lr=0.05, weight_decay=0.02),
        "adamw": lambda: torch.optim.AdamW([p], lr=0.05, weight_decay=0.02),
    }[name]()
    for g in GRADIENTS:
        p.grad = torch.tensor(g)
        optimizer.step()
    with jax.enable_x64(True):
        got = run(spec(optimizer=name, learning_rate=0.05, weight_decay=0.02), GRADIENTS, START)[0]
    np.testing.assert_allclose(got, p.detach().numpy(), rtol=1e-9)
