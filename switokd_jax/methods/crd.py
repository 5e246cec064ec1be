"""CRD: contrastive learning between a student's and its teacher's embeddings of the same images.

Source: Tian et al., "Contrastive Representation Distillation", ICLR 2020 (arXiv 1910.10699), eq. 11 and 18 with the
memory of its public code (HobbitLong/RepDistiller, crd/ and dataset/cifar100.py). Negatives are drawn from other
classes; here with replacement, unless that is switched off.
"""

from __future__ import annotations

import dataclasses
from typing import Any, no_type_check

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct
from jaxtyping import Array, Int

from switokd_jax import config_fields
from switokd_jax.losses import hard_labels
from switokd_jax.methods import kd
from switokd_jax.methods.base import MemoryInputs, MethodInputs, MethodOutput, add_distillation
from switokd_jax.precision import promote_to_float32
from switokd_jax.topology import Topology

EPSILON = 1e-7  # as in the public code


@dataclasses.dataclass(frozen=True)
class Hyperparameters:
    """Attributes:

    weight: weight of the two contrastive terms.
    temperature: T of the scores.
    negatives: K, number of images of other classes that are drawn for each example.
    size: dimension of the embeddings.
    momentum: weight of the old embedding in the moving average that is kept for each image.
    cross_entropy_weight: weight of the cross-entropy (RepDistiller's -r).
    kd_weight: weight of plain KD beside it (-a); 0 for none.
    kd_temperature: T of that KD.
    relaxed: whether the positive is any image of the example's class (the code's mode 'relax'), or the image itself.
    replacement: whether one image can be drawn several times as a negative. The public code draws without replacement;
      that takes a sort of all training images for each example.
    student: name of the student's feature.
    teacher: name of the teacher's feature.
    """

    weight: float = config_fields.number(0.8, low=0.0)
    temperature: float = config_fields.number(0.07, above=0.0)
    negatives: int = config_fields.integer(16384, low=1)
    size: int = config_fields.integer(128, low=1)
    momentum: float = config_fields.number(0.5, low=0.0, high=1.0)
    cross_entropy_weight: float = config_fields.number(1.0, low=0.0)
    kd_weight: float = config_fields.number(0.0, low=0.0)
    kd_temperature: float = config_fields.number(4.0, above=0.0)
    relaxed: bool = config_fields.boolean(False)
    replacement: bool = config_fields.boolean(True)
    student: str = config_fields.text("pooled")
    teacher: str = config_fields.text("pooled")


@no_type_check  # JAX also builds it from other leaves, such as ShapeDtypeStruct
@struct.dataclass
class Bank:
    """Embeddings of all training images by one of the two networks of an edge.

    Attributes:
      embeddings: [training images, size], one row per image.
      scale: scalar Z that normalizes the scores against this bank; 0 until the first batch sets it.
    """

    embeddings: jax.Array
    scale: jax.Array


@no_type_check  # JAX also builds it from other leaves, such as ShapeDtypeStruct
@struct.dataclass
class Memory:
    """State of the method between steps. Checkpoints contain these field names.

    Attributes:
      by_class: [training images] int32, indices of the images, sorted by class.
      first: [classes + 1] int32, offset of each class in `by_class`.
      banks: (student's bank, teacher's bank) by edge.
    """

    by_class: jax.Array
    first: jax.Array
    banks: dict[str, tuple[Bank, Bank]]


class Embedding(nn.Module):
    """One linear layer with L2-normalized output for each of the two networks; both are trained with the student.

    Attributes:
      size: dimension of the embeddings.
      dtype: computation dtype.
      param_dtype: parameter dtype.
    """

    size: int
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, student: jax.Array, teacher: jax.Array, *, train: bool) -> tuple[jax.Array, jax.Array]:
        """Maps features [batch, ...] of both networks to embeddings [batch, size]."""
        del train
        uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")

        def embed(name: str, x: jax.Array) -> jax.Array:
            layer = nn.Dense(self.size, kernel_init=uniform, dtype=self.dtype, param_dtype=self.param_dtype, name=name)
            return _l2_normalize(promote_to_float32(layer(x.reshape(len(x), -1))))

        return embed("student", student), embed("teacher", teacher)


def crd(inputs: MethodInputs, labels: jax.Array, topology: Topology, hyperparameters: Hyperparameters) -> MethodOutput:
    """Computes L_i = r CE + a KD + w * sum over edges from frozen j of [C(v_i, bank_j) + C(v_j, bank_i)].

    For an embedding v and the bank of the other network, with K negatives among n images and Z the first batch's
    mean of exp(v . bank / T) times n:

        P_k = exp(v . bank_k / T) / Z
        C   = - mean over the batch of [log P_0 / (P_0 + K/n) + sum over k of log (K/n) / (P_k + K/n)]

    where 0 is the image itself, or, relaxed, one of its class.
    """
    h = hyperparameters
    task_losses, terms = kd.weighted_losses(inputs, topology, h.cross_entropy_weight, h.kd_weight, h.kd_temperature)
    labels, stats, banks = hard_labels(labels), {}, {}
    for edge in topology.edges_from(inputs.frozen):
        name = str(edge)
        source = jax.lax.stop_gradient(inputs.features[edge.source][h.teacher])
        views, stats[name] = inputs.adapters[name](inputs.features[edge.learner][h.student], source)
        draw = other_classes if h.replacement else distinct_of_other_classes
        negatives = draw(inputs.keys[name], labels, h.negatives, inputs.memory)
        positives = same_class(inputs.keys[name], labels, inputs.memory) if h.relaxed else inputs.indices
        candidates = jnp.concatenate([positives[:, None], negatives], axis=1)
        student, teacher = inputs.memory.banks[name]
        student_loss, teacher_scale = _contrast(views[0], teacher, candidates, h.temperature)
        teacher_loss, student_scale = _contrast(views[1], student, candidates, h.temperature)
        terms.append((edge.learner, h.weight * edge.weight * (student_loss + teacher_loss)))
        banks[name] = (
            _update_bank(student, student_scale, views[0], inputs.indices, h.momentum),
            _update_bank(teacher, teacher_scale, views[1], inputs.indices, h.momentum),
        )
    memory = inputs.memory.replace(banks=banks)
    return add_distillation(task_losses, terms, adapter_stats=stats, memory=memory)


def init_memory(hyperparameters: Hyperparameters, inputs: MemoryInputs) -> Memory:
    """Draws random embeddings of about unit length.

    Raises:
      ValueError: if the labels of the training images are not known in advance, or are all equal; or if there are too
        few images of other classes to draw without replacement.
    """
    if inputs.labels is None:
        raise ValueError("crd keeps a memory of all training images and their classes; use data.pipeline 'resident'")
    if len(np.unique(inputs.labels)) < 2:
        raise ValueError("crd contrasts images of different classes, and all training images are of one class")
    size, labels = hyperparameters.size, inputs.labels
    fewest = len(labels) - int(np.max(np.bincount(labels)))
    if not hyperparameters.replacement and hyperparameters.negatives > fewest:
        raise ValueError(
            f"crd.negatives is {hyperparameters.negatives}, and a class has {fewest} images of others; lower it, or "
            "set crd.replacement to True"
        )

    def bank(key: jax.Array) -> Bank:
        bound = (3.0 / size) ** 0.5
        # Drawn in float32 and cast, like the initial parameters: every dtype starts from the same numbers.
        embeddings = jax.random.uniform(key, (len(labels), size), jnp.float32, -bound, bound)
        return Bank(embeddings.astype(float), jnp.zeros((), float))

    pairs = {edge: jax.random.split(key) for edge, key in inputs.keys.items()}
    return Memory(
        by_class=jnp.asarray(np.argsort(labels, kind="stable"), jnp.int32),
        first=jnp.asarray(np.concatenate([[0], np.cumsum(np.bincount(labels))]), jnp.int32),
        banks={edge: (bank(keys[0]), bank(keys[1])) for edge, keys in pairs.items()},
    )


def embedding(hyperparameters: Hyperparameters) -> Any:
    """Returns the function that creates an edge's adapter (see `FeatureSpec.adapter`)."""

    def make(student: tuple[int, ...], teacher: tuple[int, ...], **dtypes: Any) -> Embedding:
        del student, teacher  # linear layers accept features of any shape
        return Embedding(hyperparameters.size, **dtypes)

    return make


def other_classes(
    key: jax.Array, labels: Int[Array, " batch"], count: int, memory: Memory
) -> Int[Array, "batch {count}"]:
    """Draws for each example the indices of `count` images of other classes, uniformly and with replacement."""
    begin, end = memory.first[labels][:, None], memory.first[labels + 1][:, None]
    others = len(memory.by_class) - (end - begin)
    # Positions in `by_class` with the example's own class cut out.
    position = jax.random.randint(key, (len(labels), count), 0, others, jnp.int32)
    return memory.by_class[jnp.where(position < begin, position, position + end - begin)]


def distinct_of_other_classes(
    key: jax.Array, labels: Int[Array, " batch"], count: int, memory: Memory
) -> Int[Array, "batch {count}"]:
    """Draws likewise, but without replacement: the images of the `count` largest random numbers."""
    class_of_position = jnp.searchsorted(memory.first, jnp.arange(len(memory.by_class)), side="right") - 1

    def draw(key: jax.Array, label: jax.Array) -> jax.Array:
        numbers = jax.random.uniform(key, class_of_position.shape, jnp.float32)  # the same draws in float64 runs
        _, positions = jax.lax.top_k(jnp.where(class_of_position == label, -1.0, numbers), count)
        return memory.by_class[positions]

    return jax.vmap(draw)(jax.random.split(key, len(labels)), labels)


def same_class(key: jax.Array, labels: Int[Array, " batch"], memory: Memory) -> Int[Array, " batch"]:
    """Draws for each example the index of an image of its class, perhaps itself."""
    begin, end = memory.first[labels], memory.first[labels + 1]
    key = jax.random.fold_in(key, 1)  # `key` itself draws the negatives
    return memory.by_class[jax.random.randint(key, begin.shape, begin, end, jnp.int32)]


def _contrast(view: jax.Array, bank: Bank, candidates: jax.Array, temperature: float) -> tuple[jax.Array, jax.Array]:
    """Returns C (see `crd`), a scalar, and Z."""
    images, negatives = len(bank.embeddings), candidates.shape[1] - 1
    # Computes all scores and gathers scalars: gathering embeddings first takes [batch, K + 1, size], half a GiB.
    scores = view @ bank.embeddings.T / temperature
    raw = jnp.exp(jnp.take_along_axis(scores, candidates, axis=1))
    scale = jnp.where(bank.scale > 0, bank.scale, jax.lax.stop_gradient(jnp.mean(raw)) * images)
    p, noise = raw / scale, negatives / images
    positive = jnp.log(p[:, 0] / (p[:, 0] + noise + EPSILON))
    negative = jnp.sum(jnp.log(noise / (p[:, 1:] + noise + EPSILON)), axis=1)
    return -jnp.mean(positive + negative), scale


def _update_bank(bank: Bank, scale: jax.Array, view: jax.Array, indices: jax.Array, momentum: float) -> Bank:
    average = momentum * bank.embeddings[indices] + (1.0 - momentum) * jax.lax.stop_gradient(view)
    return Bank(bank.embeddings.at[indices].set(_l2_normalize(average)), scale)


def _l2_normalize(x: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x**2, axis=-1, keepdims=True), 1e-24))
