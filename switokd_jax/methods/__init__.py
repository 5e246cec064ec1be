"""Distillation methods: one file of pure functions per method, registered in `METHODS`."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax

from switokd_jax.methods import (
    afd,
    at,
    cl_ilr,
    crd,
    dist,
    dkd,
    dml,
    ffl,
    fitnet,
    kd,
    kdcl,
    mcl,
    okddip,
    one,
    pcl,
    rco,
    shake,
    switokd,
    uniokd,
    vanilla,
)
from switokd_jax.methods.base import (
    AdapterFn,
    MemoryInputs,
    MethodFn,
    MethodInputs,
    MethodOutput,
    Shapes,
    Stages,
    TrainedModule,
    add_distillation,
    add_ensemble,
    rampup_weight,
    stack_logits,
)
from switokd_jax.topology import Edge, Topology

__all__ = [
    "METHODS",
    "AdapterFn",
    "FeatureSpec",
    "MemoryInputs",
    "Method",
    "MethodFn",
    "MethodInputs",
    "MethodOutput",
    "TrainedModule",
    "add_distillation",
    "add_ensemble",
    "rampup_weight",
    "stack_logits",
]


def _no_modules(topology: Topology, shapes: Mapping[str, Shapes], **dtypes: Any) -> dict[str, TrainedModule]:
    """Trains nothing beside the networks."""
    del topology, shapes, dtypes
    return {}


def _no_edge_modules(edge: Edge, learner: Shapes, source: Shapes, **dtypes: Any) -> dict[str, TrainedModule]:
    """Trains nothing more on an edge."""
    del edge, learner, source, dtypes
    return {}


@dataclasses.dataclass(frozen=True)
class FeatureSpec:
    """Features that a method uses, and modules that it trains on them.

    Features are named for the two ends of edges, or for every network. The edges are those from frozen networks for an
    offline method, and all edges whose learner is trained for an online one.

    Attributes:
      learner: names of the learner's features.
      source: names of the source's features, one for each of the learner's if the method compares them.
      adapter: creates the module that maps the learner's first feature to the source's. Arguments: the shapes
        [batch, ...] of both features, and the keywords dtype and param_dtype. None if the method trains no adapter.
      every: names of features that every network outputs.
      modules: creates other modules, by name. Arguments: the topology, the shapes of the features in `every` and of the
        'logits' by network and name, and the keywords dtype and param_dtype. In the loss they are
        `MethodInputs.adapters` of that name.
      of_edge: creates modules of one edge likewise. Arguments: the edge, the shapes of the learner's and of the
        source's features and logits, and the keywords dtype and param_dtype.
    """

    learner: tuple[str, ...] = ()
    source: tuple[str, ...] = ()
    adapter: Callable[..., Any] | None = None
    every: tuple[str, ...] = ()
    modules: Callable[..., Mapping[str, TrainedModule]] = _no_modules
    of_edge: Callable[..., Mapping[str, TrainedModule]] = _no_edge_modules

    @property
    def has_modules(self) -> bool:
        """Whether the method trains modules other than the adapters of edges."""
        return self.modules is not _no_modules or self.of_edge is not _no_edge_modules


def _no_features(hyperparameters: Any) -> FeatureSpec:
    """Requests no features: most methods use logits only."""
    del hyperparameters
    return FeatureSpec()


def _same_teacher(hyperparameters: Any, epoch: int) -> None:
    """Keeps the weights of frozen networks."""
    del hyperparameters, epoch


def _no_memory(hyperparameters: Any, inputs: MemoryInputs) -> None:
    """Creates no memory: most methods keep nothing between steps."""
    del hyperparameters, inputs


def _no_memory_update(hyperparameters: Any) -> None:
    """Returns no update: most methods use training images only."""
    del hyperparameters


@dataclasses.dataclass(frozen=True)
class Method:
    """A distillation method: its loss function, its hyperparameters and its optional extensions.

    Attributes:
      apply: pure function (inputs, labels, topology, hyperparameters) -> `MethodOutput`.
      hyperparameters: dataclass of its hyperparameters; its fields form the config block of the method's name.
      edge_weights: names of the hyperparameters that weight the topology's edges: first that of each student's edge
        from its teacher (the builders' alpha), then that of the gated edge back (beta). () leaves all weights at 1.
      switches: whether it decides a mode for each gated pair in every step.
      offline: whether it learns from frozen networks.
      joint: whether a loss has a gradient at several networks, as that of an ensemble has.
      mean_teachers: whether it sees `MethodInputs.averaged_logits`, of a second forward pass.
      branches: whether its nodes have to be branches of one network.
      min_networks: smallest number of nodes.
      features: hyperparameters -> the features that it uses.
      default_features: (hyperparameters, stages of the learner, stages of the source) -> hyperparameters with the
        features that the config leaves open, for the networks of the first edge; None if all have names.
      ensemble: (inputs, topology, hyperparameters) -> logits of the method's own ensemble of its networks, and new
        running statistics of its modules; None for methods without, whose ensemble is the mean probability.
      init_memory: (hyperparameters, `MemoryInputs`) -> memory that is kept between steps and saved in checkpoints;
        None for no memory.
      teacher_at_epoch: (hyperparameters, number of completed epochs) -> checkpoint that the frozen networks load at
        that point of the training, or None.
      update_memory_at_eval: hyperparameters -> function from the correlation [networks, networks] of the networks'
        errors on held-out data to the new memory, called at each evaluation; or None.

    Raises:
      ValueError: if `edge_weights` names no hyperparameter, or the method both switches and is joint.
    """

    apply: MethodFn
    hyperparameters: type[Any]
    edge_weights: tuple[str, ...] = ()
    switches: bool = False
    offline: bool = False
    joint: bool = False
    mean_teachers: bool = False
    branches: bool = False
    min_networks: int = 1
    features: Callable[[Any], FeatureSpec] = _no_features
    default_features: Callable[[Any, Stages, Stages], Any] | None = None
    ensemble: Callable[[MethodInputs, Topology, Any], tuple[Any, Any]] | None = None
    init_memory: Callable[[Any, MemoryInputs], Any] = _no_memory
    teacher_at_epoch: Callable[[Any, int], str | None] = _same_teacher
    update_memory_at_eval: Callable[[Any], Callable[[jax.Array], Any] | None] = _no_memory_update

    def __post_init__(self) -> None:
        if self.joint and self.switches:
            raise ValueError("a network that is paused cannot keep the gradient of a joint loss from the others")
        known = {field.name for field in dataclasses.fields(self.hyperparameters)}
        if len(self.edge_weights) > 2 or not known.issuperset(self.edge_weights):
            raise ValueError(
                f"edge_weights {self.edge_weights} are not one or two fields of {self.hyperparameters.__qualname__} "
                f"({', '.join(sorted(known))})"
            )


METHODS: dict[str, Method] = {
    # Without distillation.
    "vanilla": Method(vanilla.vanilla, vanilla.Hyperparameters),
    # Online: all networks are trained together.
    "dml": Method(dml.dml, dml.Hyperparameters),
    "kdcl": Method(
        kdcl.kdcl,
        kdcl.Hyperparameters,
        init_memory=kdcl.init_memory,
        update_memory_at_eval=kdcl.update_memory_at_eval,
    ),
    "switokd": Method(
        switokd.switokd,
        switokd.Hyperparameters,
        edge_weights=("alpha", "beta"),
        switches=True,
    ),
    "uniokd": Method(
        uniokd.uniokd,
        uniokd.Hyperparameters,
        edge_weights=("alpha", "beta"),
        switches=True,
    ),
    "cl_ilr": Method(cl_ilr.cl_ilr, cl_ilr.Hyperparameters, min_networks=2),
    # Online, with an ensemble or a module that all networks train.
    "one": Method(
        one.one,
        one.Hyperparameters,
        joint=True,
        branches=True,
        features=lambda h: FeatureSpec(every=(one.TRUNK,), modules=one.gate),
        ensemble=one.gated_ensemble,
    ),
    "okddip": Method(
        okddip.okddip,
        okddip.Hyperparameters,
        joint=True,
        min_networks=3,
        features=lambda h: FeatureSpec(every=("pooled",), modules=okddip.attention),
    ),
    "ffl": Method(
        ffl.ffl,
        ffl.Hyperparameters,
        joint=True,
        features=lambda h: FeatureSpec(every=(h.feature,), modules=functools.partial(ffl.fusion, h.feature)),
        ensemble=ffl.fused_ensemble,
    ),
    "pcl": Method(
        pcl.pcl,
        pcl.Hyperparameters,
        joint=True,
        min_networks=2,
        mean_teachers=True,
        features=lambda h: FeatureSpec(every=("pooled",), modules=pcl.peer_ensemble),
        ensemble=pcl.concatenated_ensemble,
    ),
    "mcl": Method(
        mcl.mcl,
        mcl.Hyperparameters,
        joint=True,
        features=lambda h: FeatureSpec(every=("pooled",), modules=functools.partial(mcl.embeddings, h.size)),
    ),
    "afd": Method(
        afd.afd,
        afd.Hyperparameters,
        min_networks=2,
        features=lambda h: FeatureSpec(every=(h.feature,), modules=functools.partial(afd.discriminators, h.feature)),
    ),
    # Offline, from the logits of a frozen teacher.
    "kd": Method(kd.kd, kd.Hyperparameters, offline=True),
    "dkd": Method(dkd.dkd, dkd.Hyperparameters, offline=True),
    "dist": Method(dist.dist, dist.Hyperparameters, offline=True),
    "rco": Method(rco.rco, rco.Hyperparameters, offline=True, teacher_at_epoch=rco.teacher_at_epoch),
    # Offline, from the features of a frozen teacher.
    "at": Method(
        at.at,
        at.Hyperparameters,
        offline=True,
        features=lambda h: FeatureSpec(h.student, h.teacher),
        default_features=at.default_features,
    ),
    "fitnet": Method(
        fitnet.fitnet,
        fitnet.Hyperparameters,
        offline=True,
        features=lambda h: FeatureSpec((h.student,), (h.teacher,), fitnet.regressor),
        default_features=fitnet.default_features,
    ),
    "crd": Method(
        crd.crd,
        crd.Hyperparameters,
        offline=True,
        features=lambda h: FeatureSpec((h.student,), (h.teacher,), crd.embedding(h)),
        init_memory=crd.init_memory,
    ),
    "shake": Method(
        shake.shake,
        shake.Hyperparameters,
        offline=True,
        features=lambda h: FeatureSpec(source=h.features, of_edge=functools.partial(shake.shadow_head, h.features)),
    ),
}
