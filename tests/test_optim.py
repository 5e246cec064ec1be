"""Schedules and optimizers against torch's rules, worked out in NumPy."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from switokd_jax import config, config_fields, optim


def spec(**changes: Any) -> config.NetworkConfig:
    return config_fields.from_mapping(config.NetworkConfig, changes, "network")


def rates(network: config.NetworkConfig, per_epoch: int, total: int) -> list[float]:
    rate = optim.schedule(network, per_epoch, total)
    return [float(rate(jnp.int32(step))) for step in range(total)]


def test_multistep_changes_at_the_first_step_of_an_epoch() -> None:
    got = rates(spec(learning_rate=0.1, milestones=(2, 4)), per_epoch=3, total=12)
    np.testing.assert_allclose(got, [0.1] * 3 + [0.01] * 6 + [0.001] * 3, rtol=1e-6)


def test_cosine_with_warmup() -> None:
    got = rates(spec(learning_rate=1.0, schedule="cosine", warmup_epochs=1), per_epoch=4, total=12)
    expected = [0.25, 0.5, 0.75, 1.0] + [0.5 * (1 + np.cos(np.pi * i / 8)) for i in range(8)]
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-7)


def run(network: config.NetworkConfig, gradients: list[np.ndarray], start: np.ndarray) -> np.ndarray:
    optimizer = optim.optimizer(network)
    params = {"layer": {"kernel": jnp.asarray(start), "bias": jnp.asarray(start)}}
    state = optimizer.init(params)
    for g in gradients:
        direction, state = optimizer.update(
            {"layer": {"kernel": jnp.asarray(g), "bias": jnp.asarray(g)}}, state, params
        )
        params = jax.tree.map(lambda p, d: p - network.learning_rate * d, params, direction)
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
    made = {
        "sgd": lambda: torch.optim.SGD([p], lr=0.05, momentum=0.9, weight_decay=0.02),
        "adam": lambda: torch.optim.Adam([p], lr=0.05, weight_decay=0.02),
        "adamw": lambda: torch.optim.AdamW([p], lr=0.05, weight_decay=0.02),
    }[name]()
    for g in GRADIENTS:
        p.grad = torch.tensor(g)
        made.step()
    with jax.enable_x64(True):
        got = run(spec(optimizer=name, learning_rate=0.05, weight_decay=0.02), GRADIENTS, START)[0]
    np.testing.assert_allclose(got, p.detach().numpy(), rtol=1e-9)
