"""A method of your own: every network learns from the mean logits of the others.

python -m switokd_jax.main --config=examples/own_method.py --workdir=runs/own_method
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from switokd_jax import config, config_fields
from switokd_jax.losses import kl_divergence
from switokd_jax.methods import METHODS, Method, MethodInputs, MethodOutput, add_distillation
from switokd_jax.topology import Topology


@dataclasses.dataclass(frozen=True)
class Hyperparameters:
    """Attributes:

    temperature: tau of the softened distributions, above 0.
    weight: weight of the distillation term.
    """

    temperature: float = config_fields.number(3.0, above=0.0)
    weight: float = config_fields.number(1.0, low=0.0)


def ensemble(
    inputs: MethodInputs, labels: jax.Array, topology: Topology, hyperparameters: Hyperparameters
) -> MethodOutput:
    """Computes L_i = CE(z_i, y) + weight * tau^2 * KL(p || softmax(z_i / tau)).

    p = sg softmax(mean over j != i of z_j / tau).
    """
    del labels  # inputs.cross_entropy has used them already
    tau = hyperparameters.temperature

    def term(learner: str) -> jax.Array:
        others = jnp.stack([inputs.logits[name] for name in topology.nodes if name != learner])
        target = jax.lax.stop_gradient(others.mean(axis=0))
        return hyperparameters.weight * tau**2 * jnp.mean(kl_divergence(target, inputs.logits[learner], tau))

    return add_distillation(inputs.cross_entropy, [(learner, term(learner)) for learner in topology.nodes])


METHODS["ensemble"] = Method(ensemble, Hyperparameters)


def get_config() -> ConfigDict:
    """Returns a config of three networks on digits; `--config.ensemble.temperature=2` works as for any method."""
    c = config.default()
    c.method = "ensemble"
    c.topology.kind = "complete"
    c.networks.third = config.network(model="resnet8")
    return c
