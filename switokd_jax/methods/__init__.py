"""Distillation methods: each one small pure file, all of them in this explicit dict."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from switokd_jax.methods import at, crd, dist, dkd, dml, fitnet, kd, kdcl, rco, switokd, uniokd, vanilla
from switokd_jax.methods.base import Adapt, Decision, MethodFn, Outputs, Start

__all__ = ["METHODS", "Adapt", "Decision", "FeatureUse", "Method", "MethodFn", "Outputs", "Start"]


@dataclasses.dataclass(frozen=True)
class FeatureUse:
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


def _no_features(hyperparameters: Any) -> FeatureUse:
    """Most methods see logits only."""
    del hyperparameters
    return FeatureUse()


def _no_anchor(hyperparameters: Any, epoch: int) -> None:
    """Frozen networks stay what they are."""
    del hyperparameters, epoch


def _no_memory(hyperparameters: Any, given: Start) -> None:
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
      start: (hyperparameters, `Start`) to what it keeps between steps, None for nothing.
      anchor: of its hyperparameters and the whole epochs behind, the checkpoint that frozen networks become, or None.
      refresh: of its hyperparameters, the function from the correlation [n, n] of the networks' errors on held-out
        data to new memory, called at each evaluation; or None.
    """

    apply: MethodFn
    hyperparameters: type[Any]
    switches: bool = False
    offline: bool = False
    features: Callable[[Any], FeatureUse] = _no_features
    start: Callable[[Any, Start], Any] = _no_memory
    anchor: Callable[[Any, int], str | None] = _no_anchor
    refresh: Callable[[Any], Callable[[jax.Array], Any] | None] = _no_refresh


METHODS: dict[str, Method] = {
    "vanilla": Method(vanilla.vanilla, vanilla.Hyperparameters),
    "dml": Method(dml.dml, dml.Hyperparameters),
    "kdcl": Method(kdcl.kdcl, kdcl.Hyperparameters, start=kdcl.start, refresh=kdcl.refresh),
    "switokd": Method(switokd.switokd, switokd.Hyperparameters, switches=True),
    "uniokd": Method(uniokd.uniokd, uniokd.Hyperparameters, switches=True),
    "kd": Method(kd.kd, kd.Hyperparameters, offline=True),
    "dkd": Method(dkd.dkd, dkd.Hyperparameters, offline=True),
    "dist": Method(dist.dist, dist.Hyperparameters, offline=True),
    "rco": Method(rco.rco, rco.Hyperparameters, offline=True, anchor=rco.anchor),
    "at": Method(at.at, at.Hyperparameters, offline=True, features=lambda h: FeatureUse(h.student, h.teacher)),
    "fitnet": Method(
        fitnet.fitnet,
        fitnet.Hyperparameters,
        offline=True,
        features=lambda h: FeatureUse((h.student,), (h.teacher,), fitnet.regressor),
    ),
    "crd": Method(
        crd.crd,
        crd.Hyperparameters,
        offline=True,
        features=lambda h: FeatureUse((h.student,), (h.teacher,), crd.embedding(h)),
        start=crd.start,
    ),
}
