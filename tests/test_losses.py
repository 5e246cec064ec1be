"""Losses against NumPy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from switokd_jax.losses import cross_entropy, kl_divergence
from switokd_jax.metrics import top_k_correct

Z = np.asarray([[2.0, 1.0, -1.0], [0.0, 0.5, 3.0]], np.float32)
W = np.asarray([[0.3, -0.2, 1.0], [1.0, 1.0, -2.0]], np.float32)
Y = np.asarray([0, 1])


def probabilities(z: np.ndarray) -> np.ndarray:
    e = np.exp(z)
    return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy(smoothing: float) -> None:
    target = (1 - smoothing) * np.eye(3)[Y] + smoothing / 3
    expected = -(target * np.log(probabilities(Z))).sum(-1)
    np.testing.assert_allclose(cross_entropy(jnp.asarray(Z), jnp.asarray(Y), smoothing), expected, rtol=1e-6)


@pytest.mark.parametrize("tau", [1.0, 3.0])
def test_kl(tau: float) -> None:
    p, q = probabilities(Z / tau), probabilities(W / tau)
    np.testing.assert_allclose(
        kl_divergence(jnp.asarray(Z), jnp.asarray(W), tau), (p * np.log(p / q)).sum(-1), rtol=1e-5
    )


def test_kl_pulls_the_learner_only() -> None:
    to_target, to_learner = jax.grad(lambda a, b: kl_divergence(a, b).sum(), (0, 1))(jnp.asarray(Z), jnp.asarray(W))
    assert not np.any(to_target)
    np.testing.assert_allclose(to_learner, probabilities(W) - probabilities(Z), atol=1e-6)


def test_correct() -> None:
    np.testing.assert_array_equal(top_k_correct(jnp.asarray(Z), jnp.asarray(Y)), [1.0, 0.0])
    np.testing.assert_array_equal(top_k_correct(jnp.asarray(Z), jnp.asarray(Y), 2), [1.0, 1.0])
    np.testing.assert_array_equal(top_k_correct(jnp.asarray(Z), jnp.asarray(Y), 5), [1.0, 1.0])
