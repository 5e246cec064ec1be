"""FitNet: a student's features, through a trained regressor, meet its teacher's.

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
from switokd_jax.methods.base import MethodInputs, MethodOutput
from switokd_jax.precision import promote_to_float32
from switokd_jax.topology import Topology


@dataclasses.dataclass(frozen=True)
class Hyperparameters:
    """Attributes:

    weight: of the distillation term.
    student: the tapped feature of the student, in the middle.
    teacher: of the teacher.
    """

    weight: float = config_fields.number(100.0, low=0.0)
    student: str = config_fields.text("stage2")
    teacher: str = config_fields.text("stage2")


def fitnet(
    outputs: MethodInputs, labels: jax.Array, topology: Topology, hyperparameters: Hyperparameters
) -> MethodOutput:
    """L_i = CE + w * sum over edges from frozen j of mean (regressor(f_i) - f_j)^2; the regressor learns with i."""
    del labels
    h = hyperparameters
    losses, stats = dict(outputs.cross_entropy), {}
    for edge in topology.edges_from(outputs.frozen):
        source = jax.lax.stop_gradient(promote_to_float32(outputs.features[edge.source][h.teacher]))
        adapted, stats[str(edge)] = outputs.adapters[str(edge)](outputs.features[edge.learner][h.student], source)
        losses[edge.learner] += h.weight * edge.weight * jnp.mean((promote_to_float32(adapted) - source) ** 2)
    return MethodOutput(losses, adapter_stats=stats)


class Regressor(nn.Module):
    """A 1x1 convolution, norm and relu to the teacher's channels; it strides where the student's map is larger."""

    features: int
    stride: int
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, source: jax.Array, *, train: bool) -> jax.Array:
        """[batch, height, width, channels] to [batch, height / stride, width / stride, features]."""
        del source  # only its shape counts, and `regressor` has seen that
        kinds: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        # A 1x1 convolution is a linear layer on every pixel.
        x = nn.Dense(self.features, name="conv", **kinds)(x[:, :: self.stride, :: self.stride])
        return nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9, name="bn", **kinds)(x))


def regressor(student: tuple[int, ...], teacher: tuple[int, ...], **kinds: Any) -> Regressor:
    """The regressor between features of these shapes [batch, height, width, channels].

    Raises:
      ValueError: if the student's map is not a whole multiple of the teacher's.
    """
    if len(student) != 4 or len(teacher) != 4 or student[1] % teacher[1] or student[2] % teacher[2]:
        raise ValueError(
            f"the student's features {student[1:]} are not the size of the teacher's {teacher[1:]} or a multiple of it"
        )
    return Regressor(teacher[-1], student[1] // teacher[1], **kinds)
