"""Modes of the gated pairs, shared by the switching methods, and the networks that are updated in them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from switokd_jax.methods.base import MethodInputs
from switokd_jax.switching import Switch
from switokd_jax.topology import Pair, Topology

# (student logits, teacher logits) to the decision.
Decide = Callable[[jax.Array, jax.Array], Switch]


def decide_modes(inputs: MethodInputs, topology: Topology, decide: Decide, mode: str) -> dict[Pair, Switch]:
    """Computes the switch of each gated pair from that pair's own logits.

    Args:
      inputs: logits by network.
      topology: its gated pairs.
      decide: the method's decision for one pair.
      mode: 'switch', or 'learning' or 'expert' to force that mode in every step.
    """

    def decide_pair(pair: Pair) -> Switch:
        teacher, student = pair
        decision = decide(inputs.logits[student], inputs.logits[teacher])
        if mode == "switch":
            return decision
        return decision._replace(expert=jnp.full_like(decision.expert, mode == "expert"))

    return {pair: decide_pair(pair) for pair in topology.pairs}


def update_mask(topology: Topology, switches: Mapping[Pair, Switch]) -> dict[str, Bool[Array, ""]]:
    """Returns for each network that can be paused whether it is updated: at least one of its pairs is in learning mode.

    Relay nodes and networks that teach in no gated pair are always updated and have no entry.
    """
    teachers = {teacher for teacher, _ in topology.pairs} - topology.relay
    return {
        node: functools.reduce(jnp.logical_or, (~switches[pair].expert for pair in topology.pairs if pair[0] == node))
        for node in topology.nodes
        if node in teachers
    }
