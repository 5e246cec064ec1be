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
from switokd_jax.methods import kd
from switokd_jax.methods.base import NO_STAGES, MethodInputs, MethodOutput, Stages, add_distillation
from switokd_jax.precision import promote_to_float32
from switokd_jax.topology import Topology


@dataclasses.dataclass(frozen=True)
class Hyperparameters:
    """Attributes:

    weight: weight of the distillation term.
    cross_entropy_weight: weight of the cross-entropy (RepDistiller's -r).
    kd_weight: weight of plain KD beside it (-a); 0 for none.
    kd_temperature: T of that KD.
    student: name of the student's feature, from its middle; '' for that of RepDistiller's code, its second stage (of
      VGG, whose first is none there, the third).
    teacher: name of the teacher's feature; '' likewise.
    """

    weight: float = config_fields.number(100.0, low=0.0)
    cross_entropy_weight: float = config_fields.number(1.0, low=0.0)
    kd_weight: float = config_fields.number(0.0, low=0.0)
    kd_temperature: float = config_fields.number(4.0, above=0.0)
    student: str = config_fields.text("")
    teacher: str = config_fields.text("")


def default_features(hyperparameters: Hyperparameters, student: Stages, teacher: Stages) -> Hyperparameters:
    """Fills in the features that are not named: the second stage, or the only one.

    Raises:
      ValueError: if a network has no stages.
    """
    h = hyperparameters
    second = [next(iter(stages[1:] or stages), "") for stages in (student, teacher)]
    filled = dataclasses.replace(h, student=h.student or second[0], teacher=h.teacher or second[1])
    if not (filled.student and filled.teacher):
        raise ValueError(NO_STAGES)
    return filled


def fitnet(
    inputs: MethodInputs, labels: jax.Array, topology: Topology, hyperparameters: Hyperparameters
) -> MethodOutput:
    """Computes L_i = r CE + a KD + w * sum over edges from frozen j of mean (regressor(f_i) - f_j)^2.

    The regressor is trained with network i.
    """
    del labels
    h = hyperparameters
    task_losses, terms = kd.weighted_losses(inputs, topology, h.cross_entropy_weight, h.kd_weight, h.kd_temperature)
    stats = {}
    for edge in topology.edges_from(inputs.frozen):
        source = jax.lax.stop_gradient(promote_to_float32(inputs.features[edge.source][h.teacher]))
        projected, stats[str(edge)] = inputs.adapters[str(edge)](inputs.features[edge.learner][h.student], source)
        term = h.weight * edge.weight * jnp.mean((promote_to_float32(projected) - source) ** 2)
        terms.append((edge.learner, term))
    return add_distillation(task_losses, terms, adapter_stats=stats)


class Regressor(nn.Module):
    """Convolution to the teacher's channels and size, BatchNorm and ReLU.

    Attributes:
      features: number of the teacher's channels.
      size: height and width of the teacher's features.
      dtype: computation dtype.
      param_dtype: parameter dtype.
      convolution: function with the arguments of `lax.conv_general_dilated`; None for that one. Runs give theirs.
    """

    features: int
    size: tuple[int, int]
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    convolution: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, source: jax.Array, *, train: bool) -> jax.Array:
        """Maps [batch, height, width, channels] to [batch, *size, features]."""
        del source  # `regressor` has used its shape already
        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        conv: dict[str, Any] = {"conv_general_dilated": self.convolution}
        height, width = x.shape[1:3]
        if (height, width) == self.size:
            layer: Any = nn.Dense(self.features, name="conv", **dtypes)  # a 1x1 convolution
        elif (height, width) == (2 * self.size[0], 2 * self.size[1]):
            layer = nn.Conv(self.features, (3, 3), 2, padding=1, name="conv", **conv, **dtypes)
        elif (2 * height, 2 * width) == self.size:
            layer = nn.ConvTranspose(self.features, (4, 4), (2, 2), name="conv", **dtypes)
        else:
            kernel = (1 + height - self.size[0], 1 + width - self.size[1])
            layer = nn.Conv(self.features, kernel, padding=0, name="conv", **conv, **dtypes)
        x = layer(x)
        return nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9, name="bn", **dtypes)(x))


def regressor(student: tuple[int, ...], teacher: tuple[int, ...], **dtypes: Any) -> Regressor:
    """Creates the regressor between features of these shapes [batch, height, width, channels].

    Its convolution is that of RepDistiller's ConvReg: 1x1 for equal sizes; 3x3 with stride 2 if the student's are twice
    as large; a transposed 4x4 with stride 2 if they are half as large; else one whose kernel covers the difference.

    Raises:
      ValueError: if the student's features are smaller than the teacher's, and not half as large.
    """
    if len(student) == len(teacher) == 4:
        size, wanted = student[1:3], teacher[1:3]
        is_half = (2 * size[0], 2 * size[1]) == wanted
        if is_half or (size[0] >= wanted[0] and size[1] >= wanted[1]):
            return Regressor(teacher[-1], wanted, **dtypes)
    raise ValueError(
        f"the student's features {student[1:]} are smaller than the teacher's {teacher[1:]}, and not half as large; "
        "name features of other stages in fitnet.student and fitnet.teacher"
    )
