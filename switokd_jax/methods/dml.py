"""Deep Mutual Learning: every network learns from every other.

Source: Zhang et al., "Deep Mutual Learning", CVPR 2018 (arXiv 1706.00384), equations 6 and 9, with all
networks updated from the same forward pass.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from switokd_jax import config_fields
from switokd_jax.losses import kl_divergence
from switokd_jax.methods.base import MethodInputs, MethodOutput
from switokd_jax.topology import Topology


@dataclasses.dataclass(frozen=True)
class Hyperparameters:
    """Attributes:

    temperature: tau of the softened distributions, above 0.
    """

    temperature: float = config_fields.number(1.0, above=0.0)


def dml(outputs: MethodInputs, labels: jax.Array, topology: Topology, hyperparameters: Hyperparameters) -> MethodOutput:
    """L_i = CE(z_i, y) + tau^2 / (N - 1) * sum over j != i of KL(sg p_j || p_i)."""
    del labels
    tau = hyperparameters.temperature
    losses = dict(outputs.cross_entropy)
    for learner in topology.nodes:
        for source in topology.nodes:
            if source != learner:
                term = jnp.mean(kl_divergence(outputs.logits[source], outputs.logits[learner], tau))
                losses[learner] += tau**2 / (len(topology.nodes) - 1) * term
    return MethodOutput(losses)
