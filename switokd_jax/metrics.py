"""Metrics: what is measured of logits, and of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def top_k_correct(logits: jax.Array, labels: jax.Array, k: int = 1) -> jax.Array:
    """1.0 where the label is among the k highest logits, else 0.0; float32 [batch]. Ties go to lower classes."""
    if k == 1:
        return (jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32)
    _, best = jax.lax.top_k(logits, min(k, logits.shape[-1]))
    return jnp.any(best == labels[:, None], axis=-1).astype(jnp.float32)


def expert_share(expert_steps: Mapping[str, Any], steps: int) -> dict[str, float]:
    """Share of expert steps so far, in [0, 1], by pair, from their counts."""
    return {pair: int(count) / max(steps, 1) for pair, count in expert_steps.items()}


def expert_share_of_rows(rows: Sequence[Mapping[str, Any]], pair: str) -> float:
    """Returns the share of expert steps among rows of metrics.jsonl, in [0, 1].

    Args:
      rows: at least one row of the training split; each is one step.
      pair: 'teacher->student'.

    >>> expert_share_of_rows([{"t->s/expert": True}, {"t->s/expert": False}], "t->s")
    0.5
    """
    return float(np.mean([row[f"{pair}/expert"] for row in rows]))


def expert_share_of_summary(summary: Mapping[str, Any]) -> dict[str, float]:
    """Returns the share of expert steps of a finished run by pair, in [0, 1], from the content of its summary.json.

    >>> expert_share_of_summary({"switch": {"t->s": {"expert_fraction": 0.25}}})
    {'t->s': 0.25}
    """
    return {pair: switch["expert_fraction"] for pair, switch in summary["switch"].items()}
