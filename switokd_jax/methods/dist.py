"""DIST: a student keeps the relations of its teacher's predictions, not their values.

Source: Huang et al., "Knowledge Distillation from A Stronger Teacher", NeurIPS 2022 (arXiv 2205.10536),
equations 8 to 10. The relation within a class runs over the whole global batch.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from switokd_jax import config_fields
from switokd_jax.methods.base import MethodInputs, MethodOutput
from switokd_jax.precision import promote_to_float32
from switokd_jax.topology import Topology

TINY = 1e-8  # of the public code, against a row without variance


@dataclasses.dataclass(frozen=True)
class Hyperparameters:
    """Attributes:

    temperature: T of the softened distributions, above 0 (4; 1 on ImageNet).
    between: weight of the relation between the classes of an example.
    within: weight of the relation between the examples of a class.
    """

    temperature: float = config_fields.number(4.0, above=0.0)
    between: float = config_fields.number(2.0, low=0.0)
    within: float = config_fields.number(2.0, low=0.0)


def dist(
    outputs: MethodInputs, labels: jax.Array, topology: Topology, hyperparameters: Hyperparameters
) -> MethodOutput:
    """L_i = CE + sum over edges from frozen j of weight T^2 [2 (1 - mean row Pearson) + 2 (1 - mean column Pearson)].

    Both Pearson correlations are of softmax(z_i / T) and softmax(z_j / T), [batch, classes].
    """
    del labels
    h = hyperparameters
    losses = dict(outputs.cross_entropy)
    for edge in topology.edges_from(outputs.frozen):
        p, q = (
            jax.nn.softmax(promote_to_float32(z) / h.temperature)
            for z in (jax.lax.stop_gradient(outputs.logits[edge.source]), outputs.logits[edge.learner])
        )
        between, within = 1.0 - jnp.mean(pearson(p, q)), 1.0 - jnp.mean(pearson(p.T, q.T))
        losses[edge.learner] += edge.weight * h.temperature**2 * (h.between * between + h.within * within)
    return MethodOutput(losses)


def pearson(a: jax.Array, b: jax.Array) -> jax.Array:
    """Pearson's correlation of each row of [n, m] with its counterpart, [n]."""
    a, b = (x - jnp.mean(x, axis=-1, keepdims=True) for x in (a, b))
    # The root of a variance of zero has no derivative: bounded below, it has none that matters.
    norm_a, norm_b = (jnp.sqrt(jnp.maximum(jnp.sum(x**2, axis=-1), jnp.finfo(x.dtype).tiny)) for x in (a, b))
    return jnp.sum(a * b, axis=-1) / (norm_a * norm_b + TINY)
