"""ONE: a gate on the shared trunk mixes the branches into a teacher, which every branch learns from.

Source: Zhu et al., "Knowledge Distillation by On-the-Fly Native Ensemble", NeurIPS 2018 (arXiv 1806.04606), equations 4
to 8, and its public code (Lan1991Xu/ONE_NeurIPS2018), where the distillation term ramps up.
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
    stack_logits,
)
from switokd_jax.precision import promote_to_float32
from switokd_jax.topology import Topology

TRUNK = "trunk_pooled"


@dataclasses.dataclass(frozen=True)
class Hyperparameters:
    """Attributes:

    temperature: T of the softened distributions, above 0.
    rampup_epochs: epochs until the distillation term has its full weight; 0 for none.
    """

    temperature: float = config_fields.number(3.0, above=0.0)
    rampup_epochs: float = config_fields.number(80.0, low=0.0)


class Gate(nn.Module):
    """Weights of the branches: softmax(ReLU(BatchNorm(linear layer))).

    Attributes:
      num_branches: number of weights.
      dtype: computation dtype.
      param_dtype: parameter dtype.
    """

    num_branches: int
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps the trunk's pooled features [batch, channels] to weights [batch, branches] of sum 1."""
        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = nn.Dense(self.num_branches, name="linear", **dtypes)(x)
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9, name="bn", **dtypes)(x)
        return nn.softmax(promote_to_float32(nn.relu(x)))


def one(inputs: MethodInputs, labels: jax.Array, topology: Topology, hyperparameters: Hyperparameters) -> MethodOutput:
    """Computes L_i = CE(z_i, y) + w T^2 KL(sg softmax(z_e / T) || softmax(z_i / T)), and L_ensemble = CE(z_e, y).

    z_e: sum over branches of g_i z_i, with the gate's weights g of each example.
    w: `rampup_weight` of the epoch.
    """
    h, nodes = hyperparameters, topology.nodes
    ensemble, stats = gated_ensemble(inputs, topology, h)
    weight = rampup_weight(inputs.epoch, h.rampup_epochs)
    terms = [(node, weight * mean_kl_divergence(ensemble, inputs.logits[node], h.temperature)) for node in nodes]
    output = add_distillation(inputs.cross_entropy, terms, adapter_stats=stats)
    return add_ensemble(output, ensemble, labels)


def gated_ensemble(
    inputs: MethodInputs, topology: Topology, hyperparameters: Hyperparameters
) -> tuple[Float[Array, "batch classes"], dict[str, Any]]:
    """Computes the logits z_e, and the gate's new running statistics."""
    del hyperparameters
    weights, stats = inputs.adapters["gate"](inputs.features[topology.nodes[0]][TRUNK])
    return jnp.einsum("bn,nbc->bc", weights, stack_logits(inputs, topology.nodes)), {"gate": stats}


def gate(topology: Topology, shapes: Mapping[str, Shapes], **dtypes: Any) -> dict[str, TrainedModule]:
    """Creates the gate, which is trained with the network."""
    learner = topology.nodes[0]
    return {"gate": TrainedModule(Gate(len(topology.nodes), **dtypes), (shapes[learner][TRUNK],), learner)}
