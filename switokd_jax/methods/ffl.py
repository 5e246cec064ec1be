"""FFL: the fused features of all networks train a classifier that they learn from, and that learns from their mean.

Source: Kim et al., "Feature Fusion for Online Mutual Knowledge Distillation", ICPR 2020 (arXiv 1904.09058), equations 2
to 6, and its public code (Jangho-Kim/FFL-pytorch). Networks are branches, as there, or networks of any kind whose last
features have maps of one size.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from switokd_jax import config_fields
from switokd_jax.losses import mean_kl_divergence
from switokd_jax.methods.base import (
    MethodInputs,
    MethodOutput,
    Shapes,
    TrainedModule,
    add_distillation,
    add_ensemble,
    rampup_weight,
    stack_logits,
)
from switokd_jax.precision import promote_to_float32
from switokd_jax.topology import Topology


@dataclasses.dataclass(frozen=True)
class Hyperparameters:
    """Attributes:

    temperature: T of the softened distributions, above 0.
    rampup_epochs: epochs until the distillation terms have their full weight; 0 for none.
    feature: name of the feature maps that are fused.
    """

    temperature: float = config_fields.number(3.0, above=0.0)
    rampup_epochs: float = config_fields.number(80.0, low=0.0)
    feature: str = config_fields.text("stage3")


class Fusion(nn.Module):
    """A depthwise 3x3 and a 1x1 convolution over all networks' maps, the mean over pixels, and a classifier.

    Attributes:
      num_classes: number of logits.
      features: channels of the fused maps.
      dtype: computation dtype.
      param_dtype: parameter dtype.
      convolution: function with the arguments of `lax.conv_general_dilated`; None for that one. Runs give theirs.
    """

    num_classes: int
    features: int
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    convolution: Any = None

    @nn.compact
    def __call__(self, *maps: jax.Array, train: bool) -> jax.Array:
        """Maps [batch, height, width, channels] of each network to logits [batch, num_classes]."""
        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = jnp.concatenate(maps, axis=-1)
        channels = x.shape[-1]
        kaiming = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
        conv: Any = nn.Conv(
            channels,
            (3, 3),
            padding=1,
            feature_group_count=channels,
            use_bias=False,
            kernel_init=kaiming,
            conv_general_dilated=self.convolution,
            name="depthwise",
            **dtypes,
        )
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9, name="bn1", **dtypes)(conv(x)))
        x = nn.Dense(self.features, use_bias=False, kernel_init=kaiming, name="pointwise", **dtypes)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9, name="bn2", **dtypes)(x))
        return nn.Dense(self.num_classes, name="linear", **dtypes)(jnp.mean(x, axis=(1, 2)))


def ffl(inputs: MethodInputs, labels: jax.Array, topology: Topology, hyperparameters: Hyperparameters) -> MethodOutput:
    """Computes L_i = CE(z_i, y) + w T^2 KL(sg p_f || p_i), and L_ensemble = CE(z_f, y) + w T^2 KL(sg p_m || p_f).

    z_f: logits of the fused features; m is the mean of the networks' logits, and p a softmax at temperature T.
    w: `rampup_weight` of the epoch.
    """
    h, nodes = hyperparameters, topology.nodes
    fused, stats = fused_ensemble(inputs, topology, h)
    mean = jnp.mean(stack_logits(inputs, nodes), axis=0)
    weight = rampup_weight(inputs.epoch, h.rampup_epochs)
    terms = [(node, weight * mean_kl_divergence(fused, inputs.logits[node], h.temperature)) for node in nodes]
    output = add_distillation(inputs.cross_entropy, terms, adapter_stats=stats)
    return add_ensemble(output, fused, labels, weight * mean_kl_divergence(mean, fused, h.temperature))


def fused_ensemble(
    inputs: MethodInputs, topology: Topology, hyperparameters: Hyperparameters
) -> tuple[Float[Array, "batch classes"], dict[str, Any]]:
    """Computes the logits z_f, and the fusion module's new running statistics."""
    maps = (inputs.features[node][hyperparameters.feature] for node in topology.nodes)
    fused, stats = inputs.adapters["fusion"](*maps)
    return promote_to_float32(fused), {"fusion": stats}


def fusion(feature: str, topology: Topology, shapes: Mapping[str, Shapes], **dtypes: Any) -> dict[str, TrainedModule]:
    """Creates the fusion module, which is trained with the first network.

    Raises:
      ValueError: if the features are no maps, or their maps differ in size.
    """
    nodes = topology.nodes
    inputs = tuple(shapes[node][feature] for node in nodes)
    if {len(shape) for shape in inputs} != {4} or len({shape[1:3] for shape in inputs}) > 1:
        sizes = ", ".join(f"{node} {shape[1:]}" for node, shape in zip(nodes, inputs, strict=True))
        raise ValueError(
            f"ffl fuses maps of one height and width, and {feature!r} is {sizes}; change ffl.feature or the networks"
        )
    module = Fusion(shapes[nodes[0]]["logits"][-1], inputs[0][-1], **dtypes)
    return {"fusion": TrainedModule(module, inputs, nodes[0])}
