"""Distillation methods: each one small pure file, all of them in this explicit dict."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax

from switokd_jax.methods import dist, dkd, dml, kd, kdcl, switokd, uniokd, vanilla
from switokd_jax.methods.protocol import Decision, MethodFn, Outputs

__all__ = ["METHODS", "Decision", "Method", "MethodFn", "Outputs"]


def _no_memory(hyperparameters: Any, nodes: Sequence[str]) -> None:
    """Most methods keep nothing between steps."""
    del hyperparameters, nodes


@dataclasses.dataclass(frozen=True)
class Method:
    """A pure function on logits with the dataclass of its hyperparameters (its block in a config).

    Attributes:
      apply: the function.
      hyperparameters: the dataclass.
      switches: whether it decides a mode for each gated pair.
      offline: whether it learns from frozen networks.
      start: (hyperparameters, nodes) to what it keeps between steps, None for nothing.
      refresh: takes the correlation [n, n] of the networks' errors on held-out data to new memory, at each
        evaluation; asked only where `start` made some.
    """

    apply: MethodFn
    hyperparameters: type[Any]
    switches: bool = False
    offline: bool = False
    start: Callable[[Any, Sequence[str]], Any] = _no_memory
    refresh: Callable[[jax.Array], Any] | None = None


METHODS: dict[str, Method] = {
    "vanilla": Method(vanilla.vanilla, vanilla.Hyperparameters),
    "dml": Method(dml.dml, dml.Hyperparameters),
    "kdcl": Method(kdcl.kdcl, kdcl.Hyperparameters, start=kdcl.start, refresh=kdcl.general_weights),
    "switokd": Method(switokd.switokd, switokd.Hyperparameters, switches=True),
    "uniokd": Method(uniokd.uniokd, uniokd.Hyperparameters, switches=True),
    "kd": Method(kd.kd, kd.Hyperparameters, offline=True),
    "dkd": Method(dkd.dkd, dkd.Hyperparameters, offline=True),
    "dist": Method(dist.dist, dist.Hyperparameters, offline=True),
}
