"""Number formats: which dtype a run computes in, and what is never computed in less than float32."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

DTYPES: dict[str, Any] = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float64": jnp.float64}


def module_dtypes(dtype: str) -> dict[str, Any]:
    """The `dtype` and `param_dtype` of a run's modules. Parameters are float32 at least."""
    return {"dtype": DTYPES[dtype], "param_dtype": at_least_float32(DTYPES[dtype])}


def at_least_float32(dtype: Any) -> Any:
    """float32 for narrower floating-point types, the type itself otherwise."""
    return jnp.promote_types(dtype, jnp.float32)


def promote_to_float32(x: jax.Array) -> jax.Array:
    """Casts bfloat16 and float16 arrays to float32; leaves float32 and float64 as they are.

    Losses are computed in float32 at least: a bfloat16 sum over the classes keeps two or three digits.
    """
    return x.astype(at_least_float32(x.dtype))


@contextlib.contextmanager
def precision_context(dtype: str, matmul_precision: str) -> Iterator[None]:
    """Enables float64 if `dtype` asks for it and sets the precision of float32 products, inside the context."""
    with jax.enable_x64(dtype == "float64"), jax.default_matmul_precision(matmul_precision):
        yield
