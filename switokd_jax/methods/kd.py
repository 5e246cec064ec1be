"""Offline knowledge distillation: students learn from frozen teachers.

Source: Hinton et al., "Distilling the Knowledge in a Neural Network", 2015 (arXiv 1503.02531).
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

    temperature: T of the softened distributions, above 0 (4; 1 on ImageNet).
    weight: w of the distillation term (0.9; 0.5 on ImageNet).
    """

    temperature: float = config_fields.number(4.0, above=0.0)
    weight: float = config_fields.number(0.9, low=0.0, high=1.0)


def kd(outputs: MethodInputs, labels: jax.Array, topology: Topology, hyperparameters: Hyperparameters) -> MethodOutput:
    """L_i = (1 - w) CE(z_i, y) + w * sum over edges from frozen j of weight * T^2 KL(p_j || p_i)."""
    del labels
    t, w = hyperparameters.temperature, hyperparameters.weight
    losses = {node: (1.0 - w) * ce for node, ce in outputs.cross_entropy.items()}
    for edge in topology.edges_from(outputs.frozen):
        divergence = kl_divergence(outputs.logits[edge.source], outputs.logits[edge.learner], t)
        losses[edge.learner] += w * edge.weight * t**2 * jnp.mean(divergence)
    return MethodOutput(losses)
