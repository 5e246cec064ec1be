"""Route constrained optimization: a student is taught by successive checkpoints of its teacher's training.

Source: Jin et al., "Knowledge Distillation via Route Constrained Optimization", ICCV 2019 (arXiv 1904.09149): KD from
one anchor checkpoint after another, each for a number of epochs, and from the last one until the end.
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
    anchors: checkpoints that the frozen teacher loads after its `init_from`, in this order: 'WORKDIR:NAME@STEP', where
      STEP is 'latest', 'best' or a step that checkpoint.keep_every_epochs has kept; or a PyTorch file.
    every: number of epochs with each checkpoint, `init_from` included.
    """

    temperature: float = config_fields.number(4.0, above=0.0)
    weight: float = config_fields.number(0.9, low=0.0, high=1.0)
    anchors: tuple[Any, ...] = config_fields.sequence()
    every: int = config_fields.integer(10, low=1)


def rco(inputs: MethodInputs, labels: jax.Array, topology: Topology, hyperparameters: Hyperparameters) -> MethodOutput:
    """Computes the loss of `kd`. `teacher_at_epoch` selects the teacher's checkpoint."""
    kd_hyperparameters = kd.Hyperparameters(hyperparameters.temperature, hyperparameters.weight)
    return kd.kd(inputs, labels, topology, kd_hyperparameters)


def teacher_at_epoch(hyperparameters: Hyperparameters, epoch: int) -> str | None:
    """Returns the checkpoint that the teacher loads after `epoch` completed epochs, or None to keep its weights.

    >>> teacher_at_epoch(Hyperparameters(anchors=("runs/a:t@100", "runs/a:t@200"), every=10), 20)
    'runs/a:t@200'
    """
    stage, rest = divmod(epoch, hyperparameters.every)
    return hyperparameters.anchors[stage - 1] if not rest and 1 <= stage <= len(hyperparameters.anchors) else None
