"""OKDDip: peers that attend to one another, and a leader, the last network, that learns from all of them.

Source: Chen et al., "Online Knowledge Distillation with Diverse Peers", AAAI 2020 (arXiv 1912.00350), equations 3 to 8,
and its public code (DefangChen/OKDDip), which mixes logits where equation 3 mixes probabilities, and lets gradients
into the targets. Peers are branches of one network, or networks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from switokd_jax import config_fields
from switokd_jax.losses import joint_kl_divergence
from switokd_jax.methods.base import (
    MethodInputs,
    MethodOutput,
    Shapes,
    TrainedModule,
    add_distillation,
    rampup_weight,
    stack_logits,
)
from switokd_jax.precision import promote_to_float32
from switokd_jax.topology import Topology

REDUCTION = 8  # features for each dimension of query and key, as in the public code


@dataclasses.dataclass(frozen=True)
class Hyperparameters:
    """Attributes:

    temperature: T of the softened distributions, above 0.
    rampup_epochs: epochs until the distillation terms have their full weight; 0 for none.
    """

    temperature: float = config_fields.number(3.0, above=0.0)
    rampup_epochs: float = config_fields.number(80.0, low=0.0)


class Attention(nn.Module):
    """One linear layer for the queries and one for the keys of all peers.

    Attributes:
      dtype: computation dtype.
      param_dtype: parameter dtype.
    """

    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, *features: jax.Array, train: bool) -> jax.Array:
        """Maps features [batch, channels] of each peer to weights [batch, peers, peers]: of peer a for its target."""
        del train
        x = jnp.stack(features, axis=1)
        size = max(x.shape[-1] // REDUCTION, 1)
        query, key = (
            nn.Dense(size, use_bias=False, dtype=self.dtype, param_dtype=self.param_dtype, name=name)(x)
            for name in ("query", "key")
        )
        return nn.softmax(promote_to_float32(jnp.einsum("bad,bcd->bac", query, key)))


def okddip(
    inputs: MethodInputs, labels: jax.Array, topology: Topology, hyperparameters: Hyperparameters
) -> MethodOutput:
    """Computes L_i = CE(z_i, y) + w T^2 KL(softmax(t_i / T) || softmax(z_i / T)).

    t_i: of a peer a, sum over peers b of softmax over b of (q_a . k_b), times z_b; of the leader, the mean of all z_b.
      It has a gradient, as in the public code.
    w: `rampup_weight` of the epoch.
    """
    del labels
    h, peers = hyperparameters, topology.nodes[:-1]
    logits = stack_logits(inputs, peers)
    attention, _ = inputs.adapters["attention"](*(inputs.features[node]["pooled"] for node in peers))
    targets = [*jnp.einsum("bpq,qbc->pbc", attention, logits), jnp.mean(logits, axis=0)]
    weight = rampup_weight(inputs.epoch, h.rampup_epochs) * h.temperature**2
    terms = [
        (node, weight * jnp.mean(joint_kl_divergence(target, inputs.logits[node], h.temperature)))
        for node, target in zip(topology.nodes, targets, strict=True)
    ]
    return add_distillation(inputs.cross_entropy, terms)


def attention(topology: Topology, shapes: Mapping[str, Shapes], **dtypes: Any) -> dict[str, TrainedModule]:
    """Creates the attention, which is trained with the first peer.

    Raises:
      ValueError: if the peers' features differ in size.
    """
    peers = topology.nodes[:-1]
    inputs = tuple(shapes[node]["pooled"] for node in peers)
    if len({*inputs}) > 1:
        sizes = ", ".join(f"{node} {shape[-1]}" for node, shape in zip(peers, inputs, strict=True))
        raise ValueError(
            f"okddip compares the pooled features of all peers, which differ in size: {sizes}; take equal ones"
        )
    return {"attention": TrainedModule(Attention(**dtypes), inputs, peers[0])}
