"""KDCL: all networks learn from one soft target that combines the logits of all.

Source: Guo et al., "Online Knowledge Distillation via Collaborative Learning", CVPR 2020, section 3. With
logits z_i of N networks, p_i = softmax(z_i / tau) and the true class y, the target of each example is:

    naive     the logits of the network with the lowest cross-entropy
    linear    sum of a_i z_i, where a on the simplex minimizes the cross-entropy
    minlogit  min over i of (z_i,c - z_i,y), for every class c
    general   sum of w_i p_i, where w on the simplex minimizes w' C w, and C is the correlation of the networks' errors
              1 - p_i(y) on held-out data, at tau = 1
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from switokd_jax import config_fields
from switokd_jax.losses import Labels, cross_entropy, kl_divergence, value_at_labels
from switokd_jax.methods.base import MemoryInputs, MethodInputs, MethodOutput, add_distillation
from switokd_jax.precision import promote_to_float32
from switokd_jax.topology import Topology


@dataclasses.dataclass(frozen=True)
class Hyperparameters:
    """Attributes:

    target: rule for the soft target, see above; 'minlogit' is the baseline of SwitOKD's tables. 'general' needs
      data.validation_fraction above 0 and computes new weights at each evaluation.
    temperature: tau of the softened distributions, above 0.
    weight: lambda, weight of the distillation term.
    steps: number of projected-gradient steps of 'linear'.
    """

    target: str = config_fields.choice("minlogit", "naive", "linear", "minlogit", "general")
    temperature: float = config_fields.number(2.0, above=0.0)
    weight: float = config_fields.number(1.0, low=0.0)
    steps: int = config_fields.integer(50, low=1)


def kdcl(inputs: MethodInputs, labels: jax.Array, topology: Topology, hyperparameters: Hyperparameters) -> MethodOutput:
    """Computes L_i = CE(z_i, y) + lambda tau^2 KL(sg softmax(target / tau) || p_i)."""
    tau = hyperparameters.temperature
    weight = hyperparameters.weight * tau**2
    z = jnp.stack([promote_to_float32(jax.lax.stop_gradient(inputs.logits[node])) for node in topology.nodes])
    if hyperparameters.target == "naive":
        target = naive(z, labels)
    elif hyperparameters.target == "linear":
        target = linear(z, labels, hyperparameters.steps)
    elif hyperparameters.target == "minlogit":
        target = minlogit(z, labels)
    else:
        target = general(z, inputs.memory, tau)
    terms = [(node, weight * jnp.mean(kl_divergence(target, inputs.logits[node], tau))) for node in topology.nodes]
    return add_distillation(inputs.cross_entropy, terms)


def naive(z: Float[Array, "networks batch classes"], labels: Labels) -> Float[Array, "batch classes"]:
    """Selects for each example the logits of the network with the lowest cross-entropy."""
    best = jnp.argmin(jax.vmap(cross_entropy, (0, None))(z, labels), axis=0)
    return jnp.take_along_axis(z, best[None, :, None], axis=0)[0]


def minlogit(z: Float[Array, "networks batch classes"], labels: Labels) -> Float[Array, "batch classes"]:
    """Computes the minimum over the networks i of z_i,c - z_i,y.

    >>> minlogit(jnp.asarray([[[1.0, 3.0]], [[2.0, 0.0]]]), jnp.asarray([0])).tolist()
    [[0.0, -2.0]]
    """
    return jnp.min(_relative(z, labels), axis=0)


def linear(z: Float[Array, "networks batch classes"], labels: Labels, steps: int) -> Float[Array, "batch classes"]:
    """Computes for each example the convex combination of logits with the lowest cross-entropy.

    The cross-entropy is convex in the weights. With r_i the range of z_i over the classes, its second derivative is at
    most sum r_i^2 / 4 (a variance is at most a quarter of the squared range). This bounds the step size of Nesterov's
    accelerated projected gradient (Beck and Teboulle 2009).
    """
    u = jnp.moveaxis(_relative(z, labels), 1, 0)  # [batch, n, c]

    def solve(example: jax.Array) -> jax.Array:
        ranges = jnp.max(example, axis=-1) - jnp.min(example, axis=-1)
        step = 4.0 / jnp.maximum(jnp.sum(ranges**2), 1e-6)

        def improve(_: jax.Array, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            a, lookahead, t = state
            gradient = example @ jax.nn.softmax(lookahead @ example)
            new_a = optax.projections.projection_simplex(lookahead - step * gradient)
            new_t = (1.0 + jnp.sqrt(1.0 + 4.0 * t**2)) / 2.0
            return new_a, new_a + (t - 1.0) / new_t * (new_a - a), new_t

        uniform = jnp.full(len(example), 1.0 / len(example), example.dtype)
        init = (uniform, uniform, jnp.ones((), example.dtype))
        return jax.lax.fori_loop(0, steps, improve, init)[0] @ example

    return jax.vmap(solve)(u)


def general(
    z: Float[Array, "networks batch classes"], weights: Float[Array, " networks"], temperature: float
) -> Float[Array, "batch classes"]:
    """Computes logits whose softmax at the temperature is the weighted mean of the networks' probabilities there."""
    log_p = jax.nn.log_softmax(z / temperature, axis=-1)
    mean = jax.scipy.special.logsumexp(log_p, axis=0, b=weights.astype(z.dtype)[:, None, None])
    return temperature * mean


def init_memory(hyperparameters: Hyperparameters, inputs: MemoryInputs) -> Float[Array, " networks"] | None:
    """Returns equal float32 weights for 'general', used until the first evaluation; None for the other targets."""
    count = len(inputs.nodes)
    return jnp.full(count, 1.0 / count, jnp.float32) if hyperparameters.target == "general" else None


def update_memory_at_eval(hyperparameters: Hyperparameters) -> Callable[[jax.Array], jax.Array] | None:
    """Returns `general_weights` for 'general', None for the other targets."""
    return general_weights if hyperparameters.target == "general" else None


def general_weights(correlation: Float[Array, "networks networks"]) -> Float[Array, " networks"]:
    """Computes the weights in [0, 1], of sum 1, with the least w' C w; float32. Runs on the host.

    w is v / sum(v) for the v >= 0 that minimizes v' C v / 2 - sum(v), a problem of non-negative least squares. A
    thousandth of the mean variance is added to the diagonal, because networks with equal outputs make C singular.

    Args:
      correlation: C, the correlation of the networks' errors.
    """
    c = np.asarray(correlation, np.float64)
    ridge = 1e-3 * np.trace(c) / len(c) + np.finfo(np.float32).tiny
    lower = np.linalg.cholesky(c + ridge * np.eye(len(c)))
    from scipy.optimize import nnls  # a third of a second, which every command would pay

    v, _ = nnls(lower.T, np.linalg.solve(lower, np.ones(len(c))))
    return jnp.asarray(v / v.sum(), jnp.float32)


def _relative(z: jax.Array, labels: Labels) -> jax.Array:
    """Subtracts the label's logit from the logits, which leaves the softmax unchanged."""
    return z - value_at_labels(z, labels)[..., None]
