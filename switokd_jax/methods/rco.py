"""Route constrained optimization: a student follows its teacher along checkpoints of the teacher's training.

Source: Jin et al., "Knowledge Distillation via Route Constrained Optimization", ICCV 2019 (arXiv 1904.09149): KD from
one anchor after the other, each for some epochs, the last one to the end.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from switokd_jax import config_fields
from switokd_jax.methods import kd
from switokd_jax.methods.base import MethodInputs, MethodOutput
from switokd_jax.topology import Topology


@dataclasses.dataclass(frozen=True)
class Hyperparameters:
    """Attributes:

    temperature: T of the softened distributions, above 0.
    weight: w of the distillation term.
    anchors: checkpoints of the frozen teacher after its `init_from`, in their order: 'WORKDIR:NAME@STEP', where STEP
      is one that checkpoint.keep_every_epochs kept, or 'latest', 'best' or a PyTorch file.
    every: epochs for each checkpoint, `init_from` first.
    """

    temperature: float = config_fields.number(4.0, above=0.0)
    weight: float = config_fields.number(0.9, low=0.0, high=1.0)
    anchors: tuple[Any, ...] = config_fields.sequence()
    every: int = config_fields.integer(10, low=1)


def rco(outputs: MethodInputs, labels: jax.Array, topology: Topology, hyperparameters: Hyperparameters) -> MethodOutput:
    """KD's loss; which teacher speaks is `anchor`'s business."""
    of_kd = kd.Hyperparameters(hyperparameters.temperature, hyperparameters.weight)
    return kd.kd(outputs, labels, topology, of_kd)


def teacher_at_epoch(hyperparameters: Hyperparameters, epoch: int) -> str | None:
    """The checkpoint that the teacher becomes after so many whole epochs, or None if it stays."""
    turn, rest = divmod(epoch, hyperparameters.every)
    return hyperparameters.anchors[turn - 1] if not rest and 1 <= turn <= len(hyperparameters.anchors) else None
