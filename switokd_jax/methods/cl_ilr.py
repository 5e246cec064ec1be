"""CL-ILR: collaborative learning, where every branch learns from the mean logits of the others.

Source: Song and Chai, "Collaborative Learning for Deep Neural Networks", NeurIPS 2018 (arXiv 1805.11761), equations 2
to 4. Its "intermediate-level representation sharing" is a network with branches whose trunk gets the mean of their
gradients: config.networks.NAME.branches and trunk_gradient = 'mean'.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from switokd_jax import config_fields
from switokd_jax.losses import mean_kl_divergence
from switokd_jax.methods.base import MethodInputs, MethodOutput, add_distillation, rampup_weight, stack_logits
from switokd_jax.topology import Topology


@dataclasses.dataclass(frozen=True)
class Hyperparameters:
    """Attributes:

    temperature: T of the softened distributions, above 0.
    beta: weight of the labels; the other networks have 1 - beta.
    rampup_epochs: epochs until the others have their full weight; 0 for none, as in the paper.
    """

    temperature: float = config_fields.number(2.0, above=0.0)
    beta: float = config_fields.number(0.5, low=0.0, high=1.0)
    rampup_epochs: float = config_fields.number(0.0, low=0.0)


def cl_ilr(
    inputs: MethodInputs, labels: jax.Array, topology: Topology, hyperparameters: Hyperparameters
) -> MethodOutput:
    """Computes L_i = beta CE(z_i, y) + (1 - beta) w T^2 KL(sg softmax(m_i / T) || softmax(z_i / T)).

    m_i: mean logits of the networks other than i.
    w: `rampup_weight` of the epoch.
    """
    del labels
    h, z = hyperparameters, stack_logits(inputs, topology.nodes)
    others = (jnp.sum(z, axis=0) - z) / (len(z) - 1)
    weight = (1.0 - h.beta) * rampup_weight(inputs.epoch, h.rampup_epochs)
    terms = [
        (node, weight * mean_kl_divergence(target, inputs.logits[node], h.temperature))
        for node, target in zip(topology.nodes, others, strict=True)
    ]
    return add_distillation({node: h.beta * loss for node, loss in inputs.cross_entropy.items()}, terms)
