"""SHAKE: a small head on a frozen teacher's features learns with the student, and both learn from one another.

Source: Li and Jin, "Shadow Knowledge Distillation: Bridging Offline and Online Knowledge Transfer", NeurIPS 2022, and
its public code (lliai/SHAKE). That code ends the head with the teacher's own classifier; here it has one of its own.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from switokd_jax import config_fields
from switokd_jax.losses import cross_entropy, mean_kl_divergence
from switokd_jax.methods.base import MethodInputs, MethodOutput, Shapes, TrainedModule, add_distillation
from switokd_jax.precision import promote_to_float32
from switokd_jax.topology import Edge, Topology


@dataclasses.dataclass(frozen=True)
class Hyperparameters:
    """Attributes:

    temperature: T of the softened distributions, above 0.
    alpha: weight of the divergence from the teacher.
    beta: weight of the divergence from the shadow head, and of the head's losses.
    features: names of three of the teacher's feature maps, from the first to the last.
    """

    temperature: float = config_fields.number(4.0, above=0.0)
    alpha: float = config_fields.number(1.0, low=0.0)
    beta: float = config_fields.number(1.0, low=0.0)
    features: tuple[Any, ...] = config_fields.sequence(("stage1", "stage2", "stage3"))


class ShadowHead(nn.Module):
    """Fuses maps of three stages from the first to the last, and classifies their mean over pixels.

    Attributes:
      num_classes: number of logits.
      dtype: computation dtype.
      param_dtype: parameter dtype.
      convolution: function with the arguments of `lax.conv_general_dilated`; None for that one. Runs give theirs.
    """

    num_classes: int
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    convolution: Any = None

    @nn.compact
    def __call__(self, first: jax.Array, second: jax.Array, third: jax.Array, *, train: bool) -> jax.Array:
        """Maps [batch, height, width, channels] of each stage to logits [batch, num_classes]."""
        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        kaiming = nn.initializers.variance_scaling(2.0, "fan_out", "normal")

        def block(name: str, x: jax.Array, like: jax.Array, kernel: int) -> jax.Array:
            conv: Any = nn.Conv(
                like.shape[-1],
                (kernel, kernel),
                strides=-(-x.shape[1] // like.shape[1]),
                padding=kernel // 2,
                use_bias=False,
                kernel_init=kaiming,
                conv_general_dilated=self.convolution,
                name=name,
                **dtypes,
            )
            norm = nn.BatchNorm(use_running_average=not train, momentum=0.9, name=f"{name}_bn", **dtypes)
            return nn.relu(norm(conv(x)))

        x = block("first", first, second, 3) + block("second", second, second, 1)
        x = block("fused", x, third, 3) + block("third", third, third, 1)
        x = block("last", x, third, 3)
        return nn.Dense(self.num_classes, name="linear", **dtypes)(jnp.mean(x, axis=(1, 2)))


def shake(
    inputs: MethodInputs, labels: jax.Array, topology: Topology, hyperparameters: Hyperparameters
) -> MethodOutput:
    """Computes L_i = CE + sum over edges from frozen j of [alpha D(z_j, z_i) + beta D(h, z_i)].

    The shadow head h of the edge has the loss 'EDGE/shadow' = beta [D(z_i, h) + CE(h, y) + mean (h - z_j)^2], with
    D(a, b) = T^2 KL(sg softmax(a / T) || softmax(b / T)).
    """
    h, terms, losses, stats = hyperparameters, [], {}, {}

    for edge in topology.edges_from(inputs.frozen):
        name = f"{edge}/shadow"
        student, teacher = inputs.logits[edge.learner], jax.lax.stop_gradient(inputs.logits[edge.source])
        maps = (jax.lax.stop_gradient(inputs.features[edge.source][feature]) for feature in h.features)
        shadow, stats[name] = inputs.adapters[name](*maps)
        shadow = promote_to_float32(shadow)
        from_teacher = mean_kl_divergence(teacher, student, h.temperature)
        from_shadow = mean_kl_divergence(shadow, student, h.temperature)
        term = h.alpha * from_teacher + h.beta * from_shadow
        terms.append((edge.learner, edge.weight * term))
        task = jnp.mean(cross_entropy(shadow, labels)) + jnp.mean((shadow - promote_to_float32(teacher)) ** 2)
        losses[name] = h.beta * edge.weight * (mean_kl_divergence(student, shadow, h.temperature) + task)
    output = add_distillation(inputs.cross_entropy, terms, adapter_stats=stats)
    return dataclasses.replace(output, losses={**output.losses, **losses})


def shadow_head(
    features: tuple[str, ...], edge: Edge, learner: Shapes, source: Shapes, **dtypes: Any
) -> dict[str, TrainedModule]:
    """Creates the shadow head of an edge, which is trained with the student (see `FeatureSpec.of_edge`).

    Raises:
      ValueError: if there are not three feature maps.
    """
    del learner
    inputs = tuple(source[feature] for feature in features)
    if [len(shape) for shape in inputs] != [4, 4, 4]:
        raise ValueError(
            f"shake fuses three feature maps of a teacher, and {', '.join(map(str, features))} are not; change "
            "shake.features"
        )
    return {f"{edge}/shadow": TrainedModule(ShadowHead(source["logits"][-1], **dtypes), inputs, edge.learner)}
