"""Offline knowledge distillation: students learn from frozen teachers.

Source: Hinton et al., "Distilling the Knowledge in a Neural Network", 2015 (arXiv 1503.02531).
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from switokd_jax import config_fields
from switokd_jax.losses import kl_divergence
from switokd_jax.methods.base import MethodInputs, MethodOutput, add_distillation
from switokd_jax.topology import Edge, Topology


@dataclasses.dataclass(frozen=True)
class Hyperparameters:
    """Attributes:

    temperature: T of the softened distributions, above 0 (4; 1 on ImageNet).
    weight: w of the distillation term (0.9; 0.5 on ImageNet).
    """

    temperature: float = config_fields.number(4.0, above=0.0)
    weight: float = config_fields.number(0.9, low=0.0, high=1.0)


def kd(inputs: MethodInputs, labels: jax.Array, topology: Topology, hyperparameters: Hyperparameters) -> MethodOutput:
    """Computes L_i = (1 - w) CE(z_i, y) + w * sum over edges from frozen j of weight * T^2 KL(p_j || p_i)."""
    del labels
    t, w = hyperparameters.temperature, hyperparameters.weight

    def term(edge: Edge) -> jax.Array:
        divergence = kl_divergence(inputs.logits[edge.source], inputs.logits[edge.learner], t)
        return w * edge.weight * t**2 * jnp.mean(divergence)

    task_losses = {node: (1.0 - w) * ce for node, ce in inputs.cross_entropy.items()}
    edges = topology.edges_from(inputs.frozen)
    return add_distillation(task_losses, [(edge.learner, term(edge)) for edge in edges])
