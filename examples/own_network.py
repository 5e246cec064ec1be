"""An own network as the student: a small perceptron with one hidden layer.

python -m switokd_jax.main --config=examples/own_network.py --workdir=runs/own_network
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict

from switokd_jax import config
from switokd_jax.models import MODELS, layers


class Perceptron(nn.Module):
    """Images, a hidden layer, logits. `create` gives every network these attributes; what is of no use is ignored."""

    num_classes: int
    hidden: int = 64
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    axis_name: str | None = None
    convolution: Any = layers.convolution

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Images [batch, height, width, channels] to logits [batch, classes], float32 at least."""
        del train  # neither BatchNorm nor dropout
        kinds: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = nn.relu(nn.Dense(self.hidden, **kinds)(x.reshape(x.shape[0], -1)))
        return layers.promote_to_float32(layers.linear(x, self.num_classes, name="linear", **kinds))


MODELS["perceptron"] = Perceptron


def get_config() -> ConfigDict:
    """The teacher of configs/digits.py, and a perceptron."""
    c = config.default()
    c.networks.student = config.network(model="perceptron", learning_rate=0.05)
    return c
