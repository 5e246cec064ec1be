"""The switch against numbers worked out by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from switokd_jax.switching import adaptive_epsilon, distance, switch


def logits_of(*rows: tuple[float, ...]) -> jax.Array:
    """Logits whose softmax is exactly these probabilities."""
    return jnp.log(jnp.asarray(rows))


STUDENT = logits_of((0.5, 0.3, 0.2), (0.2, 0.6, 0.2))
TEACHER = logits_of((0.8, 0.1, 0.1), (0.1, 0.8, 0.1))
LABELS = jnp.asarray([0, 1])


def test_by_hand() -> None:
    # d_s = mean(.5+.3+.2, .2+.4+.2) = .9;  d_t = mean(.4, .4) = .4;  G = mean(.3+.2+.1, .1+.2+.1) = .5
    # epsilon = exp(-.4 / 1.3) = .7351411;  delta = .9 - .7351411 * .4 = .6059436
    s = switch(STUDENT, TEACHER, LABELS)
    assert s.student_distance == pytest.approx(0.9, abs=1e-6)
    assert s.teacher_distance == pytest.approx(0.4, abs=1e-6)
    assert s.gap == pytest.approx(0.5, abs=1e-6)
    assert s.epsilon == pytest.approx(0.7351411, abs=1e-6)
    assert s.threshold == pytest.approx(0.6059436, abs=1e-6)
    assert not s.expert


def test_expert_needs_both_conditions() -> None:
    assert switch(STUDENT, TEACHER, LABELS, threshold=0.4).expert  # G = .5 > .4 and d_t < d_s
    assert not switch(STUDENT, TEACHER, LABELS, threshold=0.6).expert
    assert not switch(TEACHER, STUDENT, LABELS, threshold=0.4).expert  # the teacher is the worse one
    assert switch(TEACHER, STUDENT, LABELS, threshold=0.4, require_better_teacher=False).expert  # in the paper's text
    assert not switch(TEACHER, STUDENT, LABELS, threshold=0.6, require_better_teacher=False).expert


def test_fixed_epsilon_bounds_the_threshold() -> None:
    lower, upper = (switch(STUDENT, TEACHER, LABELS, epsilon=e).threshold for e in (1.0, 0.0))
    assert lower == pytest.approx(0.5, abs=1e-6)  # d_s - d_t
    assert upper == pytest.approx(0.9, abs=1e-6)  # d_s
    assert lower < switch(STUDENT, TEACHER, LABELS).threshold < upper


def test_epsilon_where_both_distances_vanish() -> None:
    assert adaptive_epsilon(jnp.zeros(()), jnp.zeros(())) == pytest.approx(np.exp(-0.5))
    sure = jnp.asarray([[200.0, 0.0], [0.0, 200.0]])
    s = switch(sure, sure, LABELS)
    assert all(np.isfinite(float(x)) for x in s)
    assert not s.expert


def test_temperature_softens() -> None:
    expected = jax.nn.softmax(TEACHER / 4.0) - jax.nn.softmax(STUDENT / 4.0)
    assert switch(STUDENT, TEACHER, LABELS, temperature=4.0).gap == pytest.approx(
        float(jnp.mean(jnp.sum(jnp.abs(expected), -1)))
    )


def test_mean_is_the_callers() -> None:
    weights = jnp.asarray([1.0, 0.0])
    s = switch(STUDENT, TEACHER, LABELS, mean=lambda x: jnp.sum(x * weights))
    assert s.gap == pytest.approx(0.6, abs=1e-6)


def test_bfloat16_logits_decide_in_float32() -> None:
    assert switch(STUDENT.astype(jnp.bfloat16), TEACHER.astype(jnp.bfloat16), LABELS).gap.dtype == jnp.float32


def test_no_gradient() -> None:
    gradient = jax.grad(lambda z: switch(z, TEACHER, LABELS).threshold)(STUDENT)
    assert not np.any(gradient)


def test_distance_is_at_most_two() -> None:
    assert distance(jnp.eye(2), jnp.eye(2)[::-1]) == 2.0
