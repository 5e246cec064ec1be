"""PCL: peers learn from a classifier of all their features, and from the averaged weights of the other peers.

Source: Wu and Gong, "Peer Collaborative Learning for Online Knowledge Distillation", AAAI 2021 (arXiv 2006.04147),
equations 2 to 7. Its peers are branches that see an image in different crops: config.data.views = 'per_branch'.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from switokd_jax import config_fields
from switokd_jax.losses import mean_kl_divergence
from switokd_jax.methods.base import (
    MethodInputs,
    MethodOutput,
    Shapes,
    TrainedModule,
    add_distillation,
    add_ensemble,
    rampup_weight,
)
from switokd_jax.precision import promote_to_float32
from switokd_jax.topology import Topology


@dataclasses.dataclass(frozen=True)
class Hyperparameters:
    """Attributes:

    temperature: T of the softened distributions, above 0.
    rampup_epochs: epochs until the distillation terms have their full weight; 0 for none.
    """

    temperature: float = config_fields.number(3.0, above=0.0)
    rampup_epochs: float = config_fields.number(80.0, low=0.0)


class PeerEnsemble(nn.Module):
    """A classifier of the concatenated pooled features of all peers.

    Attributes:
      num_classes: number of logits.
      dtype: computation dtype.
      param_dtype: parameter dtype.
    """

    num_classes: int
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, *features: jax.Array, train: bool) -> jax.Array:
        """Maps features [batch, channels] of each peer to logits [batch, num_classes]."""
        del train
        x = jnp.concatenate(features, axis=-1)
        return nn.Dense(self.num_classes, dtype=self.dtype, param_dtype=self.param_dtype, name="linear")(x)


def pcl(inputs: MethodInputs, labels: jax.Array, topology: Topology, hyperparameters: Hyperparameters) -> MethodOutput:
    """Computes L_i = CE(z_i, y) + w T^2 [KL(sg p_e || p_i) + mean over j != i of KL(q_j || p_i)].

    p_e: of the classifier of all features, which learns by L_ensemble = CE(z_e, y).
    q_j: of the averaged weights of peer j (config.networks.NAME.ema).
    w: `rampup_weight` of the epoch. p and q are softmaxes at temperature T.
    """
    h, nodes = hyperparameters, topology.nodes
    ensemble, _ = concatenated_ensemble(inputs, topology, h)
    weight = rampup_weight(inputs.epoch, h.rampup_epochs)
    terms = []
    for node in nodes:
        others = [inputs.averaged_logits[other] for other in nodes if other != node]
        from_ensemble = mean_kl_divergence(ensemble, inputs.logits[node], h.temperature)
        from_others = [mean_kl_divergence(other, inputs.logits[node], h.temperature) for other in others]
        terms.append((node, weight * (from_ensemble + jnp.mean(jnp.stack(from_others)))))
    return add_ensemble(add_distillation(inputs.cross_entropy, terms), ensemble, labels)


def concatenated_ensemble(
    inputs: MethodInputs, topology: Topology, hyperparameters: Hyperparameters
) -> tuple[Float[Array, "batch classes"], dict[str, Any]]:
    """Computes the logits z_e; their classifier has no running statistics."""
    del hyperparameters
    logits, _ = inputs.adapters["ensemble"](*(inputs.features[node]["pooled"] for node in topology.nodes))
    return promote_to_float32(logits), {}


def peer_ensemble(topology: Topology, shapes: Mapping[str, Shapes], **dtypes: Any) -> dict[str, TrainedModule]:
    """Creates the classifier of all features, which is trained with the first peer."""
    nodes = topology.nodes
    module = PeerEnsemble(shapes[nodes[0]]["logits"][-1], **dtypes)
    return {"ensemble": TrainedModule(module, tuple(shapes[node]["pooled"] for node in nodes), nodes[0])}
