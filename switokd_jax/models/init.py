"""Initial variables of a network."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from switokd_jax.models.layers import layers_of, with_options
from switokd_jax.program_cache import Lower, Program
from switokd_jax.state import Tree


def init_in_float32(module: Any, key: jax.Array, *inputs: jax.Array) -> dict[str, Tree]:
    """Initial parameters and running statistics of a network or adapter.

    They are drawn in float32 and cast, so that a float64 run starts where the float32 run does.

    Args:
      module: takes the inputs and `train`.
      key: PRNG key of this module; see `state.fold_in_name`.
      *inputs: float32 arrays of the shapes that it will see.

    Returns:
      {'params', 'batch_stats'} in the module's param_dtype.
    """
    in_float32 = with_options(module, dtype=jnp.float32, param_dtype=jnp.float32, axis_name=None)
    variables = in_float32.init(key, *inputs, train=False)
    cast = jax.tree.map(lambda x: x.astype(layers_of(module).param_dtype), variables)
    return {"params": cast["params"], "batch_stats": cast.get("batch_stats", {})}


def init_variables(module: Any, key: jax.Array, image_shape: tuple[int, ...]) -> dict[str, Tree]:
    """`init_in_float32` of a network of `models.create`, for images (height, width, channels)."""
    return init_in_float32(module, key, jnp.zeros((1, *image_shape), jnp.float32))


def init_variables_jit(
    module: Any, key: jax.Array, image_shape: tuple[int, ...], lower: Lower = Program.lower
) -> dict[str, Tree]:
    """`init_variables`, compiled.

    Args:
      module: as there.
      key: as there.
      image_shape: as there.
      lower: traces the program, or finds it traced.
    """
    # Optimising takes XLA:CPU longer (mobilenetv2_0.5: 11 s in place of 8) than running this once; the numbers stay.
    options = {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else None
    init_fn = functools.partial(init_variables, module, image_shape=image_shape)
    variables: dict[str, Tree] = lower(Program(init_fn), key).compile(options)(key)
    return variables
