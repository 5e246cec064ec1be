"""Per-example losses on logits. Every function returns [batch] in float32 at least.

The cross-entropy is our own: optax's with integer labels computes logsumexp(z) - z_y, which rounds differently from
log_softmax, so that runs would no longer repeat to the last bit. optax smooths one-hot labels only.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from switokd_jax.precision import promote_to_float32


def cross_entropy(
    logits: Float[Array | np.ndarray, "batch classes"],
    labels: Int[Array | np.ndarray, " batch"],
    label_smoothing: float = 0.0,
) -> Float[Array, " batch"]:
    """Computes the cross-entropy with integer labels.

    With label smoothing s the target is (1 - s) onehot + s / classes, as in torch.nn.CrossEntropyLoss.

    >>> loss = cross_entropy(jnp.log(jnp.asarray([[0.25, 0.75]])), jnp.asarray([1]))
    >>> print(f"{loss[0]:.4f}")  # -log 0.75
    0.2877
    """
    log_p = jax.nn.log_softmax(promote_to_float32(logits))
    nll = -jnp.take_along_axis(log_p, labels[:, None], axis=-1)[:, 0]
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
