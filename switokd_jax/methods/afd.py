"""AFD: every network also learns to make feature maps that a discriminator takes for those of the next network.

Source: Chung et al., "Feature-map-level Online Adversarial Knowledge Distillation", ICML 2020 (arXiv 2002.01775),
equations 1 to 6, with its cycle over more than two networks. Discriminators here have the optimizer and the learning
rate of their network, where the paper gives them Adam, and three layers of our choice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from switokd_jax import config_fields
from switokd_jax.losses import mean_kl_divergence
from switokd_jax.methods.base import MethodInputs, MethodOutput, Shapes, TrainedModule, add_distillation
from switokd_jax.precision import promote_to_float32
from switokd_jax.topology import Topology


@dataclasses.dataclass(frozen=True)
class Hyperparameters:
    """Attributes:

    temperature: T of the softened distributions, above 0.
    logits: weight of mutual learning by logits.
    adversarial: weight of fooling the discriminator.
    feature: name of the feature maps.
    """

    temperature: float = config_fields.number(3.0, above=0.0)
    logits: float = config_fields.number(1.0, low=0.0)
    adversarial: float = config_fields.number(1.0, low=0.0)
    feature: str = config_fields.text("stage3")


class Transfer(nn.Module):
    """A 1x1 convolution, BatchNorm and ReLU to the channels of the next network's maps.

    Attributes:
      features: number of the next network's channels.
      dtype: computation dtype.
      param_dtype: parameter dtype.
    """

    features: int
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps [batch, height, width, channels] to [batch, height, width, features]."""
        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = nn.Dense(self.features, use_bias=False, name="conv", **dtypes)(x)
        return nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9, name="bn", **dtypes)(x))


class Discriminator(nn.Module):
    """Two 3x3 convolutions with leaky ReLU, the mean over pixels, and one logistic output.

    Attributes:
      dtype: computation dtype.
      param_dtype: parameter dtype.
      convolution: function with the arguments of `lax.conv_general_dilated`; None for that one. Runs give theirs.
    """

    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    convolution: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps [batch, height, width, channels] to [batch] in (0, 1): 1 for maps of the next network."""
        del train
        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        for i in (1, 2):
            layer: Any = nn.Conv(
                x.shape[-1], (3, 3), padding=1, conv_general_dilated=self.convolution, name=f"conv{i}", **dtypes
            )
            x = nn.leaky_relu(layer(x), 0.1)
        x = promote_to_float32(nn.Dense(1, name="linear", **dtypes)(jnp.mean(x, axis=(1, 2))))
        return nn.sigmoid(x[:, 0])


def afd(inputs: MethodInputs, labels: jax.Array, topology: Topology, hyperparameters: Hyperparameters) -> MethodOutput:
    """Computes L_i = CE + logits T^2 mean over j != i of KL(sg p_j || p_i) + adversarial mean (1 - D_i(T_i(f_i)))^2.

    The discriminator of network i, whose next one in the cycle is k, has the loss 'NAME/discriminator'

        mean D_i(sg T_i(f_i))^2 + mean (1 - D_i(sg f_k))^2

    and gets no gradient from L_i. T_i makes the channels of f_i those of f_k.
    """
    del labels
    h, nodes = hyperparameters, topology.nodes
    terms, losses, stats = [], {}, {}
    for i, node in enumerate(nodes):
        others = [inputs.logits[other] for other in nodes if other != node]
        divergences = [mean_kl_divergence(other, inputs.logits[node], h.temperature) for other in others]
        terms.append((node, h.logits * jnp.mean(jnp.stack(divergences))))
        discriminator = inputs.adapters[f"{node}/discriminator"]
        transferred, stats[f"{node}/transfer"] = inputs.adapters[f"{node}/transfer"](inputs.features[node][h.feature])
        real = jax.lax.stop_gradient(inputs.features[nodes[(i + 1) % len(nodes)]][h.feature])
        fooled, _ = discriminator(transferred, frozen=True)
        terms.append((node, h.adversarial * jnp.mean((1.0 - fooled) ** 2)))
        of_fake, of_real = discriminator(jax.lax.stop_gradient(transferred))[0], discriminator(real)[0]
        losses[f"{node}/discriminator"] = jnp.mean(of_fake**2) + jnp.mean((1.0 - of_real) ** 2)
    output = add_distillation(inputs.cross_entropy, terms, adapter_stats=stats)
    return dataclasses.replace(output, losses={**output.losses, **losses})


def discriminators(
    feature: str, topology: Topology, shapes: Mapping[str, Shapes], **dtypes: Any
) -> dict[str, TrainedModule]:
    """Creates a transfer layer and a discriminator for each network, which are trained with it.

    Raises:
      ValueError: if the features are no maps.
    """
    modules = {}
    for i, node in enumerate(topology.nodes):
        own, real = shapes[node][feature], shapes[topology.nodes[(i + 1) % len(topology.nodes)]][feature]
        if len(own) != 4:
            raise ValueError(f"afd compares feature maps, and {feature!r} of {node!r} is {own[1:]}; change afd.feature")
        modules[f"{node}/transfer"] = TrainedModule(Transfer(real[-1], **dtypes), (own,), node)
        modules[f"{node}/discriminator"] = TrainedModule(Discriminator(**dtypes), ((*own[:3], real[-1]),), node)
    return modules
