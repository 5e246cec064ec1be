"""Per-example losses on logits. Every function returns [batch] in float32 at least."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from switokd_jax.precision import promote_to_float32


def cross_entropy(logits: jax.Array, labels: jax.Array, label_smoothing: float = 0.0) -> jax.Array:
    """Cross-entropy of logits [batch, classes] with integer labels [batch].

    With smoothing s the target is (1 - s) onehot + s / classes, as in torch.nn.CrossEntropyLoss.
    """
    log_p = jax.nn.log_softmax(promote_to_float32(logits))
    nll = -jnp.take_along_axis(log_p, labels[:, None], axis=-1)[:, 0]
    if label_smoothing == 0.0:
        return nll
    return (1.0 - label_smoothing) * nll - label_smoothing * jnp.mean(log_p, axis=-1)


def kl_divergence(target_logits: jax.Array, logits: jax.Array, temperature: float = 1.0) -> jax.Array:
    """KL(p || q) with p = softmax(sg target_logits / tau), q = softmax(logits / tau); both [batch, classes].

    The target carries no gradient: in online distillation each network learns from what the others said,
    and never pushes them. Not multiplied by tau^2.
    """
    target = promote_to_float32(jax.lax.stop_gradient(target_logits)) / temperature
    log_p = jax.nn.log_softmax(target)
    log_q = jax.nn.log_softmax(promote_to_float32(logits) / temperature)
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)
