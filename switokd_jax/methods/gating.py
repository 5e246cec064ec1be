"""What the switching methods share: the mode of every gated pair, and who takes a step in it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from switokd_jax.methods.base import MethodInputs
from switokd_jax.switching import Switch
from switokd_jax.topology import Pair, Topology

# (student logits, teacher logits) to the decision.
Decide = Callable[[jax.Array, jax.Array], Switch]


def decide_modes(outputs: MethodInputs, topology: Topology, decide: Decide, mode: str) -> dict[Pair, Switch]:
    """The switch of each gated pair, from that pair's own logits.

    Args:
      outputs: logits by network.
      topology: names the pairs.
      decide: the method's decision for one pair.
      mode: 'switch', or 'learning' or 'expert' to force that mode in every step.
    """

    def of(pair: Pair) -> Switch:
        teacher, student = pair
        decision = decide(outputs.logits[student], outputs.logits[teacher])
        if mode == "switch":
            return decision
        return decision._replace(expert=jnp.full_like(decision.expert, mode == "expert"))

    return {pair: of(pair) for pair in topology.pairs}


def update_mask(topology: Topology, switches: Mapping[Pair, Switch]) -> dict[str, jax.Array]:
    """Whether each network that can be paused takes its step: in at least one of its pairs it learns.

    Relay nodes and networks that teach in no gated pair always do, and have no entry.
    """
    teachers = {teacher for teacher, _ in topology.pairs} - topology.relay
    return {
        node: functools.reduce(jnp.logical_or, (~switches[pair].expert for pair in topology.pairs if pair[0] == node))
        for node in topology.nodes
        if node in teachers
    }
