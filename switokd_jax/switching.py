"""Switch of SwitOKD: distances, distillation gap, adaptive threshold and the decision between both modes.

Source: Qian et al., "Switchable Online Knowledge Distillation", ECCV 2022 (arXiv 2209.04996) and its
public code. With p = softmax(z / tau) and the mean taken over the global batch:

    distance(p, q) = mean || p - q ||_1                              in 0 .. 2
    d_s = distance(p_s, onehot(y)),  d_t = distance(p_t, onehot(y)),  G = distance(p_s, p_t)
    epsilon = exp(-d_t / (d_s + d_t)),   delta = d_s - epsilon * d_t
    expert mode  <=>  G > delta  and  d_t < d_s

The paper's text has only the first condition. The second is in its code: a teacher that is further from the
labels than its student is never paused (`require_better_teacher`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from switokd_jax.losses import Labels, class_probabilities
from switokd_jax.precision import promote_to_float32

Mean = Callable[[jax.Array], jax.Array]
# (student distance, teacher distance) to epsilon, the coefficient of the teacher's distance in the threshold.
Epsilon = Callable[[jax.Array, jax.Array], jax.Array]


class Switch(NamedTuple):
    """Mode of one teacher-student pair and the numbers behind it: scalars without gradient.

    Attributes:
      gap: G, the distance between both networks' predictions.
      threshold: delta, which the gap has to exceed in expert mode.
      epsilon: coefficient of the teacher's distance in the threshold.
      student_distance: d_s, the distance between the student's predictions and the labels.
      teacher_distance: d_t, likewise of the teacher.
      expert: True in expert mode: the teacher is paused. False in learning mode.
    """

    gap: Float[Array, ""]
    threshold: Float[Array, ""]
    epsilon: Float[Array, ""]
    student_distance: Float[Array, ""]
    teacher_distance: Float[Array, ""]
    expert: Bool[Array, ""]


def distance(
    p: Float[Array, "batch classes"], q: Float[Array, "batch classes"], mean: Mean = jnp.mean
) -> Float[Array, ""]:
    """Computes the mean over the batch of the L1 distance of two distributions, between 0 and 2.

    >>> float(distance(jnp.asarray([[0.5, 0.5]]), jnp.asarray([[1.0, 0.0]])))
    1.0
    """
    return mean(jnp.sum(jnp.abs(p - q), axis=-1))


def adaptive_epsilon(student_distance: Float[Array, ""], teacher_distance: Float[Array, ""]) -> Float[Array, ""]:
    """Computes exp(-d_t / (d_s + d_t)), between 1/e and 1; the ratio is 1/2 where both distances are 0."""
    total = student_distance + teacher_distance
    ratio = jnp.where(total > 0, teacher_distance / jnp.where(total > 0, total, 1.0), 0.5)
    return jnp.exp(-ratio)


def switch(
    student_logits: Float[Array | np.ndarray, "batch classes"],
    teacher_logits: Float[Array | np.ndarray, "batch classes"],
    labels: Labels,
    *,
    temperature: float = 1.0,
    mean: Mean = jnp.mean,
    epsilon: float | Epsilon | None = None,
    threshold: float | None = None,
    require_better_teacher: bool = True,
) -> Switch:
    """Decides between learning mode and expert mode for one teacher-student pair.

    Args:
      student_logits: [batch, classes] of any float dtype; computed in float32 at least.
      teacher_logits: [batch, classes], likewise.
      labels: [batch] integer classes, or [batch, classes] probabilities, which then stand for onehot(y).
      temperature: tau of the softmax, above 0.
      mean: maps [batch] to the scalar mean over the GLOBAL batch. If the batch is split over devices, it has to
        average over all of them; otherwise replicas would decide differently.
      epsilon: fixed coefficient in place of the adaptive one (ablation; 1 gives the lower bound of the threshold, 0
        the upper bound), or another function of both distances.
      threshold: fixed delta in place of the adaptive one (ablation).
      require_better_teacher: whether expert mode needs d_t < d_s, as in the code but not in the paper's text.

    Returns:
      A `Switch` of scalars. Its `expert` is True if the teacher is paused in this step.

    The gap exceeds the threshold and the teacher is closer to the label, so the teacher is paused:

    >>> student = jnp.log(jnp.asarray([[0.2, 0.7, 0.1]]))
    >>> teacher = jnp.log(jnp.asarray([[0.6, 0.1, 0.3]]))
    >>> decision = switch(student, teacher, labels=jnp.asarray([0]))
    >>> print(f"gap {decision.gap:.2f}, threshold {decision.threshold:.2f}, expert {decision.expert}")
    gap 1.20, threshold 1.03, expert True
    """
    student, teacher = (promote_to_float32(jax.lax.stop_gradient(z)) for z in (student_logits, teacher_logits))
    p_student = jax.nn.softmax(student / temperature)
    p_teacher = jax.nn.softmax(teacher / temperature)
    p_labels = class_probabilities(labels, student.shape[-1], student.dtype)
    d_student = distance(p_student, p_labels, mean)
    d_teacher = distance(p_teacher, p_labels, mean)
    gap = distance(p_student, p_teacher, mean)
    epsilon = adaptive_epsilon if epsilon is None else epsilon
    coefficient = epsilon(d_student, d_teacher) if callable(epsilon) else jnp.full_like(gap, epsilon)
    delta = d_student - coefficient * d_teacher if threshold is None else jnp.full_like(gap, threshold)
    expert = gap > delta
    if require_better_teacher:
        expert = expert & (d_teacher < d_student)
    return Switch(gap, delta, coefficient, d_student, d_teacher, expert)
