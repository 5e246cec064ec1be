"""Switchable Online Knowledge Distillation on any topology.

Source: Qian et al., ECCV 2022 (arXiv 2209.04996), equations 1 to 8 and the public code. Each gated pair
decides with its own distances (the public multi-network scripts reuse the first pair's: a slip).
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from switokd_jax import config_fields
from switokd_jax.losses import kl_divergence
from switokd_jax.methods.base import MethodInputs, MethodOutput
from switokd_jax.methods.gating import decide_modes, update_mask
from switokd_jax.switching import Switch, switch
from switokd_jax.topology import Topology


@dataclasses.dataclass(frozen=True)
class Hyperparameters:
    """Attributes:

    temperature: tau of the softened distributions, above 0.
    alpha: weight of a student's distillation term, put on the edges by the topology builders.
    beta: weight of a teacher's distillation term, likewise.
    epsilon: 'adaptive' or a number in [0, 1]: 1 gives the threshold's lower bound, 0 its upper.
    threshold: 'adaptive' or a number in place of delta.
    mode: 'switch', or 'learning' or 'expert' in every step.
    paused_batch_stats: whether a paused network's BatchNorm running statistics move ('update', as in
      the public code, whose forward pass runs in train mode) or not ('freeze').
    """

    temperature: float = config_fields.number(1.0, above=0.0)
    alpha: float = config_fields.number(1.0, low=0.0)
    beta: float = config_fields.number(1.0, low=0.0)
    epsilon: float | None = config_fields.adaptive(low=0.0, high=1.0)
    threshold: float | None = config_fields.adaptive()
    mode: str = config_fields.choice("switch", "switch", "learning", "expert")
    paused_batch_stats: str = config_fields.choice("update", "update", "freeze")


def switokd(
    outputs: MethodInputs, labels: jax.Array, topology: Topology, hyperparameters: Hyperparameters
) -> MethodOutput:
    """L_i = CE(z_i, y) + sum over edges into i of weight * tau^2 * KL(sg p_j || p_i) * [its gate learns].

    The teacher of gated pairs takes its step while at least one of them is in learning mode; every other
    network, and a relay node, takes every step.
    """
    h, tau = hyperparameters, hyperparameters.temperature

    def decide(student: jax.Array, teacher: jax.Array) -> Switch:
        return switch(student, teacher, labels, temperature=tau, epsilon=h.epsilon, threshold=h.threshold)

    switches = decide_modes(outputs, topology, decide, h.mode)
    losses = dict(outputs.cross_entropy)
    for edge in topology.edges:
        divergence = kl_divergence(outputs.logits[edge.source], outputs.logits[edge.learner], tau)
        term = edge.weight * tau**2 * jnp.mean(divergence)
        losses[edge.learner] += term if edge.gate is None else jnp.where(switches[edge.gate].expert, 0.0, term)
    freeze = h.paused_batch_stats == "freeze"
    return MethodOutput(losses, update_mask(topology, switches), switches, freeze_paused_stats=freeze)
