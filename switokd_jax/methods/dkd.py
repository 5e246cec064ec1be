"""Decoupled knowledge distillation: separate weights for the target class and for the other classes.

Source: Zhao et al., "Decoupled Knowledge Distillation", CVPR 2022 (arXiv 2203.08679), equations 5 to 8.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from switokd_jax import config_fields
from switokd_jax.losses import hard_labels, kl_divergence
from switokd_jax.methods.base import MethodInputs, MethodOutput, add_distillation
from switokd_jax.precision import promote_to_float32
from switokd_jax.topology import Edge, Topology

# Added to the true class's softened logit, it removes that class from the softmax (value of the public code).
MASK = -1000.0


@dataclasses.dataclass(frozen=True)
class Hyperparameters:
    """Attributes:

    temperature: T of the softened distributions, above 0.
    target: a, weight of the target class's part (TCKD).
    others: b, weight of the other classes' part (NCKD).
    warmup_epochs: epochs over which the distillation term grows linearly to its full weight; 0 for none.
    """

    temperature: float = config_fields.number(4.0, above=0.0)
    target: float = config_fields.number(1.0, low=0.0)
    others: float = config_fields.number(8.0, low=0.0)
    warmup_epochs: float = config_fields.number(20.0, low=0.0)


def dkd(inputs: MethodInputs, labels: jax.Array, topology: Topology, hyperparameters: Hyperparameters) -> MethodOutput:
    """Computes L_i = CE(z_i, y) + warmup * sum over edges from frozen j of weight T^2 (a TCKD + b NCKD).

    warmup = min(epoch / warmup_epochs, 1). The target of a mixed image is its likeliest class.
    """
    h, labels = hyperparameters, hard_labels(labels)
    warmup = jnp.minimum(inputs.epoch / h.warmup_epochs, 1.0) if h.warmup_epochs else 1.0

    def term(edge: Edge) -> jax.Array:
        parts = decoupled(inputs.logits[edge.source], inputs.logits[edge.learner], labels, h.temperature)
        target, others = (jnp.mean(part) for part in parts)
        return warmup * edge.weight * h.temperature**2 * (h.target * target + h.others * others)

    edges = topology.edges_from(inputs.frozen)
    return add_distillation(inputs.cross_entropy, [(edge.learner, term(edge)) for edge in edges])


def decoupled(
    teacher_logits: Float[Array, "batch classes"],
    logits: Float[Array, "batch classes"],
    labels: Int[Array, " batch"],
    temperature: float,
) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
    """Computes TCKD and NCKD per example, not multiplied by T^2.

    TCKD is the KL divergence of the two-class distributions (target, all others); NCKD is that among the others.
    """
    truth = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)

    def two_classes(z: jax.Array) -> jax.Array:
        log_p = jax.nn.log_softmax(promote_to_float32(z) / temperature)
        target = jnp.sum(jnp.where(truth, log_p, 0.0), axis=-1)
        return jnp.stack([target, jax.nn.logsumexp(jnp.where(truth, -jnp.inf, log_p), axis=-1)], axis=-1)

    def others(z: jax.Array) -> jax.Array:
        return promote_to_float32(z) / temperature + jnp.where(truth, MASK, 0.0)

    return (
        kl_divergence(two_classes(teacher_logits), two_classes(logits)),
        kl_divergence(others(teacher_logits), others(logits)),
    )
