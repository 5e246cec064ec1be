"""FitNet: a trained regressor maps a student's features to its teacher's.

Source: Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015 (arXiv 1412.6550), trained in one stage as in
the usual benchmarks.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from switokd_jax import config_fields
from switokd_jax.methods.base import MethodInputs, MethodOutput, add_distillation
from switokd_jax.precision import promote_to_float32
from switokd_jax.topology import Topology


@dataclasses.dataclass(frozen=True)
class Hyperparameters:
    """Attributes:

    weight: weight of the distillation term.
    student: name of the student's feature, from its middle.
    teacher: name of the teacher's feature.
    """

    weight: float = config_fields.number(100.0, low=0.0)
    student: str = config_fields.text("stage2")
    teacher: str = config_fields.text("stage2")


def fitnet(
    inputs: MethodInputs, labels: jax.Array, topology: Topology, hyperparameters: Hyperparameters
) -> MethodOutput:
    """Computes L_i = CE + w * sum over edges from frozen j of mean (regressor(f_i) - f_j)^2.

    The regressor is trained with network i.
    """
    del labels
    h = hyperparameters
    terms, stats = [], {}
    for edge in topology.edges_from(inputs.frozen):
        source = jax.lax.stop_gradient(promote_to_float32(inputs.features[edge.source][h.teacher]))
        projected, stats[str(edge)] = inputs.adapters[str(edge)](inputs.features[edge.learner][h.student], source)
        term = h.weight * edge.weight * jnp.mean((promote_to_float32(projected) - source) ** 2)
        terms.append((edge.learner, term))
    return add_distillation(inputs.cross_entropy, terms, adapter_stats=stats)


class Regressor(nn.Module):
    """1x1 convolution to the teacher's channels, BatchNorm and ReLU.

    Attributes:
      features: number of the teacher's channels.
      stride: stride of the convolution, above 1 if the student's feature map is larger than the teacher's.
      dtype: computation dtype.
      param_dtype: parameter dtype.
    """

    features: int
    stride: int
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, source: jax.Array, *, train: bool) -> jax.Array:
        """Maps [batch, height, width, channels] to [batch, height / stride, width / stride, features]."""
        del source  # `regressor` has used its shape already
        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        # A 1x1 convolution is a linear layer on every pixel.
        x = nn.Dense(self.features, name="conv", **dtypes)(x[:, :: self.stride, :: self.stride])
        return nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9, name="bn", **dtypes)(x))


def regressor(student: tuple[int, ...], teacher: tuple[int, ...], **dtypes: Any) -> Regressor:
    """Creates the regressor between features of these shapes [batch, height, width, channels].

    Raises:
      ValueError: if the student's height and width are not multiples of the teacher's.
    """
    if len(student) != 4 or len(teacher) != 4 or student[1] % teacher[1] or student[2] % teacher[2]:
        raise ValueError(
            f"the student's features {student[1:]} are not the size of the teacher's {teacher[1:]} or a multiple of it"
        )
    return Regressor(teacher[-1], student[1] // teacher[1], **dtypes)
