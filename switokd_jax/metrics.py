"""Metrics of predictions and of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


def top_k_correct(
    logits: Float[Array | np.ndarray, "batch classes"], labels: Int[Array | np.ndarray, " batch"], k: int = 1
) -> Float[Array, " batch"]:
    """Returns 1.0 where the label is among the k highest logits, else 0.0; float32. Ties go to lower classes.

    >>> top_k_correct(jnp.asarray([[0.1, 0.2, 0.7], [0.5, 0.3, 0.2]]), jnp.asarray([2, 1])).tolist()
    [1.0, 0.0]
    """
    if k == 1:
        return (jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32)
    _, top_classes = jax.lax.top_k(logits, min(k, logits.shape[-1]))
    return jnp.any(top_classes == labels[:, None], axis=-1).astype(jnp.float32)


def expert_share(expert_steps: Mapping[str, Any], steps: int) -> dict[str, float]:
    """Returns the share of expert steps by pair, in [0, 1], from the number of expert steps and of all steps.

    >>> expert_share({"teacher->student": 30}, steps=120)
    {'teacher->student': 0.25}
    """
    return {pair: int(count) / max(steps, 1) for pair, count in expert_steps.items()}
