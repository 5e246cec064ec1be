"""KDCL: all networks learn from one soft target made of what they all said.

Source: Guo et al., "Online Knowledge Distillation via Collaborative Learning", CVPR 2020, section 3. With
logits z_i of N networks and the true class y, the target is made per example:

    naive     the logits of the network with the lowest cross-entropy
    linear    sum of a_i z_i, a on the simplex, minimising the cross-entropy
    minlogit  min over i of (z_i,c - z_i,y), for every class c
    general   sum of w_i z_i, w proportional to C^-1 1, C the correlation of the networks' errors on held-out data
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from switokd_jax import config_fields
from switokd_jax.losses import cross_entropy, kl_divergence
from switokd_jax.methods.base import MemoryInputs, MethodInputs, MethodOutput
from switokd_jax.precision import promote_to_float32
from switokd_jax.topology import Topology


@dataclasses.dataclass(frozen=True)
class Hyperparameters:
    """Attributes:

    target: how the soft target is made; 'minlogit' is the baseline of SwitOKD's tables. 'general' needs
      data.validation_fraction above 0 and takes new weights at each evaluation.
    temperature: tau of the softened distributions, above 0.
    steps: projected-gradient steps of 'linear'.
    """

    target: str = config_fields.choice("minlogit", "naive", "linear", "minlogit", "general")
    temperature: float = config_fields.number(2.0, above=0.0)
    steps: int = config_fields.integer(50, low=1)


def kdcl(
    outputs: MethodInputs, labels: jax.Array, topology: Topology, hyperparameters: Hyperparameters
) -> MethodOutput:
    """L_i = CE(z_i, y) + tau^2 KL(sg softmax(target / tau) || p_i)."""
    tau = hyperparameters.temperature
    z = jnp.stack([promote_to_float32(jax.lax.stop_gradient(outputs.logits[node])) for node in topology.nodes])
    if hyperparameters.target == "naive":
        target = naive(z, labels)
    elif hyperparameters.target == "linear":
        target = linear(z, labels, hyperparameters.steps)
    elif hyperparameters.target == "minlogit":
        target = minlogit(z, labels)
    else:
        target = jnp.einsum("n,nbc->bc", outputs.memory.astype(z.dtype), z)
    losses = dict(outputs.cross_entropy)
    for node in topology.nodes:
        losses[node] += tau**2 * jnp.mean(kl_divergence(target, outputs.logits[node], tau))
    return MethodOutput(losses)


def naive(z: jax.Array, labels: jax.Array) -> jax.Array:
    """Per example the logits of the network with the lowest cross-entropy: [n, batch, c] to [batch, c]."""
    best = jnp.argmin(jax.vmap(cross_entropy, (0, None))(z, labels), axis=0)
    return jnp.take_along_axis(z, best[None, :, None], axis=0)[0]


def minlogit(z: jax.Array, labels: jax.Array) -> jax.Array:
    """min over networks of (z_i,c - z_i,y): [n, batch, c] to [batch, c]."""
    return jnp.min(_relative(z, labels), axis=0)


def linear(z: jax.Array, labels: jax.Array, steps: int) -> jax.Array:
    """The mixture on the simplex with the lowest cross-entropy: [n, batch, c] to [batch, c].

    Convex in the mixture; with r_i the range of z_i over the classes its second derivative is at most
    sum r_i^2 / 4 (a variance is at most a quarter of the squared range), which bounds the step of Nesterov's
    accelerated projected gradient (Beck and Teboulle 2009).
    """
    u = jnp.moveaxis(_relative(z, labels), 1, 0)  # [batch, n, c]

    def solve(example: jax.Array) -> jax.Array:
        ranges = jnp.max(example, axis=-1) - jnp.min(example, axis=-1)
        step = 4.0 / jnp.maximum(jnp.sum(ranges**2), 1e-6)

        def improve(_: int, state: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
            a, ahead, t = state
            moved = optax.projections.projection_simplex(ahead - step * (example @ jax.nn.softmax(ahead @ example)))
            later = (1.0 + jnp.sqrt(1.0 + 4.0 * t**2)) / 2.0
            return moved, moved + (t - 1.0) / later * (moved - a), later

        even = jnp.full(len(example), 1.0 / len(example), example.dtype)
        first = (even, even, jnp.ones((), example.dtype))
        return jax.lax.fori_loop(0, steps, improve, first)[0] @ example

    return jax.vmap(solve)(u)


def init_memory(hyperparameters: Hyperparameters, given: MemoryInputs) -> jax.Array | None:
    """The weights of 'general' before the first look at held-out data: [n] float32, all equal."""
    count = len(given.nodes)
    return jnp.full(count, 1.0 / count, jnp.float32) if hyperparameters.target == "general" else None


def update_memory_at_eval(hyperparameters: Hyperparameters) -> Callable[[jax.Array], jax.Array] | None:
    """'general' takes new weights at each evaluation."""
    return general_weights if hyperparameters.target == "general" else None


def general_weights(correlation: jax.Array) -> jax.Array:
    """w = C^-1 1 / (1' C^-1 1): the mixture with the least squared error, if errors correlate as C [n, n].

    A thousandth of the mean variance is added to the diagonal: two networks that say the same would leave no
    inverse.
    """
    size = correlation.shape[0]
    ridge = 1e-3 * jnp.trace(correlation) / size + jnp.finfo(correlation.dtype).tiny
    w = jnp.linalg.solve(correlation + ridge * jnp.eye(size, dtype=correlation.dtype), jnp.ones(size))
    return (w / jnp.sum(w)).astype(jnp.float32)


def _relative(z: jax.Array, labels: jax.Array) -> jax.Array:
    """Logits less that of the true class: the same distribution."""
    return z - jnp.take_along_axis(z, labels[None, :, None], axis=-1)
