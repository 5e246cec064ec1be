"""What a method is given and what it answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from switokd_jax.switching import Switch
from switokd_jax.topology import Pair, Topology

AdapterFn = Callable[[jax.Array, jax.Array], tuple[Any, Any]]


@dataclasses.dataclass(frozen=True)
class MemoryInputs:
    """What a method's memory is made of.

    Attributes:
      nodes: names of the networks.
      labels: [training images] int32, or None where a pipeline learns them on the way only.
      keys: by edge from a frozen network ('student <- teacher'), a PRNG key.
    """

    nodes: tuple[str, ...]
    labels: np.ndarray | None = None
    keys: Mapping[str, jax.Array] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class MethodInputs:
    """What the networks said of the GLOBAL batch.

    Attributes:
      logits: [batch, classes] by network.
      cross_entropy: scalar mean by network, with the network's own label smoothing.
      frozen: networks that do not learn: the teachers of the offline methods.
      features: [batch, ...] by network and tapped name, those that the method asks for.
      adapters: by edge ('student <- teacher'), the edge's adapter as a function of the learner's and the source's
        feature: it answers what it makes of them and its moved running statistics.
      indices: [batch] int32, the places of the examples in the training split.
      keys: by edge with an adapter, a PRNG key of this step.
      epoch: scalar int32, from 1.
      memory: what the method keeps between steps, as its `start` made it; None for most.
    """

    logits: Mapping[str, jax.Array]
    cross_entropy: Mapping[str, jax.Array]
    frozen: frozenset[str] = frozenset()
    features: Mapping[str, Mapping[str, jax.Array]] = dataclasses.field(default_factory=dict)
    adapters: Mapping[str, AdapterFn] = dataclasses.field(default_factory=dict)
    indices: jax.Array = dataclasses.field(default_factory=lambda: jnp.zeros(0, jnp.int32))
    keys: Mapping[str, jax.Array] = dataclasses.field(default_factory=dict)
    epoch: jax.Array | int = 1
    memory: Any = None


@struct.dataclass
class MethodOutput:
    """What a method makes of it.

    Attributes:
      losses: scalar by network. It may depend on another network through stop_gradient only.
      should_update: a traced boolean for each network that can be paused; the others always learn, and their
        update needs no conditional.
      switches: the switch of each gated pair.
      adapter_stats: the moved running statistics of the adapters, by edge.
      memory: what the method keeps from now on; None leaves it as it is.
      metrics: the method's own scalar metrics, of any name.
      freeze_paused_stats: whether a paused network also keeps its BatchNorm running statistics.
    """

    losses: Mapping[str, jax.Array]
    should_update: Mapping[str, jax.Array] = struct.field(default_factory=dict)
    switches: Mapping[Pair, Switch] = struct.field(default_factory=dict)
    adapter_stats: Mapping[str, Any] = struct.field(default_factory=dict)
    memory: Any = None
    metrics: Mapping[str, jax.Array] = struct.field(default_factory=dict)
    freeze_paused_stats: bool = struct.field(default=False, pytree_node=False)


MethodFn = Callable[[MethodInputs, jax.Array, Topology, Any], MethodOutput]
