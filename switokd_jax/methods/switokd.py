"""Switchable Online Knowledge Distillation on any topology.

Source: Qian et al., ECCV 2022 (arXiv 2209.04996), equations 1 to 8 and the public code. Each gated pair
decides with its own distances (the public multi-network scripts reuse the first pair's, by mistake).
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from switokd_jax import config_fields
from switokd_jax.losses import kl_divergence
from switokd_jax.methods.base import MethodInputs, MethodOutput, add_distillation
from switokd_jax.methods.gating import decide_modes, update_mask
from switokd_jax.switching import Switch, switch
from switokd_jax.topology import Edge, Topology


@dataclasses.dataclass(frozen=True)
class Hyperparameters:
    """Attributes:

    temperature: tau of the softened distributions, above 0.
    alpha: weight of a student's distillation term, put on the edges by the topology builders.
    beta: weight of a teacher's distillation term, likewise.
    epsilon: 'adaptive' or a number in [0, 1]; 1 gives the threshold's lower bound, 0 its upper bound.
    threshold: 'adaptive' or a fixed number in place of delta.
    require_better_teacher: whether a teacher that is further from the labels than its student goes on learning, as in
      the public code. With False the gap alone decides, as in the paper's text.
    mode: 'switch', or 'learning' or 'expert' to force that mode in every step.
    paused_batch_stats: 'update' or 'freeze' the BatchNorm running statistics of a paused network. The public code
      updates them: its forward pass runs in train mode.
    """

    temperature: float = config_fields.number(1.0, above=0.0)
    alpha: float = config_fields.number(1.0, low=0.0)
    beta: float = config_fields.number(1.0, low=0.0)
    epsilon: float | None = config_fields.adaptive(low=0.0, high=1.0)
    threshold: float | None = config_fields.adaptive()
    require_better_teacher: bool = config_fields.boolean(True)
    mode: str = config_fields.choice("switch", "switch", "learning", "expert")
    paused_batch_stats: str = config_fields.choice("update", "update", "freeze")


def switokd(
    inputs: MethodInputs, labels: jax.Array, topology: Topology, hyperparameters: Hyperparameters
) -> MethodOutput:
    """Computes L_i = CE(z_i, y) + sum over edges into i of weight * tau^2 * KL(sg p_j || p_i) * [in learning mode].

    The last factor is 1 for edges without a gate.

    A teacher is updated if at least one of its gated pairs is in learning mode. Relay nodes and networks that teach
    in no gated pair are updated in every step.
    """
    h, tau = hyperparameters, hyperparameters.temperature

    def decide(student: jax.Array, teacher: jax.Array) -> Switch:
        return switch(
            student,
            teacher,
            labels,
            temperature=tau,
            epsilon=h.epsilon,
            threshold=h.threshold,
            require_better_teacher=h.require_better_teacher,
        )

    switches = decide_modes(inputs, topology, decide, h.mode)

    def term(edge: Edge) -> jax.Array:
        divergence = kl_divergence(inputs.logits[edge.source], inputs.logits[edge.learner], tau)
        weighted = edge.weight * tau**2 * jnp.mean(divergence)
        return weighted if edge.gate is None else jnp.where(switches[edge.gate].expert, 0.0, weighted)

    return add_distillation(
        inputs.cross_entropy,
        [(edge.learner, term(edge)) for edge in topology.edges],
        should_update=update_mask(topology, switches),
        switches=switches,
        freeze_paused_stats=h.paused_batch_stats == "freeze",
    )
