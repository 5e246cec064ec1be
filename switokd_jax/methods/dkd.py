"""Decoupled knowledge distillation: the target class and the other classes weigh apart.

Source: Zhao et al., "Decoupled Knowledge Distillation", CVPR 2022 (arXiv 2203.08679), equations 5 to 8.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from switokd_jax import config_fields
from switokd_jax.losses import kl_divergence
from switokd_jax.methods.base import MethodInputs, MethodOutput
from switokd_jax.precision import promote_to_float32
from switokd_jax.topology import Topology

# Added to the true class's softened logit, it takes that class out of the softmax (the public code's figure).
MASK = -1000.0


@dataclasses.dataclass(frozen=True)
class Hyperparameters:
    """Attributes:

    temperature: T of the softened distributions, above 0.
    target: a, weight of the target class's part (TCKD).
    others: b, weight of the other classes' part (NCKD).
    warmup_epochs: the distillation term grows linearly over them; 0 starts at once.
    """

    temperature: float = config_fields.number(4.0, above=0.0)
    target: float = config_fields.number(1.0, low=0.0)
    others: float = config_fields.number(8.0, low=0.0)
    warmup_epochs: float = config_fields.number(20.0, low=0.0)


def dkd(outputs: MethodInputs, labels: jax.Array, topology: Topology, hyperparameters: Hyperparameters) -> MethodOutput:
    """L_i = CE(z_i, y) + min(epoch / warm-up, 1) * sum over edges from frozen j of weight T^2 (a TCKD + b NCKD)."""
    h = hyperparameters
    grown = jnp.minimum(outputs.epoch / h.warmup_epochs, 1.0) if h.warmup_epochs else 1.0
    losses = dict(outputs.cross_entropy)
    for edge in topology.edges_from(outputs.frozen):
        parts = decoupled(outputs.logits[edge.source], outputs.logits[edge.learner], labels, h.temperature)
        target, others = (jnp.mean(part) for part in parts)
        losses[edge.learner] += grown * edge.weight * h.temperature**2 * (h.target * target + h.others * others)
    return MethodOutput(losses)


def decoupled(
    teacher_logits: jax.Array, logits: jax.Array, labels: jax.Array, temperature: float
) -> tuple[jax.Array, jax.Array]:
    """TCKD and NCKD of logits [batch, c] per example, [batch] each, not multiplied by T^2.

    TCKD is KL of (target, all others) as two classes, NCKD is KL among the others.
    """
    truth = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)

    def two_classes(z: jax.Array) -> jax.Array:
        log_p = jax.nn.log_softmax(promote_to_float32(z) / temperature)
        ours = jnp.sum(jnp.where(truth, log_p, 0.0), axis=-1)
        return jnp.stack([ours, jax.nn.logsumexp(jnp.where(truth, -jnp.inf, log_p), axis=-1)], axis=-1)

    def others(z: jax.Array) -> jax.Array:
        return promote_to_float32(z) / temperature + jnp.where(truth, MASK, 0.0)

    return (
        kl_divergence(two_classes(teacher_logits), two_classes(logits)),
        kl_divergence(others(teacher_logits), others(logits)),
    )
