"""From a config and a data set to a run plan: topology, networks, method and step, checked before anything
compiles."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from switokd_jax import config_fields, models, optim, topology
from switokd_jax.config import Config
from switokd_jax.data import dataset, resident, sampling
from switokd_jax.errors import UserError
from switokd_jax.forward import NetworkSpec
from switokd_jax.methods import METHODS, Method
from switokd_jax.models.ops import convolution
from switokd_jax.parallel import mesh
from switokd_jax.parallel.collectives import Collectives
from switokd_jax.step import train_step
from switokd_jax.topology import Pair, Topology
from switokd_jax.train import adapters, evaluator

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float64": jnp.float64}


@dataclasses.dataclass(frozen=True)
class RunSpec:
    """All that a run is, before its first step.

    Attributes:
      config: the validated config.
      topology: who learns from whom.
      networks: what does not change, by name, in the topology's order.
      method: the distillation method.
      adapters: what the method trains on features, by edge.
      devices: how they work together.
      data: the facts of the data set.
      steps_per_epoch: the last partial batch included.
      total_steps: of the whole run.
    """

    config: Config
    topology: Topology
    networks: Mapping[str, NetworkSpec]
    method: Method
    adapters: Mapping[str, NetworkSpec]
    distribution: mesh.Distribution
    dataset_info: dataset.DatasetInfo
    steps_per_epoch: int
    total_steps: int

    @property
    def pairs(self) -> tuple[Pair, ...]:
        """The gated pairs whose mode this method decides in every step."""
        return self.topology.pairs if self.method.switches else ()

    @property
    def teacher_schedule(self) -> dict[int, str]:
        """The checkpoints that frozen networks become on the way, by global step."""
        epochs = range(1, self.total_steps // self.steps_per_epoch + 1)
        found = {epoch: self.method.teacher_at_epoch(self.config.hyperparameters, epoch) for epoch in epochs}
        return {epoch * self.steps_per_epoch: source for epoch, source in found.items() if source}

    def epoch(self, step: int) -> float:
        """Epochs behind a global step."""
        return step / self.steps_per_epoch


def make_topology(config: Config) -> Topology:
    """Builds the topology that the config names; the method's `edge_weights` weight its edges.

    Raises:
      UserError: naming the node, edge or field that cannot be used.
    """
    kind, spec, method = config.topology.kind, config.topology, METHODS[config.method]
    build = topology.TOPOLOGIES[kind]
    weights: dict[str, Any] = {
        name: getattr(config.hyperparameters, field)
        for name, field in zip(("alpha", "beta"), method.edge_weights, strict=False)
    }
    settings = topology.TopologySettings(
        networks=[*config.networks],
        teachers=spec.teachers,
        students=spec.students,
        names=spec.names,
        edges=spec.edges,
        relay=spec.relay,
        **weights,
    )
    try:
        built = build(settings)
    except ValueError as error:
        raise UserError(f"config.topology: {error}") from None
    defaults = config_fields.defaults(method.hyperparameters)
    for name, field in zip(weights, method.edge_weights, strict=True):
        unweighted: dict[str, Any] = {name: 1.0}
        # A kind that does not use the weight builds the same topology without it.
        if weights[name] not in (1.0, defaults[field]) and build(dataclasses.replace(settings, **unweighted)) == built:
            raise UserError(
                f"config.{config.method}.{field} is {weights[name]}, but topology.kind {kind!r} does not use it; leave "
                f"it at {defaults[field]} and put weights on the edges (topology.kind 'custom', topology.edges)"
            )
    if unknown := [name for name in built.nodes if name not in config.networks]:
        raise UserError(
            f"config.topology names the unknown network {unknown[0]!r}; config.networks has "
            f"{', '.join(config.networks)}"
        )
    if unused := [name for name in config.networks if name not in built.nodes]:
        raise UserError(f"config.networks.{unused[0]} takes no part in config.topology; remove it or name it there")
    return built


def make(config: Config, data: dataset.DatasetInfo, devices: Sequence[jax.Device] | None = None) -> RunSpec:
    """Builds the plan for a data set, on the given devices or all.

    Raises:
      ConfigError: naming the field at fault.
    """
    graph = make_topology(config)
    way = (config.parallelism, config.sharding, config.batch_norm)
    together = mesh.create(*way, config.batch_size, devices, deterministic=config.deterministic)
    sampling.check_microbatches(config, data.train_examples, together.device_count)
    per_epoch = sampling.steps_per_epoch(data.train_examples, config.batch_size)
    total = config.steps or max(round(config.epochs * per_epoch), 1)
    create = functools.partial(
        models.create,
        num_classes=data.num_classes,
        axis_name=together.batch_norm_axis_name,
        convolution=convolution.for_devices(together.platform, alone=together.single_device_program),
        **_kinds(config),
    )
    networks = {name: _network(config, name, create, per_epoch, total) for name in graph.nodes}
    method = METHODS[config.method]
    _check_method(config, method, graph)
    use = method.features(config.hyperparameters)
    edges = graph.edges_from(_frozen(config, graph)) if method.offline else ()
    networks = adapters.with_features(networks, use, edges, data.image_shape)
    adapting = adapters.make_adapters(networks, use, edges, data.image_shape, **_kinds(config))
    return RunSpec(
        config=config,
        topology=graph,
        networks=networks,
        method=method,
        adapters=adapting,
        distribution=together,
        dataset_info=data,
        steps_per_epoch=per_epoch,
        total_steps=total,
    )


def _kinds(config: Config) -> dict[str, Any]:
    """The dtypes of a module: parameters are float32 at least."""
    dtype = DTYPES[config.dtype]
    return {"dtype": dtype, "param_dtype": jnp.promote_types(dtype, jnp.float32)}


def _frozen(config: Config, graph: Topology) -> frozenset[str]:
    return frozenset(name for name in graph.nodes if config.networks[name].frozen)


def _check_method(config: Config, method: Method, graph: Topology) -> None:
    """What a method asks of the networks and the data.

    Raises:
      ConfigError: naming the network or field that it lacks.
    """
    frozen = _frozen(config, graph)
    for name in frozen:
        if not config.networks[name].init_from:
            raise UserError(
                f"config.networks.{name} is frozen and has no init_from: it would stay as it was drawn; "
                "name a checkpoint there"
            )
        if config.networks[name].ema:
            raise UserError(f"config.networks.{name} is frozen, so there is nothing to average; set its ema to 0")
    if method.offline and not graph.edges_from(frozen):
        raise UserError(
            f"config.method {config.method!r} learns from frozen networks and finds none to learn from; set "
            f"config.networks.{graph.nodes[0]}.frozen = True and its init_from"
        )
    if frozen and len(frozen) == len(graph.nodes):
        raise UserError("config.networks: all networks are frozen, so none would learn")
    if method.update_memory_at_eval(config.hyperparameters) and config.data.validation_fraction == 0:
        raise UserError(
            f"config.data.validation_fraction is 0, and this form of {config.method!r} weighs the networks on "
            "held-out images; set it to 0.1, say"
        )


def _network(config: Config, name: str, create: Callable[[str], Any], per_epoch: int, total: int) -> NetworkSpec:
    spec = config.networks[name]
    try:
        module = create(spec.model)
    except ValueError as error:
        raise UserError(f"config.networks.{name}.model: {error}") from None
    if spec.remat:
        if not hasattr(module, "remat"):
            raise UserError(
                f"config.networks.{name}.remat: {spec.model!r} has no blocks to compute again; set it to False"
            )
        module = module.clone(remat=True)
    return NetworkSpec(
        module=module,
        optimizer=optim.make_optimizer(spec.optimizer, spec.optimizer_settings, spec.clip_norm),
        schedule=optim.make_schedule(spec.schedule, spec.schedule_settings(per_epoch, total)),
        label_smoothing=spec.label_smoothing,
        ema=spec.ema,
        frozen=spec.frozen,
    )


def make_step(plan: RunSpec) -> Callable[[Collectives], Callable[..., Any]]:
    """The train step of a plan, for `Distribution.compile`, carried: (state, data, batch) -> (state, metrics)."""
    inputs = resident.train_inputs(
        plan.dataset_info.preprocess,
        augmented=plan.config.data.augment,
        steps_in_epoch=plan.steps_per_epoch,
        dtype=DTYPES[plan.config.dtype],
    )

    def for_devices(across: Collectives) -> Callable[..., Any]:
        def step(state: Any, data: resident.DeviceDataset | None, batch: sampling.Batch) -> Any:
            images, labels = inputs(data, batch, state.rng, state.step)
            return train_step(
                state,
                images,
                labels,
                batch.index,
                epoch=state.step // plan.steps_per_epoch + 1,
                networks=plan.networks,
                method=plan.method.apply,
                hyperparameters=plan.config.hyperparameters,
                topology=plan.topology,
                across=across,
                adapters=plan.adapters,
                parts=plan.config.gradient_accumulation,
                skip_nonfinite=plan.config.on_nonfinite == "skip",
            )

        return step

    return for_devices


def make_correlation(plan: RunSpec) -> Callable[[Collectives], Callable[..., Any]]:
    """The step behind `evaluator.error_correlation`, for `Distribution.compile`."""
    modules = {name: network.module for name, network in plan.networks.items()}
    return evaluator.correlation_step(
        modules, plan.dataset_info.preprocess, plan.dataset_info.num_classes, DTYPES[plan.config.dtype]
    )


def make_score(plan: RunSpec) -> Callable[[Collectives], Callable[..., Any]]:
    """The scoring step of a plan, for `Distribution.compile`: (variables, data, batch) -> sums."""
    modules = {name: network.module for name, network in plan.networks.items()}
    return evaluator.score_step(
        modules, plan.dataset_info.preprocess, plan.dataset_info.num_classes, DTYPES[plan.config.dtype]
    )
