"""The state of a run: a pure value with one `NetworkState` per network."""

from __future__ import annotations

import zlib
from typing import Any

import jax
import numpy as np
from flax import struct

Tree = Any


@struct.dataclass
class NetworkState:
    """Everything that training changes in one network.

    Attributes:
      params: parameters, float32 (float64 in float64 runs).
      batch_stats: BatchNorm running means and variances.
      opt_state: the optimizer's state, its counters included.
      ema: averaged parameters, or None where the network keeps none.
      updates: int32 scalar, optimizer steps taken.
    """

    params: Tree
    batch_stats: Tree
    opt_state: Tree
    ema: Tree
    updates: jax.Array

    @property
    def eval_variables(self) -> dict[str, Tree]:
        """The variables to evaluate: with the averaged parameters if there are any."""
        return {"params": self.params if self.ema is None else self.ema, "batch_stats": self.batch_stats}


@struct.dataclass
class TrainState:
    """The state of all networks and of the method. The field names are those of saved checkpoints.

    Attributes:
      networks: `NetworkState` by name.
      expert_steps: int32 scalar by 'teacher->student', steps in expert mode so far.
      step: int32 scalar, global steps taken.
      rng: [2] uint32, the data of the run's PRNG key: a saved state holds plain arrays.
      memory: what the method keeps between steps; None for most methods.
      adapters: `NetworkState` of the method's trained modules by name; that of an edge is 'student <- teacher'.
    """

    networks: dict[str, NetworkState]
    expert_steps: dict[str, jax.Array]
    step: jax.Array
    rng: jax.Array
    memory: Tree = None
    adapters: dict[str, NetworkState] = struct.field(default_factory=dict)

    @property
    def key(self) -> jax.Array:
        """The run's PRNG key. A random number folds into it all that it depends on."""
        return jax.random.wrap_key_data(self.rng)


def pair_name(pair: tuple[str, str]) -> str:
    """Name of a gated pair in metrics and summaries.

    >>> pair_name(("teacher", "student"))
    'teacher->student'
    """
    return f"{pair[0]}->{pair[1]}"


def fold_in_name(key: jax.Array, name: str) -> jax.Array:
    """Derives a key from a name (its crc32), so that it does not depend on the number or order of names."""
    return jax.random.fold_in(key, np.uint32(zlib.crc32(name.encode())))
