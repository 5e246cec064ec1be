"""MCL: images of one class are drawn together within and across the embeddings of all networks.

Source: Yang et al., "Mutual Contrastive Learning for Visual Representation Learning", AAAI 2022 (arXiv 2104.12565),
equations 2 to 9, with labels as in its public code (winycg/MCL, losses/cifar_sup_mcl_loss.py). That code draws two
images of one class at a time for a batch, as `data.sampler='class_pairs'` does; an image that is alone of its class has
no contrastive loss.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from switokd_jax import config_fields
from switokd_jax.losses import hard_labels, mean_kl_divergence
from switokd_jax.methods.base import (
    MethodInputs,
    MethodOutput,
    Shapes,
    TrainedModule,
    add_distillation,
    stack_logits,
)
from switokd_jax.precision import promote_to_float32
from switokd_jax.topology import Topology


@dataclasses.dataclass(frozen=True)
class Hyperparameters:
    """Attributes:

    vcl: weight of the contrastive loss within a network ("vanilla").
    soft_vcl: weight of the divergence between two networks' similarities.
    icl: weight of the contrastive loss across networks ("interactive").
    soft_icl: weight of the divergence between similarities across networks.
    logits: weight of the divergence from the mean logits of all networks.
    tau: temperature of the similarities, above 0.
    temperature: T of all divergences, above 0.
    size: dimension of the embeddings.
    """

    vcl: float = config_fields.number(0.1, low=0.0)
    soft_vcl: float = config_fields.number(1.0, low=0.0)
    icl: float = config_fields.number(0.1, low=0.0)
    soft_icl: float = config_fields.number(1.0, low=0.0)
    logits: float = config_fields.number(1.0, low=0.0)
    tau: float = config_fields.number(0.07, above=0.0)
    temperature: float = config_fields.number(3.0, above=0.0)
    size: int = config_fields.integer(128, low=1)


class Embedding(nn.Module):
    """Two linear layers with a ReLU between them, and L2 normalization.

    Attributes:
      size: dimension of the embedding.
      dtype: computation dtype.
      param_dtype: parameter dtype.
    """

    size: int
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps features [batch, channels] to unit vectors [batch, size]."""
        del train
        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = nn.relu(nn.Dense(self.size, name="linear1", **dtypes)(x))
        x = promote_to_float32(nn.Dense(self.size, name="linear2", **dtypes)(x))
        return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x**2, axis=-1, keepdims=True), 1e-24))


def mcl(inputs: MethodInputs, labels: jax.Array, topology: Topology, hyperparameters: Hyperparameters) -> MethodOutput:
    """Computes L_i = CE + logits D(mean z, z_i) + vcl C(S_ii) + sum over j != i of R_ij, with

        R_ij = soft_vcl D(S_jj, S_ii) + icl C(S_ij) + soft_icl D(S_ji, S_ij)

    S_ij: [batch, batch] = v_i v_j' / tau, for embeddings v of the pooled features.
    C: `contrast`, where a mixed image is of its likeliest class.
    D(a, b) = T^2 KL(sg softmax(a / T) || softmax(b / T)), the mean over rows.
    """
    h, nodes, labels = hyperparameters, topology.nodes, hard_labels(labels)
    embeddings = {node: inputs.adapters[f"{node}/embedding"](inputs.features[node]["pooled"])[0] for node in nodes}
    similarity = {(i, j): embeddings[i] @ embeddings[j].T / h.tau for i, j in itertools.product(nodes, nodes)}
    mean_logits = jnp.mean(stack_logits(inputs, nodes), axis=0)

    terms = []
    for i in nodes:
        from_mean = mean_kl_divergence(mean_logits, inputs.logits[i], h.temperature)
        term = h.vcl * contrast(similarity[i, i], labels) + h.logits * from_mean
        for j in nodes:
            if j != i:
                term += h.soft_vcl * mean_kl_divergence(similarity[j, j], similarity[i, i], h.temperature)
                term += h.icl * contrast(similarity[i, j], labels)
                term += h.soft_icl * mean_kl_divergence(similarity[j, i], similarity[i, j], h.temperature)
        terms.append((i, term))
    return add_distillation(inputs.cross_entropy, terms)


def contrast(similarity: Float[Array, "batch batch"], labels: Int[Array, " batch"]) -> Float[Array, ""]:
    """Computes the supervised InfoNCE loss: minus the log-softmax of the positives over the batch without the anchor.

    The positives of an anchor are the other images of its class. Takes their mean, then that of the anchors with
    positives; 0 if no image has any.
    """
    others = 1.0 - jnp.eye(len(labels), dtype=similarity.dtype)
    positives = (labels[:, None] == labels[None, :]) * others
    log_total = jax.scipy.special.logsumexp(similarity, axis=1, keepdims=True, b=others)
    counts = jnp.sum(positives, axis=1)
    of_image = jnp.sum(positives * (similarity - log_total), axis=1) / jnp.maximum(counts, 1.0)
    return -jnp.sum(of_image) / jnp.maximum(jnp.sum(counts > 0), 1)


def embeddings(size: int, topology: Topology, shapes: Mapping[str, Shapes], **dtypes: Any) -> dict[str, TrainedModule]:
    """Creates an embedding for each network, which is trained with it."""
    return {
        f"{node}/embedding": TrainedModule(Embedding(size, **dtypes), (shapes[node]["pooled"],), node)
        for node in topology.nodes
    }
