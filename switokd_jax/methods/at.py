"""Attention transfer: a student matches the spatial attention maps of its teacher.

Source: Zagoruyko and Komodakis, "Paying More Attention to Attention", ICLR 2017 (arXiv 1612.03928); the variant with
the mean of the squared features over the channels.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from switokd_jax import config_fields
from switokd_jax.methods.base import MethodInputs, MethodOutput, add_distillation
from switokd_jax.precision import promote_to_float32
from switokd_jax.topology import Edge, Topology


@dataclasses.dataclass(frozen=True)
class Hyperparameters:
    """Attributes:

    weight: weight of the distillation term.
    student: names of the student's features.
    teacher: names of the teacher's features, one for each of the student's.
    """

    weight: float = config_fields.number(1000.0, low=0.0)
    student: tuple[Any, ...] = config_fields.sequence(("stage1", "stage2", "stage3"))
    teacher: tuple[Any, ...] = config_fields.sequence(("stage1", "stage2", "stage3"))


def at(inputs: MethodInputs, labels: jax.Array, topology: Topology, hyperparameters: Hyperparameters) -> MethodOutput:
    """Computes L_i = CE + w * sum over edges from frozen j and stages of mean (a_i - a_j)^2.

    a is the mean over the channels of the squared features, flattened and scaled to length 1. The larger of two
    feature maps is first averaged down to the size of the other.
    """
    del labels
    h = hyperparameters

    def term(edge: Edge, student_layer: str, teacher_layer: str) -> jax.Array:
        source = jax.lax.stop_gradient(inputs.features[edge.source][teacher_layer])
        pair = same_size(inputs.features[edge.learner][student_layer], source)
        a, b = (attention(features) for features in pair)
        return h.weight * edge.weight * jnp.mean((a - b) ** 2)

    terms = [
        (edge.learner, term(edge, *layers))
        for edge in topology.edges_from(inputs.frozen)
        for layers in zip(h.student, h.teacher, strict=True)
    ]
    return add_distillation(inputs.cross_entropy, terms)


def attention(features: Float[Array, "batch height width channels"]) -> Float[Array, "batch pixels"]:
    """Computes attention vectors of length 1, one entry per pixel, in float32 at least."""
    a = jnp.mean(promote_to_float32(features) ** 2, axis=-1).reshape(features.shape[0], -1)
    square = jnp.sum(a**2, axis=-1, keepdims=True)
    return a / jnp.sqrt(jnp.maximum(square, jnp.finfo(a.dtype).tiny))


def same_size(
    a: Float[Array, "batch h_a w_a c_a"], b: Float[Array, "batch h_b w_b c_b"]
) -> tuple[Float[Array, "batch h w c_a"], Float[Array, "batch h w c_b"]]:
    """Averages the larger of two feature maps down to the other's height and width."""
    factor = a.shape[1] // b.shape[1], b.shape[1] // a.shape[1]
    return tuple(nn.avg_pool(x, (f, f), (f, f)) if f > 1 else x for x, f in zip((a, b), factor, strict=True))  # type: ignore[return-value]
