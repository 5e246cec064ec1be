"""Deep Mutual Learning: every network learns from every other.

Source: Zhang et al., "Deep Mutual Learning", CVPR 2018 (arXiv 1706.00384), equations 6 and 9, except that all
networks are updated from the same forward pass.
"""

from __future__ import annotations

import dataclasses
import itertools

import jax
import jax.numpy as jnp

from switokd_jax import config_fields
from switokd_jax.losses import kl_divergence
from switokd_jax.methods.base import MethodInputs, MethodOutput, add_distillation
from switokd_jax.topology import Topology


@dataclasses.dataclass(frozen=True)
class Hyperparameters:
    """Attributes:

    temperature: tau of the softened distributions, above 0.
    """

    temperature: float = config_fields.number(1.0, above=0.0)


def dml(inputs: MethodInputs, labels: jax.Array, topology: Topology, hyperparameters: Hyperparameters) -> MethodOutput:
    """Computes L_i = CE(z_i, y) + tau^2 / (N - 1) * sum over j != i of KL(sg p_j || p_i)."""
    del labels
    tau = hyperparameters.temperature

    def term(learner: str, source: str) -> jax.Array:
        divergence = kl_divergence(inputs.logits[source], inputs.logits[learner], tau)
        return tau**2 / (len(topology.nodes) - 1) * jnp.mean(divergence)

    pairs = itertools.permutations(topology.nodes, 2)
    return add_distillation(inputs.cross_entropy, [(learner, term(learner, source)) for learner, source in pairs])
