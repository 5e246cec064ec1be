"""DIST: a student matches the correlations of its teacher's predictions instead of their values.

Source: Huang et al., "Knowledge Distillation from A Stronger Teacher", NeurIPS 2022 (arXiv 2205.10536),
equations 8 to 10. The relation within a class runs over the whole global batch.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from switokd_jax import config_fields
from switokd_jax.methods.base import MethodInputs, MethodOutput, add_distillation
from switokd_jax.precision import promote_to_float32
from switokd_jax.topology import Edge, Topology

EPS = 1e-8  # as in the public code; keeps the correlation of a constant row finite


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


def dist(inputs: MethodInputs, labels: jax.Array, topology: Topology, hyperparameters: Hyperparameters) -> MethodOutput:
    """Computes L_i = CE + sum over edges from frozen j of weight T^2 [b (1 - rows) + w (1 - columns)].

    rows and columns are the mean Pearson correlations of the rows and of the columns of softmax(z_i / T) and
    softmax(z_j / T), [batch, classes]; b and w are the hyperparameters `between` and `within`.
    """
    del labels
    h = hyperparameters

    def term(edge: Edge) -> jax.Array:
        p, q = (
            jax.nn.softmax(promote_to_float32(z) / h.temperature)
            for z in (jax.lax.stop_gradient(inputs.logits[edge.source]), inputs.logits[edge.learner])
        )
        between, within = 1.0 - jnp.mean(pearson(p, q)), 1.0 - jnp.mean(pearson(p.T, q.T))
        return edge.weight * h.temperature**2 * (h.between * between + h.within * within)

    edges = topology.edges_from(inputs.frozen)
    return add_distillation(inputs.cross_entropy, [(edge.learner, term(edge)) for edge in edges])


def pearson(a: Float[Array, "rows columns"], b: Float[Array, "rows columns"]) -> Float[Array, " rows"]:
    """Returns the Pearson correlation of each row of `a` with the same row of `b`."""
    a, b = (x - jnp.mean(x, axis=-1, keepdims=True) for x in (a, b))
    # The square root has no finite derivative at a variance of 0, so the variance is bounded below.
    norm_a, norm_b = (jnp.sqrt(jnp.maximum(jnp.sum(x**2, axis=-1), jnp.finfo(x.dtype).tiny)) for x in (a, b))
    return jnp.sum(a * b, axis=-1) / (norm_a * norm_b + EPS)
