"""A topology of your own: a ring in which each network learns from the one before it, plus one gated pair.

The strongest network learns from the weakest, and the weakest from the strongest at half weight; the switch may pause
the strongest network for the weakest.

python -m switokd_jax.main --config=examples/own_topology.py --workdir=runs/own_topology
"""

from __future__ import annotations

import itertools

from ml_collections import ConfigDict

from switokd_jax import config
from switokd_jax.topology import TOPOLOGIES, Edge, Topology, TopologySettings


def ring(settings: TopologySettings) -> Topology:
    """Creates the ring of `settings.names`, strongest network first; alpha and beta are the method's edge weights."""
    names, alpha, beta = tuple(settings.names), settings.alpha, settings.beta
    strongest, weakest = names[0], names[-1]
    forward = [Edge(learner, source, weight=alpha) for source, learner in itertools.pairwise(names)]
    return Topology(
        names,
        (
            *forward,
            Edge(weakest, strongest, weight=0.5 * alpha),
            Edge(strongest, weakest, gate=(strongest, weakest), weight=beta),
        ),
    )


TOPOLOGIES["ring"] = ring


def get_config() -> ConfigDict:
    """Returns a config of three networks on digits. A single topology needs no builder: see kind 'custom'."""
    c = config.default()
    del c.networks.teacher, c.networks.student
    for name, model in {"strong": "wrn_16_2", "middle": "wrn_16_1", "weak": "wrn_10_1"}.items():
        c.networks[name] = config.network(model=model)
    c.topology.kind = "ring"
    c.topology.names = ("strong", "middle", "weak")
    return c
