"""Floating-point precision: dtypes of a run, promotion to float32, and the precision of matrix products."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

DTYPES: dict[str, Any] = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float64": jnp.float64}


def module_dtypes(dtype: str) -> dict[str, Any]:
    """Returns `dtype` and `param_dtype` of the modules of a run. Parameters are float32 at least."""
    return {"dtype": DTYPES[dtype], "param_dtype": float32_or_wider(DTYPES[dtype])}


def float32_or_wider(dtype: Any) -> Any:
    """Returns float32 for narrower floating-point dtypes, and wider dtypes unchanged."""
    return jnp.promote_types(dtype, jnp.float32)


def promote_to_float32(x: jax.Array | np.ndarray) -> jax.Array:
    """Casts bfloat16 and float16 arrays to float32; returns float32 and float64 arrays unchanged.

    Losses need it: a sum over the classes in bfloat16 has only two or three correct digits.
    """
    return jnp.asarray(x).astype(float32_or_wider(x.dtype))


@contextlib.contextmanager
def precision_context(dtype: str, matmul_precision: str) -> Iterator[None]:
    """Enables float64 if `dtype` is 'float64' and sets the precision of float32 matrix products."""
    with jax.enable_x64(dtype == "float64"), jax.default_matmul_precision(matmul_precision):
        yield
