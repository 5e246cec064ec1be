"""Distillation methods: each one small pure file, all of them in this explicit dict."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from switokd_jax.methods import at, crd, dist, dkd, dml, fitnet, kd, kdcl, rco, switokd, uniokd, vanilla
from switokd_jax.methods.base import AdapterFn, MemoryInputs, MethodFn, MethodInputs, MethodOutput

__all__ = ["METHODS", "AdapterFn", "FeatureSpec", "MemoryInputs", "Method", "MethodFn", "MethodInputs", "MethodOutput"]


@dataclasses.dataclass(frozen=True)
class FeatureSpec:
    """What a method takes of the features along an edge from a frozen network.

    Attributes:
      learner: tapped names of the learner.
      source: tapped names of the source, one for each of the learner's.
      adapter: makes the module that brings the learner's first feature and the source's together, given their
        shapes [batch, ...] and the options dtype and param_dtype; None where the method needs none.
    """

    learner: tuple[str, ...] = ()
    source: tuple[str, ...] = ()
    adapter: Callable[..., Any] | None = None


def _no_features(hyperparameters: Any) -> FeatureSpec:
    """Most methods see logits only."""
    del hyperparameters
    return FeatureSpec()


def _no_anchor(hyperparameters: Any, epoch: int) -> None:
    """Frozen networks stay what they are."""
    del hyperparameters, epoch


def _no_memory(hyperparameters: Any, given: MemoryInputs) -> None:
    """Most methods keep nothing between steps."""
    del hyperparameters, given


def _no_refresh(hyperparameters: Any) -> None:
    """Most methods look at training images only."""
    del hyperparameters


@dataclasses.dataclass(frozen=True)
class Method:
    """A pure function on logits with the dataclass of its hyperparameters (its block in a config).

    Attributes:
      apply: the function.
      hyperparameters: the dataclass.
      switches: whether it decides a mode for each gated pair.
      offline: whether it learns from frozen networks.
      features: of its hyperparameters, the features that it takes.
      init_memory: (hyperparameters, `MemoryInputs`) to what it keeps between steps, None for nothing.
      teacher_at_epoch: (hyperparameters, completed epochs) to the checkpoint that frozen networks load then, or None.
      update_memory_at_eval: hyperparameters to a function from the correlation [n, n] of the networks' errors on
        held-out data to new memory, called at each evaluation; or to None.
    """

    apply: MethodFn
    hyperparameters: type[Any]
    switches: bool = False
    offline: bool = False
    features: Callable[[Any], FeatureSpec] = _no_features
    init_memory: Callable[[Any, MemoryInputs], Any] = _no_memory
    teacher_at_epoch: Callable[[Any, int], str | None] = _no_anchor
    update_memory_at_eval: Callable[[Any], Callable[[jax.Array], Any] | None] = _no_refresh


METHODS: dict[str, Method] = {
    "vanilla": Method(vanilla.vanilla, vanilla.Hyperparameters),
    "dml": Method(dml.dml, dml.Hyperparameters),
    "kdcl": Method(
        kdcl.kdcl, kdcl.Hyperparameters, init_memory=kdcl.init_memory, update_memory_at_eval=kdcl.update_memory_at_eval
    ),
    "switokd": Method(switokd.switokd, switokd.Hyperparameters, switches=True),
    "uniokd": Method(uniokd.uniokd, uniokd.Hyperparameters, switches=True),
    "kd": Method(kd.kd, kd.Hyperparameters, offline=True),
    "dkd": Method(dkd.dkd, dkd.Hyperparameters, offline=True),
    "dist": Method(dist.dist, dist.Hyperparameters, offline=True),
    "rco": Method(rco.rco, rco.Hyperparameters, offline=True, teacher_at_epoch=rco.teacher_at_epoch),
    "at": Method(at.at, at.Hyperparameters, offline=True, features=lambda h: FeatureSpec(h.student, h.teacher)),
    "fitnet": Method(
        fitnet.fitnet,
        fitnet.Hyperparameters,
        offline=True,
        features=lambda h: FeatureSpec((h.student,), (h.teacher,), fitnet.regressor),
    ),
    "crd": Method(
        crd.crd,
        crd.Hyperparameters,
        offline=True,
        features=lambda h: FeatureSpec((h.student,), (h.teacher,), crd.embedding(h)),
        init_memory=crd.init_memory,
    ),
}
