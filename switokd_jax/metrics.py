"""Metrics: what is measured of logits, and of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp


def top_k_correct(logits: jax.Array, labels: jax.Array, k: int = 1) -> jax.Array:
    """1.0 where the label is among the k highest logits, else 0.0; float32 [batch]. Ties go to lower classes."""
    if k == 1:
        return (jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32)
    _, best = jax.lax.top_k(logits, min(k, logits.shape[-1]))
    return jnp.any(best == labels[:, None], axis=-1).astype(jnp.float32)


def expert_share(expert_steps: Mapping[str, Any], steps: int) -> dict[str, float]:
    """Share of expert steps so far, in [0, 1], by pair, from their counts."""
    return {pair: int(count) / max(steps, 1) for pair, count in expert_steps.items()}
