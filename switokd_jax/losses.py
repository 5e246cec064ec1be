"""Per-example losses on logits, in float32 at least.

Labels are [batch] integer classes, or [batch, classes] probabilities where images are mixed (`config.data.mix`), as in
torch.nn.CrossEntropyLoss.

The cross-entropy is our own: optax's with integer labels computes logsumexp(z) - z_y, which rounds differently from
log_softmax, so that runs would no longer repeat to the last bit. optax smooths one-hot labels only.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from switokd_jax.precision import promote_to_float32

Labels = Int[Array | np.ndarray, " batch"] | Float[Array | np.ndarray, "batch classes"]


def hard_labels(labels: Labels) -> Int[Array, " batch"]:
    """Returns integer labels as they are, and of probabilities the likeliest class."""
    return jnp.asarray(labels) if labels.ndim == 1 else jnp.argmax(labels, axis=-1)


def class_probabilities(labels: Labels, num_classes: int, dtype: Any) -> Float[Array, "batch classes"]:
    """Returns probabilities as they are, and integer labels as one-hot vectors."""
    return jax.nn.one_hot(labels, num_classes, dtype=dtype) if labels.ndim == 1 else jnp.asarray(labels, dtype)


def value_at_labels(values: Float[Array, "*stack batch classes"], labels: Labels) -> Float[Array, "*stack batch"]:
    """Selects each example's value at its label; with probabilities it is the mean of the values under them."""
    if labels.ndim == 2:
        return jnp.sum(labels * values, axis=-1)
    index = jnp.expand_dims(labels, (*range(values.ndim - 2), -1))
    return jnp.take_along_axis(values, index, axis=-1)[..., 0]


def cross_entropy(
    logits: Float[Array | np.ndarray, "batch classes"], labels: Labels, label_smoothing: float = 0.0
) -> Float[Array, " batch"]:
    """Computes the cross-entropy with labels, [batch].

    With label smoothing s the target is (1 - s) label + s / classes, as in torch.nn.CrossEntropyLoss.

    >>> loss = cross_entropy(jnp.log(jnp.asarray([[0.25, 0.75]])), jnp.asarray([1]))
    >>> print(f"{loss[0]:.4f}")  # -log 0.75
    0.2877
    """
    log_p = jax.nn.log_softmax(promote_to_float32(logits))
    nll = -value_at_labels(log_p, labels)
    if label_smoothing == 0.0:
        return nll
    return (1.0 - label_smoothing) * nll - label_smoothing * jnp.mean(log_p, axis=-1)


def kl_divergence(
    target_logits: Float[Array | np.ndarray, "batch classes"],
    logits: Float[Array | np.ndarray, "batch classes"],
    temperature: float = 1.0,
) -> Float[Array, " batch"]:
    """Computes KL(p || q) with p = softmax(target_logits / tau), q = softmax(logits / tau); not multiplied by tau^2.

    No gradient flows into the target: in online distillation a network's loss must not change other networks.

    >>> p, q = jnp.log(jnp.asarray([[0.5, 0.5]])), jnp.log(jnp.asarray([[0.25, 0.75]]))
    >>> print(f"{kl_divergence(p, q)[0]:.4f}")  # 0.5 log 2 + 0.5 log (2 / 3)
    0.1438
    """
    return joint_kl_divergence(jax.lax.stop_gradient(target_logits), logits, temperature)


def mean_kl_divergence(
    target_logits: Float[Array | np.ndarray, "batch classes"],
    logits: Float[Array | np.ndarray, "batch classes"],
    temperature: float,
) -> Float[Array, ""]:
    """Computes tau^2 times the mean `kl_divergence` of a batch, whose gradients do not shrink with tau."""
    return temperature**2 * jnp.mean(kl_divergence(target_logits, logits, temperature))


def joint_kl_divergence(
    target_logits: Float[Array | np.ndarray, "batch classes"],
    logits: Float[Array | np.ndarray, "batch classes"],
    temperature: float = 1.0,
) -> Float[Array, " batch"]:
    """Computes the `kl_divergence` with a gradient at the target, too, for methods that are `joint`."""
    log_p = jax.nn.log_softmax(promote_to_float32(target_logits) / temperature)
    log_q = jax.nn.log_softmax(promote_to_float32(logits) / temperature)
    return optax.losses.kl_divergence_with_log_targets(log_q, log_p)
