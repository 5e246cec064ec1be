"""A method of your own on features: networks that learn together agree on which images are alike.

python -m switokd_jax.main --config=examples/own_features.py --workdir=runs/own_features
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict

from switokd_jax import config, config_fields, methods
from switokd_jax.losses import kl_divergence
from switokd_jax.topology import Topology


@dataclasses.dataclass(frozen=True)
class Hyperparameters:
    """Attributes:

    weight: weight of the distillation term.
    temperature: of the softmax over similarities, above 0.
    """

    weight: float = config_fields.number(1.0, low=0.0)
    temperature: float = config_fields.number(0.1, above=0.0)


class Projection(nn.Module):
    """Maps features to 32 numbers of length 1."""

    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps [batch, features] to [batch, 32]."""
        x = nn.Dense(32, dtype=self.dtype, param_dtype=self.param_dtype)(x)
        return x / jnp.sqrt(jnp.sum(x**2, axis=-1, keepdims=True) + 1e-6)


def projections(topology: Topology, shapes: Any, **dtypes: Any) -> dict[str, methods.TrainedModule]:
    """Creates a projection for each network, which is trained with it."""
    return {
        f"{name}/projection": methods.TrainedModule(Projection(**dtypes), (shapes[name]["pooled"],), name)
        for name in topology.nodes
    }


def alike(inputs: methods.MethodInputs, labels: jax.Array, topology: Topology, h: Any) -> methods.MethodOutput:
    """Computes L_i = CE + w / (N - 1) * sum over j != i of KL(sg p_j || p_i).

    p_i: softmax of the cosines / T between an image and the others of the batch, of network i's projected features.
    """
    similar = {}
    for name in topology.nodes:
        embedding, _ = inputs.adapters[f"{name}/projection"](inputs.features[name]["pooled"])
        similar[name] = embedding @ embedding.T / h.temperature - 1e4 * jnp.eye(len(labels))
    weight = h.weight / (len(topology.nodes) - 1)
    pairs = itertools.permutations(topology.nodes, 2)
    terms = [(i, weight * jnp.mean(kl_divergence(similar[j], similar[i]))) for i, j in pairs]
    return methods.add_distillation(inputs.cross_entropy, terms)


FEATURES = methods.FeatureSpec(every=("pooled",), modules=projections)
methods.METHODS["alike"] = methods.Method(alike, Hyperparameters, features=lambda h: FEATURES)


def get_config() -> ConfigDict:
    """Returns a config of two networks on digits; `--config.alike.weight=2` works as for any method."""
    c = config.default()
    c.method = "alike"
    return c
