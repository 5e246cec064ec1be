"""Distillation methods: each one small pure file, all of them in this explicit dict."""

from __future__ import annotations

import dataclasses
from typing import Any

from switokd_jax.methods import dml, switokd, vanilla
from switokd_jax.methods.protocol import Decision, MethodFn, Outputs

__all__ = ["METHODS", "Decision", "Method", "MethodFn", "Outputs"]


@dataclasses.dataclass(frozen=True)
class Method:
    """A pure function on logits with the dataclass of its hyperparameters (its block in a config).

    Attributes:
      apply: the function.
      hyperparameters: the dataclass.
      switches: whether it decides a mode for each gated pair.
    """

    apply: MethodFn
    hyperparameters: type[Any]
    switches: bool = False


METHODS: dict[str, Method] = {
    "vanilla": Method(vanilla.vanilla, vanilla.Hyperparameters),
    "dml": Method(dml.dml, dml.Hyperparameters),
    "switokd": Method(switokd.switokd, switokd.Hyperparameters, switches=True),
}
