"""A network written in Flax NNX as the student.

python -m switokd_jax.main --config=examples/own_nnx_network.py --workdir=runs/own_nnx_network
"""

from __future__ import annotations

from typing import Any

import jax
from flax import linen as nn
from flax import nnx
from ml_collections import ConfigDict

from switokd_jax import config
from switokd_jax.models import MODELS
from switokd_jax.models.layers import Layers
from switokd_jax.precision import promote_to_float32


class ConvNet(nnx.Module):
    """Two convolutions with BatchNorm, the mean over all pixels, and a linear layer; images of `channels` channels."""

    def __init__(self, channels: int, num_classes: int, axis_name: str | None, rngs: nnx.Rngs, **dtypes: Any):
        norm = {"momentum": 0.9, "axis_name": axis_name, "rngs": rngs, **dtypes}
        self.conv1 = nnx.Conv(channels, 16, (3, 3), use_bias=False, rngs=rngs, **dtypes)
        self.bn1 = nnx.BatchNorm(16, **norm)
        self.conv2 = nnx.Conv(16, 32, (3, 3), strides=2, use_bias=False, rngs=rngs, **dtypes)
        self.bn2 = nnx.BatchNorm(32, **norm)
        self.linear = nnx.Linear(32, num_classes, rngs=rngs, **dtypes)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps images [batch, height, width, channels] to logits [batch, classes]."""
        x = nnx.relu(self.bn1(self.conv1(x), use_running_average=not train))
        x = nnx.relu(self.bn2(self.conv2(x), use_running_average=not train))
        return self.linear(x.mean((1, 2)))


class NNXStudent(nn.Module):
    """`ConvNet` as a Linen module: its parameters and running statistics become part of the train state."""

    num_classes: int
    layers: Layers = Layers(remat=None)  # no blocks that could be computed again

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps images [batch, height, width, channels] to logits [batch, classes], float32 at least."""
        layers = self.layers
        network = nnx.bridge.to_linen(
            ConvNet, x.shape[-1], self.num_classes, layers.axis_name, name="conv_net", **layers.dtypes
        )
        return promote_to_float32(network(x, train=train))


MODELS["nnx_student"] = NNXStudent


def get_config() -> ConfigDict:
    """The teacher of configs/digits.py, and the student in NNX."""
    c = config.default()
    c.networks.student = config.network(model="nnx_student", learning_rate=0.05)
    return c
