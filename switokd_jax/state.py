"""The state of a run: a pure value, one `NetworkState` per network."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from switokd_jax.models.layers import layers_of, with_options

Tree = Any


@struct.dataclass
class NetworkState:
    """Everything of one network that training changes.

    Attributes:
      params: parameters, float32 (float64 in float64 runs).
      batch_stats: BatchNorm running means and variances.
      opt_state: the optimizer's state, its counters included.
      ema: averaged parameters, or None where the network keeps none.
      updates: int32, optimizer steps really taken.
    """

    params: Tree
    batch_stats: Tree
    opt_state: Tree
    ema: Tree
    updates: jax.Array

    @property
    def evaluated(self) -> dict[str, Tree]:
        """The variables that are scored: averaged parameters where there are some."""
        return {"params": self.params if self.ema is None else self.ema, "batch_stats": self.batch_stats}


@struct.dataclass
class TrainState:
    """Attributes:

    networks: `NetworkState` by name.
    expert_steps: int32 by 'teacher->student', steps in expert mode so far.
    step: int32, global steps taken.
    rng: raw PRNG key of the run; what is random in a step folds into it what it depends on.
    memory: what the method keeps between steps, None for most.
    adapters: of methods on features, `NetworkState` by edge ('student <- teacher').
    """

    networks: dict[str, NetworkState]
    expert_steps: dict[str, jax.Array]
    step: jax.Array
    rng: jax.Array
    memory: Tree = None
    adapters: dict[str, NetworkState] = struct.field(default_factory=dict)


def pair_name(pair: tuple[str, str]) -> str:
    """'teacher->student', as in metrics and summaries."""
    return f"{pair[0]}->{pair[1]}"


def fold_in_name(key: jax.Array, name: str) -> jax.Array:
    """A key for the network of that name, whatever its place among the others: folded with the name's crc32."""
    return jax.random.fold_in(key, np.uint32(zlib.crc32(name.encode())))


def init_variables(module: Any, key: jax.Array, image_shape: tuple[int, ...]) -> dict[str, Tree]:
    """Initial parameters and running statistics of a network.

    They are drawn in float32 and cast, so that a float64 run starts where the float32 run does.

    Args:
      module: a network of `models.create`.
      key: of the network, whatever the run; see `fold_in_name`.
      image_shape: (height, width, channels).
    """
    in_float32 = with_options(module, dtype=jnp.float32, param_dtype=jnp.float32, axis_name=None)
    variables = in_float32.init(key, jnp.zeros((1, *image_shape), jnp.float32), train=False)
    cast = jax.tree.map(lambda x: x.astype(layers_of(module).param_dtype), variables)
    return {"params": cast["params"], "batch_stats": cast.get("batch_stats", {})}


def init_variables_jit(module: Any, key: jax.Array, image_shape: tuple[int, ...]) -> dict[str, Tree]:
    """`init_variables`, compiled."""
    # XLA:CPU would optimise for longer (mobilenetv2_0.5: 11 s in place of 8) than this runs, once; its numbers stay.
    options = {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else None
    drawn: Any = jax.jit(init_variables, static_argnums=(0, 2), compiler_options=options)
    variables: dict[str, Tree] = drawn(module, key, image_shape)
    return variables


def network_state(network: Any, variables: Mapping[str, Tree]) -> NetworkState:
    """One network's state before its first step, from `forward.NetworkSpec` and {'params', 'batch_stats'}."""
    params = variables["params"]
    return NetworkState(
        params=params,
        batch_stats=variables["batch_stats"],
        opt_state=jax.jit(network.optimizer.init)(params),  # in one program, not one for each shape
        ema=jax.tree.map(jnp.array, params) if network.ema else None,
        updates=jnp.zeros((), jnp.int32),
    )


def initial_state(
    networks: Mapping[str, Any],
    variables: Mapping[str, dict[str, Tree]],
    pairs: tuple[tuple[str, str], ...],
    seed: int,
    memory: Tree = None,
    adapters: Mapping[str, NetworkState] | None = None,
) -> TrainState:
    """The state before the first step.

    Args:
      networks: `forward.NetworkSpec` by name.
      variables: {'params', 'batch_stats'} by name.
      pairs: the gated pairs whose expert steps are counted.
      seed: of the run's key.
      memory: the method's, as its `start` makes it.
      adapters: of methods on features, by edge.
    """

    return TrainState(
        networks={name: network_state(networks[name], variables[name]) for name in networks},
        expert_steps={pair_name(pair): jnp.zeros((), jnp.int32) for pair in pairs},
        step=jnp.zeros((), jnp.int32),
        rng=jax.random.PRNGKey(seed),
        memory=memory,
        adapters=dict(adapters or {}),
    )
