"""An own method, beside those of the package: every network learns from what the others say on average.

python -m switokd_jax.main --config=examples/own_method.py --workdir=runs/own_method
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from switokd_jax import config, config_fields
from switokd_jax.losses import kl_divergence
from switokd_jax.methods import METHODS, Method, MethodInputs, MethodOutput
from switokd_jax.topology import Topology


@dataclasses.dataclass(frozen=True)
class Hyperparameters:
    """Attributes:

    temperature: tau of the softened distributions, above 0.
    weight: of the term beside the cross-entropy.
    """

    temperature: float = config_fields.number(3.0, above=0.0)
    weight: float = config_fields.number(1.0, low=0.0)


def ensemble(
    outputs: MethodInputs, labels: jax.Array, topology: Topology, hyperparameters: Hyperparameters
) -> MethodOutput:
    """L_i = CE(z_i, y) + weight * tau^2 * KL(sg softmax(mean over j != i of z_j / tau) || softmax(z_i / tau))."""
    del labels  # the cross-entropy has been taken already
    tau, losses = hyperparameters.temperature, dict(outputs.cross_entropy)
    for learner in topology.nodes:
        others = jnp.stack([outputs.logits[name] for name in topology.nodes if name != learner])
        spoken = jax.lax.stop_gradient(others.mean(axis=0))
        term = jnp.mean(kl_divergence(spoken, outputs.logits[learner], tau))
        losses[learner] += hyperparameters.weight * tau**2 * term
    return MethodOutput(losses)


METHODS["ensemble"] = Method(ensemble, Hyperparameters)


def get_config() -> ConfigDict:
    """Three networks on digits; `--config.ensemble.temperature=2` works as for any other method."""
    c = config.default()
    c.method = "ensemble"
    c.topology.kind = "complete"
    c.networks.third = config.network(model="resnet8")
    return c
