"""UniOKD: successor of SwitOKD with another threshold, a temperature per mode and less weight on a teacher's errors.

Source: the public code of the SwitOKD authors (hfutqian/UniOKD, its training script) for a pair. Its decision is
that of SwitOKD with epsilon = exp(-(2 - d_t) d_t / (d_s + d_t)). On stars and chains each pair decides for itself,
as in `switokd`; edges that belong to no pair are weighted as in learning mode.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from switokd_jax import config_fields
from switokd_jax.losses import kl_divergence
from switokd_jax.methods.base import MethodInputs, MethodOutput, add_distillation
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
    mode: 'switch', or 'learning' or 'expert' to force that mode in every step.
    """

    expert_temperature: float = config_fields.number(4.0, above=0.0)
    learning_temperature: float = config_fields.number(2.0, above=0.0)
    alpha: float = config_fields.number(2.0, low=0.0)
    beta: float = config_fields.number(1.0, low=0.0)
    mode: str = config_fields.choice("switch", "switch", "learning", "expert")


def epsilon(student_distance: Float[Array, ""], teacher_distance: Float[Array, ""]) -> Float[Array, ""]:
    """Computes exp(-(2 - d_t) d_t / (d_s + d_t)): the epsilon of SwitOKD to the power of 2 - d_t."""
    return adaptive_epsilon(student_distance, teacher_distance) ** (2.0 - teacher_distance)


def uniokd(
    inputs: MethodInputs, labels: jax.Array, topology: Topology, hyperparameters: Hyperparameters
) -> MethodOutput:
    """Computes L_i = CE(z_i, y) + sum over edges into i of weight * tau^2 * mean of m * KL(sg p_j || p_i).

    In learning mode, tau = 2 and m = 1 on both edges of the pair. In expert mode, the teacher's edge contributes
    nothing, and on the student's edge tau = 4, with m = 1 if the teacher is right and m = d_t / 2 if it is wrong.
    """
    h = hyperparameters

    def decide(student: jax.Array, teacher: jax.Array) -> Switch:
        return switch(student, teacher, labels, epsilon=epsilon)

    def divergence_term(edge: Edge, tau: float, weights: jax.Array | float = 1.0) -> jax.Array:
        divergence = kl_divergence(inputs.logits[edge.source], inputs.logits[edge.learner], tau)
        return edge.weight * tau**2 * jnp.mean(weights * divergence)

    switches = decide_modes(inputs, topology, decide, h.mode)

    def term(edge: Edge) -> jax.Array:
        learning_term = divergence_term(edge, h.learning_temperature)
        if edge.gate:
            return jnp.where(switches[edge.gate].expert, 0.0, learning_term)
        decision = switches.get((edge.source, edge.learner))
        if decision is None:
            return learning_term
        correct = top_k_correct(inputs.logits[edge.source], labels)
        weights = correct + (1.0 - correct) * decision.teacher_distance / 2.0
        return jnp.where(decision.expert, divergence_term(edge, h.expert_temperature, weights), learning_term)

    return add_distillation(
        inputs.cross_entropy,
        [(edge.learner, term(edge)) for edge in topology.edges],
        should_update=update_mask(topology, switches),
        switches=switches,
    )
