"""An own network as the student: a small perceptron with one hidden layer.

python -m switokd_jax.main --config=examples/own_network.py --workdir=runs/own_network
"""

from __future__ import annotations

import jax
from flax import linen as nn
from ml_collections import ConfigDict

from switokd_jax import config
from switokd_jax.models import MODELS
from switokd_jax.models.layers import Layers


class Perceptron(nn.Module):
    """Flattened images, a hidden layer, logits. `layers` has the run's dtypes, and layers that apply them."""

    num_classes: int
    hidden: int = 64
    layers: Layers = Layers(remat=None)  # no blocks that could be computed again

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps images [batch, height, width, channels] to logits [batch, classes], float32 at least."""
        del train  # neither BatchNorm nor dropout
        x = nn.relu(nn.Dense(self.hidden, **self.layers.dtypes)(x.reshape(x.shape[0], -1)))
        return self.layers.logits(x, self.num_classes, name="linear")


MODELS["perceptron"] = Perceptron


def get_config() -> ConfigDict:
    """The teacher of configs/digits.py, and a perceptron."""
    c = config.default()
    c.networks.student = config.network(model="perceptron", learning_rate=0.05)
    return c
