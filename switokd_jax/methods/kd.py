"""Offline knowledge distillation: students learn from frozen teachers.

Source: Hinton et al., "Distilling the Knowledge in a Neural Network", 2015 (arXiv 1503.02531).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

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


def weighted_losses(
    inputs: MethodInputs, topology: Topology, cross_entropy_weight: float, kd_weight: float, temperature: float
) -> tuple[dict[str, jax.Array], list[tuple[str, jax.Array]]]:
    """Weights the cross-entropy, and adds plain KD beside another distillation term.

    As the options -r and -a of RepDistiller's train_student.py do, whose own term has -b.

    Args:
      inputs: of the method.
      topology: likewise.
      cross_entropy_weight: of the networks that learn from a frozen one.
      kd_weight: of T^2 KL(p_j || p_i); 0 leaves the term out.
      temperature: T of that term.

    Returns:
      The task losses by network, and the KD terms for `add_distillation`.
    """
    edges = topology.edges_from(inputs.frozen)
    learners = {edge.learner for edge in edges}
    task_losses = {
        node: cross_entropy_weight * ce if node in learners else ce for node, ce in inputs.cross_entropy.items()
    }
    terms = [
        (edge.learner, kd_weight * soft_target_loss(edge, inputs.logits, temperature)) for edge in edges if kd_weight
    ]
    return task_losses, terms


def soft_target_loss(edge: Edge, logits: Mapping[str, jax.Array], temperature: float) -> jax.Array:
    """Computes weight * T^2 KL(p_source || p_learner), a scalar, for the softened distributions of an edge."""
    divergence = kl_divergence(logits[edge.source], logits[edge.learner], temperature)
    return edge.weight * temperature**2 * jnp.mean(divergence)


def kd(inputs: MethodInputs, labels: jax.Array, topology: Topology, hyperparameters: Hyperparameters) -> MethodOutput:
    """Computes L_i = (1 - w) CE(z_i, y) + w * sum over edges from frozen j of weight * T^2 KL(p_j || p_i)."""
    del labels
    t, w = hyperparameters.temperature, hyperparameters.weight

    task_losses = {node: (1.0 - w) * ce for node, ce in inputs.cross_entropy.items()}
    edges = topology.edges_from(inputs.frozen)
    return add_distillation(
        task_losses, [(edge.learner, w * soft_target_loss(edge, inputs.logits, t)) for edge in edges]
    )
