"""The paper on one page: distances, the distillation gap, the adaptive threshold, the switch.

Source: Qian et al., "Switchable Online Knowledge Distillation", ECCV 2022 (arXiv 2209.04996) and its
public code. With p = softmax(z / tau) and the mean taken over the global batch:

    distance(p, q) = mean || p - q ||_1                              in 0 .. 2
    d_s = distance(p_s, onehot(y)),  d_t = distance(p_t, onehot(y)),  G = distance(p_s, p_t)
    epsilon = exp(-d_t / (d_s + d_t)),   delta = d_s - epsilon * d_t
    expert mode  <=>  G > delta  and  d_t < d_s

The paper's text has the first condition only; the second stands in its code: a teacher that is further
from the labels than its student is never paused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from switokd_jax.precision import promote_to_float32

Mean = Callable[[jax.Array], jax.Array]
# (student distance, teacher distance) to the coefficient of the teacher's distance in the threshold.
Epsilon = Callable[[jax.Array, jax.Array], jax.Array]


class Switch(NamedTuple):
    """What decides the mode of one teacher-student pair; scalars without gradient."""

    gap: jax.Array
    threshold: jax.Array
    epsilon: jax.Array
    student_distance: jax.Array
    teacher_distance: jax.Array
    expert: jax.Array


def distance(p: jax.Array, q: jax.Array, mean: Mean = jnp.mean) -> jax.Array:
    """Mean over the batch of the L1 distance of two distributions [batch, classes]; 0 .. 2."""
    return mean(jnp.sum(jnp.abs(p - q), axis=-1))


def adaptive_epsilon(student_distance: jax.Array, teacher_distance: jax.Array) -> jax.Array:
    """exp(-d_t / (d_s + d_t)), between 1/e and 1; the ratio is 1/2 where both distances are 0."""
    total = student_distance + teacher_distance
    ratio = jnp.where(total > 0, teacher_distance / jnp.where(total > 0, total, 1.0), 0.5)
    return jnp.exp(-ratio)


def switch(
    student_logits: jax.Array,
    teacher_logits: jax.Array,
    labels: jax.Array,
    *,
    temperature: float = 1.0,
    mean: Mean = jnp.mean,
    epsilon: float | Epsilon | None = None,
    threshold: float | None = None,
) -> Switch:
    """Decides between learning mode and expert mode for one teacher-student pair.

    Args:
      student_logits: [batch, classes], any float dtype; computed in float32 at least.
      teacher_logits: [batch, classes].
      labels: [batch], integer classes.
      temperature: tau of the softmax, above 0.
      mean: takes [batch] to the scalar mean over the GLOBAL batch. Where the batch is split over
        devices this has to average over them, or replicas would decide differently.
      epsilon: a fixed coefficient in place of the adaptive one (ablation; 1 gives the lower bound of
        the threshold, 0 the upper), or another function of both distances.
      threshold: a fixed delta in place of the adaptive one (ablation).

    Returns:
      A `Switch` of scalars; `expert` is a boolean, True where the teacher has to wait.
    """
    student, teacher = (promote_to_float32(jax.lax.stop_gradient(z)) for z in (student_logits, teacher_logits))
    p_student = jax.nn.softmax(student / temperature)
    p_teacher = jax.nn.softmax(teacher / temperature)
    truth = jax.nn.one_hot(labels, student.shape[-1], dtype=student.dtype)
    d_student = distance(p_student, truth, mean)
    d_teacher = distance(p_teacher, truth, mean)
    gap = distance(p_student, p_teacher, mean)
    of_distances = adaptive_epsilon if epsilon is None else epsilon
    coefficient = of_distances(d_student, d_teacher) if callable(of_distances) else jnp.full_like(gap, of_distances)
    delta = d_student - coefficient * d_teacher if threshold is None else jnp.full_like(gap, threshold)
    expert = (gap > delta) & (d_teacher < d_student)
    return Switch(gap, delta, coefficient, d_student, d_teacher, expert)
