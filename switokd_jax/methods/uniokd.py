"""UniOKD: the follow-up of SwitOKD by its authors, with another threshold, a temperature for each mode, and
a teacher that counts less where it is wrong.

Source: the public UniOKD code (hfutqian/UniOKD, its training script) for a pair. Its decision is SwitOKD's
with epsilon = exp(-(2 - d_t) d_t / (d_s + d_t)). On stars and chains each pair decides for itself, as in
`switokd`; edges that belong to no pair weigh as in learning mode.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from switokd_jax import config_fields
from switokd_jax.losses import kl_divergence
from switokd_jax.methods.base import MethodInputs, MethodOutput
from switokd_jax.methods.gating import decide_modes, update_mask
from switokd_jax.metrics import top_k_correct
from switokd_jax.switching import Switch, adaptive_epsilon, switch
from switokd_jax.topology import Edge, Topology


@dataclasses.dataclass(frozen=True)
class Hyperparameters:
    """Attributes:

    expert_temperature: tau of the student's term in expert mode.
    learning_temperature: tau of both terms in learning mode.
    alpha: weight of a student's term, put on the edges by the topology builders.
    beta: weight of a teacher's term, likewise.
    mode: 'switch', or 'learning' or 'expert' in every step.
    """

    expert_temperature: float = config_fields.number(4.0, above=0.0)
    learning_temperature: float = config_fields.number(2.0, above=0.0)
    alpha: float = config_fields.number(2.0, low=0.0)
    beta: float = config_fields.number(1.0, low=0.0)
    mode: str = config_fields.choice("switch", "switch", "learning", "expert")


def epsilon(student_distance: jax.Array, teacher_distance: jax.Array) -> jax.Array:
    """exp(-(2 - d_t) d_t / (d_s + d_t)): SwitOKD's to the power of what the teacher already knows."""
    return adaptive_epsilon(student_distance, teacher_distance) ** (2.0 - teacher_distance)


def uniokd(
    outputs: MethodInputs, labels: jax.Array, topology: Topology, hyperparameters: Hyperparameters
) -> MethodOutput:
    """L_i = CE(z_i, y) + sum over edges into i of weight * tau^2 * mean of m * KL(sg p_j || p_i).

    Learning mode: tau = 2 and m = 1 on both edges of the pair. Expert mode: the teacher's edge is silent, and on
    the student's tau = 4 and m = 1 where the teacher is right, d_t / 2 where it is wrong.
    """
    h = hyperparameters

    def decide(student: jax.Array, teacher: jax.Array) -> Switch:
        return switch(student, teacher, labels, epsilon=epsilon)

    def term(edge: Edge, tau: float, weights: jax.Array | float = 1.0) -> jax.Array:
        divergence = kl_divergence(outputs.logits[edge.source], outputs.logits[edge.learner], tau)
        return edge.weight * tau**2 * jnp.mean(weights * divergence)

    switches = decide_modes(outputs, topology, decide, h.mode)
    losses = dict(outputs.cross_entropy)
    for edge in topology.edges:
        added = term(edge, h.learning_temperature)
        if edge.gate:
            added = jnp.where(switches[edge.gate].expert, 0.0, added)
        elif decision := switches.get((edge.source, edge.learner)):
            right = top_k_correct(outputs.logits[edge.source], labels)
            masked = term(edge, h.expert_temperature, right + (1.0 - right) * decision.teacher_distance / 2.0)
            added = jnp.where(decision.expert, masked, added)
        losses[edge.learner] += added
    return MethodOutput(losses, update_mask(topology, switches), switches)
