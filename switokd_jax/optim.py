"""Learning-rate schedules on the global step, and one optax chain per network without its rate.

The rate stays outside the chain: inside, it would count the network's own updates, and a paused teacher
would stretch its schedule. torch's SGD is buf = m * buf + (g + wd * p); p -= lr * buf: decay goes in before
the trace and the rate scales after it. torch's Adam adds L2 to the gradient; AdamW decays apart.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from switokd_jax import config

Schedule = Callable[[jax.Array], jax.Array]


def schedule(network: config.NetworkConfig, steps_per_epoch: int, total_steps: int) -> Schedule:
    """Learning rate [scalar float] of a global step [int32], counted from 0."""
    warmup = round(network.warmup_epochs * steps_per_epoch)
    starts = [round((milestone - 1) * steps_per_epoch) for milestone in network.milestones]

    def rate(step: jax.Array) -> jax.Array:
        now = jnp.asarray(step, jnp.int32)
        if network.schedule == "cosine":
            done = (now - warmup) / max(total_steps - warmup, 1)
            factor = 0.5 * (1.0 + jnp.cos(jnp.pi * jnp.clip(done, 0.0, 1.0)))
        elif network.schedule == "multistep":
            passed = sum(((now >= start).astype(jnp.int32) for start in starts), jnp.int32(0))
            factor = jnp.asarray(network.decay) ** passed
        else:
            factor = jnp.ones(())
        if warmup:
            factor = jnp.where(now < warmup, (now + 1) / warmup, factor)
        return network.learning_rate * factor

    return rate


def optimizer(network: config.NetworkConfig) -> optax.GradientTransformation:
    """Gradients to steps that the learning rate still has to scale and subtract."""
    decay = optax.add_decayed_weights(network.weight_decay, None if network.decay_bn_bias else kernels)
    inner = {
        "sgd": [decay, optax.trace(network.momentum)],
        "adam": [decay, optax.scale_by_adam()],
        "adamw": [optax.scale_by_adam(), decay],
    }[network.optimizer]
    clip = [optax.clip_by_global_norm(network.clip_norm)] if network.clip_norm else []
    return optax.chain(*clip, *inner)


def kernels(params: Any) -> Any:
    """True for the kernels of convolutions and linear layers, False for norms and biases."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)
