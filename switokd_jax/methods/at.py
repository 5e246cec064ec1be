"""Attention transfer: a student matches the spatial attention maps of its teacher.

Source: Zagoruyko and Komodakis, "Paying More Attention to Attention", ICLR 2017 (arXiv 1612.03928); the variant with
the mean of the squared features over the channels.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from switokd_jax import config_fields
from switokd_jax.methods import kd
from switokd_jax.methods.base import NO_STAGES, MethodInputs, MethodOutput, Stages, add_distillation
from switokd_jax.precision import promote_to_float32
from switokd_jax.topology import Edge, Topology


@dataclasses.dataclass(frozen=True)
class Hyperparameters:
    """Attributes:

    weight: weight of the distillation term.
    cross_entropy_weight: weight of the cross-entropy (RepDistiller's -r).
    kd_weight: weight of plain KD beside it (-a); 0 for none.
    kd_temperature: T of that KD.
    student: names of the student's features; () for those of RepDistiller's code, see `default_features`.
    teacher: names of the teacher's features, one for each of the student's; () likewise.
    """

    weight: float = config_fields.number(1000.0, low=0.0)
    cross_entropy_weight: float = config_fields.number(1.0, low=0.0)
    kd_weight: float = config_fields.number(0.0, low=0.0)
    kd_temperature: float = config_fields.number(4.0, above=0.0)
    student: tuple[Any, ...] = config_fields.sequence(())
    teacher: tuple[Any, ...] = config_fields.sequence(())


def default_features(hyperparameters: Hyperparameters, student: Stages, teacher: Stages) -> Hyperparameters:
    """Fills in the features that are not named: all stages, of which VGG's first is none.

    Raises:
      ValueError: if a network has no stages.
    """
    h = hyperparameters
    filled = dataclasses.replace(h, student=h.student or tuple(student), teacher=h.teacher or tuple(teacher))
    if not (filled.student and filled.teacher):
        raise ValueError(NO_STAGES)
    return filled


def at(inputs: MethodInputs, labels: jax.Array, topology: Topology, hyperparameters: Hyperparameters) -> MethodOutput:
    """Computes L_i = r CE + a KD + w * sum over edges from frozen j and stages of mean (a_i - a_j)^2.

    a is the mean over the channels of the squared features, flattened and scaled to length 1. The larger of two
    feature maps is first pooled to the size of the other, as RepDistiller's code does.
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
    task_losses, kd_terms = kd.weighted_losses(inputs, topology, h.cross_entropy_weight, h.kd_weight, h.kd_temperature)
    return add_distillation(task_losses, [*kd_terms, *terms])


def attention(features: Float[Array, "batch height width channels"]) -> Float[Array, "batch pixels"]:
    """Computes attention vectors of length 1, one entry per pixel, in float32 at least."""
    a = jnp.mean(promote_to_float32(features) ** 2, axis=-1).reshape(features.shape[0], -1)
    square = jnp.sum(a**2, axis=-1, keepdims=True)
    return a / jnp.sqrt(jnp.maximum(square, jnp.finfo(a.dtype).tiny))


def same_size(
    a: Float[Array, "batch h_a w_a c_a"], b: Float[Array, "batch h_b w_b c_b"]
) -> tuple[Float[Array, "batch h w c_a"], Float[Array, "batch h w c_b"]]:
    """Averages the larger of two feature maps down to the other's height and width."""
    height, width = min(a.shape[1], b.shape[1]), min(a.shape[2], b.shape[2])
    return adaptive_avg_pool(a, height, width), adaptive_avg_pool(b, height, width)


def adaptive_avg_pool(
    x: Float[Array, "batch h_in w_in channels"], height: int, width: int
) -> Float[Array, "batch h w channels"]:
    """Averages to a height and width, whether or not they divide the old ones; as torch's `adaptive_avg_pool2d`.

    Row i of the result is the mean of the rows floor(i * h_in / h) to ceil((i + 1) * h_in / h) - 1.
    """
    if x.shape[1:3] == (height, width):
        return x
    rows, columns = (jnp.asarray(_pooling(*sizes), x.dtype) for sizes in ((x.shape[1], height), (x.shape[2], width)))
    return jnp.einsum("hi,wj,bijc->bhwc", rows, columns, x)


def _pooling(size: int, pooled: int) -> np.ndarray:
    """Returns the weights [pooled, size] of the means."""
    first = np.arange(pooled) * size // pooled
    end = -(-(np.arange(1, pooled + 1) * size) // pooled)
    member = (np.arange(size) >= first[:, None]) & (np.arange(size) < end[:, None])
    return member / member.sum(axis=1, keepdims=True)
