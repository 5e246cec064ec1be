"""CRD: a student's embedding tells its teacher's view of an image from those of thousands of other images.

Source: Tian et al., "Contrastive Representation Distillation", ICLR 2020 (arXiv 1910.10699), eq. 11 and 18 with the
memory of its public code (HobbitLong/RepDistiller, crd/): negatives come from other classes, here with replacement.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct

from switokd_jax import config_fields
from switokd_jax.methods.base import MemoryInputs, MethodInputs, MethodOutput
from switokd_jax.precision import promote_to_float32
from switokd_jax.topology import Topology

EPSILON = 1e-7  # the public code's


@dataclasses.dataclass(frozen=True)
class Hyperparameters:
    """Attributes:

    weight: of the two contrastive terms.
    temperature: T of the scores.
    negatives: K, drawn for each example from the images of other classes.
    size: of the embeddings.
    momentum: share of its old value that an embedding in the memory keeps when its image comes up.
    student: the tapped feature of the student.
    teacher: of the teacher.
    """

    weight: float = config_fields.number(0.8, low=0.0)
    temperature: float = config_fields.number(0.07, above=0.0)
    negatives: int = config_fields.integer(16384, low=1)
    size: int = config_fields.integer(128, low=1)
    momentum: float = config_fields.number(0.5, low=0.0, high=1.0)
    student: str = config_fields.text("pooled")
    teacher: str = config_fields.text("pooled")


@struct.dataclass
class Bank:
    """What is kept of one network along an edge.

    Attributes:
      embeddings: [training images, size], a row for each image.
      scale: Z of this bank's scores, scalar; 0 until the first batch sets it.
    """

    embeddings: jax.Array
    scale: jax.Array


@struct.dataclass
class Memory:
    """Attributes:

    by_class: [training images] int32, all images, class after class.
    first: [classes + 1] int32, where each class begins there.
    banks: by edge, the student's and the teacher's.
    """

    by_class: jax.Array
    first: jax.Array
    banks: dict[str, tuple[Bank, Bank]]


class Embedding(nn.Module):
    """A linear layer to unit length for each of the two networks; both learn with the student."""

    size: int
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, student: jax.Array, teacher: jax.Array, *, train: bool) -> tuple[jax.Array, jax.Array]:
        """Features [batch, ...] of both networks to embeddings [batch, size]."""
        del train
        uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")

        def embed(name: str, x: jax.Array) -> jax.Array:
            layer = nn.Dense(self.size, kernel_init=uniform, dtype=self.dtype, param_dtype=self.param_dtype, name=name)
            return _unit(promote_to_float32(layer(x.reshape(len(x), -1))))

        return embed("student", student), embed("teacher", teacher)


def crd(outputs: MethodInputs, labels: jax.Array, topology: Topology, hyperparameters: Hyperparameters) -> MethodOutput:
    """L_i = CE + w * sum over edges from frozen j of [C(v_i, bank_j) + C(v_j, bank_i)], v the embeddings.

    For an embedding v and the bank of the other network, with K negatives among n images and Z the first batch's
    mean of exp(v . bank / T) times n:

        P_k = exp(v . bank_k / T) / Z
        C   = - mean over the batch of [log P_0 / (P_0 + K/n) + sum over k of log (K/n) / (P_k + K/n)]

    where 0 is the image itself.
    """
    h = hyperparameters
    losses, stats, banks = dict(outputs.cross_entropy), {}, {}
    for edge in topology.edges_from(outputs.frozen):
        name = str(edge)
        source = jax.lax.stop_gradient(outputs.features[edge.source][h.teacher])
        views, stats[name] = outputs.adapters[name](outputs.features[edge.learner][h.student], source)
        negatives = other_classes(outputs.keys[name], labels, h.negatives, outputs.memory)
        candidates = jnp.concatenate([outputs.indices[:, None], negatives], axis=1)
        student, teacher = outputs.memory.banks[name]
        of_student, teacher_scale = _contrast(views[0], teacher, candidates, h.temperature)
        of_teacher, student_scale = _contrast(views[1], student, candidates, h.temperature)
        losses[edge.learner] += h.weight * edge.weight * (of_student + of_teacher)
        banks[name] = (
            _remember(student, student_scale, views[0], outputs.indices, h.momentum),
            _remember(teacher, teacher_scale, views[1], outputs.indices, h.momentum),
        )
    return MethodOutput(losses, adapter_stats=stats, memory=outputs.memory.replace(banks=banks))


def init_memory(hyperparameters: Hyperparameters, given: MemoryInputs) -> Memory:
    """Random embeddings of about unit length.

    Raises:
      ValueError: where the labels of the training images are not known beforehand, or are all the same.
    """
    if given.labels is None:
        raise ValueError("crd keeps a memory of all training images and their classes; use data.pipeline 'resident'")
    if len(np.unique(given.labels)) < 2:
        raise ValueError("crd contrasts images of different classes, and all training images are of one")
    size, labels = hyperparameters.size, given.labels

    def bank(key: jax.Array) -> Bank:
        bound = (3.0 / size) ** 0.5
        # Drawn in float32 and cast, as the networks' own weights are.
        drawn = jax.random.uniform(key, (len(labels), size), jnp.float32, -bound, bound)
        return Bank(drawn.astype(float), jnp.zeros((), float))

    pairs = {edge: jax.random.split(key) for edge, key in given.keys.items()}
    return Memory(
        by_class=jnp.asarray(np.argsort(labels, kind="stable"), jnp.int32),
        first=jnp.asarray(np.concatenate([[0], np.cumsum(np.bincount(labels))]), jnp.int32),
        banks={edge: (bank(keys[0]), bank(keys[1])) for edge, keys in pairs.items()},
    )


def embedding(hyperparameters: Hyperparameters) -> Any:
    """The maker of the edges' adapters."""

    def make(student: tuple[int, ...], teacher: tuple[int, ...], **kinds: Any) -> Embedding:
        del student, teacher  # linear layers take any
        return Embedding(hyperparameters.size, **kinds)

    return make


def other_classes(key: jax.Array, labels: jax.Array, count: int, memory: Memory) -> jax.Array:
    """Uniform draws [batch, count] int32, with replacement, of images of other classes than labels [batch]."""
    begin, end = memory.first[labels][:, None], memory.first[labels + 1][:, None]
    others = len(memory.by_class) - (end - begin)
    place = jax.random.randint(key, (len(labels), count), 0, others, jnp.int32)
    return memory.by_class[jnp.where(place < begin, place, place + end - begin)]


def _contrast(view: jax.Array, bank: Bank, candidates: jax.Array, temperature: float) -> tuple[jax.Array, jax.Array]:
    """C of the docstring above, and Z."""
    images, negatives = len(bank.embeddings), candidates.shape[1] - 1
    # All scores and then a choice of scalars: a choice of embeddings would be [batch, K + 1, size], half a GiB.
    scores = view @ bank.embeddings.T / temperature
    raw = jnp.exp(jnp.take_along_axis(scores, candidates, axis=1))
    scale = jnp.where(bank.scale > 0, bank.scale, jax.lax.stop_gradient(jnp.mean(raw)) * images)
    p, noise = raw / scale, negatives / images
    positive = jnp.log(p[:, 0] / (p[:, 0] + noise + EPSILON))
    negative = jnp.sum(jnp.log(noise / (p[:, 1:] + noise + EPSILON)), axis=1)
    return -jnp.mean(positive + negative), scale


def _remember(bank: Bank, scale: jax.Array, view: jax.Array, indices: jax.Array, momentum: float) -> Bank:
    kept = momentum * bank.embeddings[indices] + (1.0 - momentum) * jax.lax.stop_gradient(view)
    return Bank(bank.embeddings.at[indices].set(_unit(kept)), scale)


def _unit(x: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x**2, axis=-1, keepdims=True), 1e-24))
