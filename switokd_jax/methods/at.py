"""Attention transfer: a student looks where its teacher looks.

Source: Zagoruyko and Komodakis, "Paying More Attention to Attention", ICLR 2017 (arXiv 1612.03928), the form with
the mean of the squared features over the channels.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from switokd_jax import config_fields
from switokd_jax.methods.base import MethodInputs, MethodOutput
from switokd_jax.precision import promote_to_float32
from switokd_jax.topology import Topology


@dataclasses.dataclass(frozen=True)
class Hyperparameters:
    """Attributes:

    weight: of the distillation term.
    student: tapped features of the student.
    teacher: of the teacher, one for each of the student's.
    """

    weight: float = config_fields.number(1000.0, low=0.0)
    student: tuple[Any, ...] = config_fields.sequence(("stage1", "stage2", "stage3"))
    teacher: tuple[Any, ...] = config_fields.sequence(("stage1", "stage2", "stage3"))


def at(outputs: MethodInputs, labels: jax.Array, topology: Topology, hyperparameters: Hyperparameters) -> MethodOutput:
    """L_i = CE + w * sum over edges from frozen j and stages of mean (a_i - a_j)^2.

    a is the mean over the channels of the squared features, flattened and scaled to length 1. Where one map is
    larger, it is averaged down to the other's size.
    """
    del labels
    h = hyperparameters
    losses = dict(outputs.cross_entropy)
    for edge in topology.edges_from(outputs.frozen):
        for own, theirs in zip(h.student, h.teacher, strict=True):
            source = jax.lax.stop_gradient(outputs.features[edge.source][theirs])
            pair = same_size(outputs.features[edge.learner][own], source)
            a, b = (attention(features) for features in pair)
            losses[edge.learner] += h.weight * edge.weight * jnp.mean((a - b) ** 2)
    return MethodOutput(losses)


def attention(features: jax.Array) -> jax.Array:
    """[batch, height, width, channels] to attention [batch, height * width] of length 1."""
    a = jnp.mean(promote_to_float32(features) ** 2, axis=-1).reshape(features.shape[0], -1)
    square = jnp.sum(a**2, axis=-1, keepdims=True)
    return a / jnp.sqrt(jnp.maximum(square, jnp.finfo(a.dtype).tiny))


def same_size(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Averages the larger of two maps [batch, height, width, channels] down to the other's height and width."""
    factor = a.shape[1] // b.shape[1], b.shape[1] // a.shape[1]
    return tuple(nn.avg_pool(x, (f, f), (f, f)) if f > 1 else x for x, f in zip((a, b), factor, strict=True))  # type: ignore[return-value]
