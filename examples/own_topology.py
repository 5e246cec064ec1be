"""An own topology: a ring. Each of three networks learns from the one before it, and the strongest may be paused for
the weakest, which learns from it.

python -m switokd_jax.main --config=examples/own_topology.py --workdir=runs/own_topology
"""

from __future__ import annotations

from ml_collections import ConfigDict

from switokd_jax import config


def get_config() -> ConfigDict:
    """Edges are (learner, source, gate, weight); a gate is a (teacher, student) pair whose mode opens the edge."""
    c = config.default()
    del c.networks.teacher, c.networks.student
    for name, model in {"strong": "wrn_16_2", "middle": "wrn_16_1", "weak": "wrn_10_1"}.items():
        c.networks[name] = config.network(model=model)
    c.topology.kind = "custom"
    c.topology.names = ("strong", "middle", "weak")
    c.topology.edges = (
        ("middle", "strong", None, 1.0),
        ("weak", "middle", None, 1.0),
        ("weak", "strong", None, 0.5),
        ("strong", "weak", ("strong", "weak"), 1.0),
    )
    return c
