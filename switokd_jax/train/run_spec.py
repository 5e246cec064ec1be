"""From a config and a data set to a `RunSpec`: all that is static in a run, checked before anything compiles."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from switokd_jax import config_fields, models, optim, topology
from switokd_jax.config import Config
from switokd_jax.data import dataset, loader, mixing, resident, sampling, transforms
from switokd_jax.errors import UserError
from switokd_jax.forward import NetworkSpec
from switokd_jax.methods import METHODS, Method
from switokd_jax.models.branches import single_networks, split_variables
from switokd_jax.models.layers import with_options
from switokd_jax.models.ops import convolution
from switokd_jax.parallel import mesh
from switokd_jax.parallel.collectives import Collectives
from switokd_jax.precision import DTYPES, module_dtypes
from switokd_jax.state import TrainState
from switokd_jax.step import StepSpec, train_step
from switokd_jax.topology import Edge, Pair, Topology
from switokd_jax.train import adapters

TrainStepFn = Callable[[Collectives, TrainState, resident.DeviceDataset | None, sampling.Batch], Any]


@dataclasses.dataclass(frozen=True)
class RunSpec:
    """All that is static in a run.

    Attributes:
      config: the validated config.
      topology: which node, a network or a branch, learns from which.
      networks: the static part of each network by name, in the topology's order.
      method: the distillation method.
      adapters: the method's trained modules, by name.
      adapter_inputs: shapes [1, ...] of their inputs, by name.
      distribution: how the devices share the work.
      dataset_info: shapes and sizes of the data set.
      steps_per_epoch: counts the last partial batch.
      total_steps: of the whole run.
    """

    config: Config
    topology: Topology
    networks: Mapping[str, NetworkSpec]
    method: Method
    adapters: Mapping[str, NetworkSpec]
    adapter_inputs: Mapping[str, tuple[tuple[int, ...], ...]]
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
        """The checkpoints that frozen networks load during the run, by global step."""
        epochs = range(1, self.total_steps // self.steps_per_epoch + 1)
        sources = {epoch: self.method.teacher_at_epoch(self.config.hyperparameters, epoch) for epoch in epochs}
        return {epoch * self.steps_per_epoch: source for epoch, source in sources.items() if source}

    @property
    def max_steps_per_call(self) -> int:
        """Largest number of train steps in one call of the devices."""
        # The images of a stream are large: one batch at a time.
        return self.config.steps_per_call if self.config.data.pipeline == "resident" else 1

    @property
    def step_spec(self) -> StepSpec:
        """The static part of the train step."""
        return StepSpec(
            networks=self.networks,
            topology=self.topology,
            method=self.method.apply,
            hyperparameters=self.config.hyperparameters,
            adapters=self.adapters,
            steps_per_epoch=self.steps_per_epoch,
            num_microbatches=self.config.gradient_accumulation,
            skip_nonfinite=self.config.on_nonfinite == "skip",
            mean_teachers=self.method.mean_teachers,
        )

    @property
    def views(self) -> tuple[str, ...]:
        """Networks, or branches, that see crops and transforms of their own; none if all see the same."""
        nodes = tuple(node for network in self.networks.values() for node in network.nodes)
        return {"shared": (), "per_network": tuple(self.networks), "per_branch": nodes}[self.config.data.views]

    def input_shape(self, name: str) -> tuple[int, ...]:
        """Shape of what a network sees of one example: of its image, or of a view for each branch."""
        nodes, shape = self.networks[name].nodes, self.dataset_info.image_shape
        return (len(nodes), *shape) if len(nodes) > 1 and self.config.data.views == "per_branch" else shape

    @property
    def node_modules(self) -> dict[str, Any]:
        """The ordinary network of each node: of a branch, with its trunk."""
        modules = {
            node: module
            for network in self.networks.values()
            for node, module in zip(network.nodes, single_networks(network.module), strict=True)
        }
        return {node: modules[node] for node in self.topology.nodes}

    def eval_variables(self, state: TrainState) -> dict[str, dict[str, Any]]:
        """The variables of `node_modules` to evaluate: with averaged parameters where a network keeps them."""
        variables = {
            node: of_node
            for name, network in self.networks.items()
            for node, of_node in zip(
                network.nodes, split_variables(network.module, state.networks[name].eval_variables), strict=True
            )
        }
        return {node: variables[node] for node in self.topology.nodes}

    def epoch(self, step: int) -> float:
        """Number of epochs completed after a global step."""
        return step / self.steps_per_epoch


def make_train_inputs(run: RunSpec) -> Callable[..., sampling.Batch]:
    """Returns (data, batch, rng, step, collectives) -> batch for inside the run's step.

    See `loader.train_inputs`. With `config.data.mix` images and labels are mixed within the global batch.
    """
    config, info = run.config, run.dataset_info
    own_inputs = loader.train_inputs(
        info.preprocess,
        config.data,
        steps_per_epoch=run.steps_per_epoch,
        dtype=DTYPES[config.dtype],
        views=run.views,
    )
    mixings = mixing.get_mixings(config.data.mix) if config.data.augment else {}

    def train_inputs(
        data: resident.DeviceDataset | None,
        batch: sampling.Batch,
        rng: jax.Array,
        step: jax.Array,
        collectives: Collectives,
    ) -> sampling.Batch:
        inputs = own_inputs(data, batch, rng, step)
        if not mixings:
            return inputs
        keys = transforms.example_keys(rng, step // run.steps_per_epoch, batch.index)
        return mixing.mix_batch(
            mixings, inputs, keys, info.num_classes, collectives.all_gather, collectives.local_shard
        )

    return train_inputs


def make_train_step(run: RunSpec) -> TrainStepFn:
    """Returns the train step for `Distribution.compile`: (collectives, state, data, batch) -> (state, metrics)."""
    spec, make_inputs = run.step_spec, make_train_inputs(run)

    def step(
        collectives: Collectives, state: TrainState, data: resident.DeviceDataset | None, batch: sampling.Batch
    ) -> Any:
        return train_step(state, make_inputs(data, batch, state.key, state.step, collectives), spec, collectives)

    return step


def make(config: Config, info: dataset.DatasetInfo, devices: Sequence[jax.Device] | None = None) -> RunSpec:
    """Builds the run for a data set, on the given devices or all.

    Raises:
      UserError: naming the config field at fault.
    """
    graph = make_topology(config)
    distribution = mesh.create(
        config.parallelism,
        config.sharding,
        config.batch_norm,
        config.batch_size,
        devices,
        deterministic=config.deterministic,
    )
    check_microbatches(config, info.train_examples, distribution.device_count)
    transforms.check_transforms(config.data.transforms, info.image_shape, info.preprocess)
    mixing.check_mixings(config.data.mix, info.image_shape)
    steps_per_epoch = sampling.steps_per_epoch(info.train_examples, config.batch_size)
    total_steps = config.steps or max(round(config.epochs * steps_per_epoch), 1)
    for name, steps in {"epochs": total_steps, **_warmup_steps(config, steps_per_epoch)}.items():
        if steps > config_fields.MAX_INT32:
            raise UserError(
                f"config.{name} is {steps:,} steps, and steps are counted up to {config_fields.MAX_INT32:,}"
            )
    if config.batch_size > max(info.train_examples, distribution.device_count):
        raise UserError(
            f"config.batch_size is {config.batch_size}, and there are {info.train_examples} training images; lower it"
        )
    # A user's own network may lack the option; torch's way is the default of ours.
    options: dict[str, Any] = {} if config.running_variance == "unbiased" else {"unbiased_variance": False}
    convolve = convolution.for_devices(distribution.platform, single_device=distribution.single_device_program)
    create = functools.partial(
        models.create,
        num_classes=info.num_classes,
        axis_name=distribution.batch_norm_axis_name,
        convolution=convolve,
        **options,
        **module_dtypes(config.dtype),
    )
    names = dict.fromkeys(config.network_of[node] for node in graph.nodes)  # in this order
    networks = {name: _network(config, name, create, steps_per_epoch, total_steps) for name in names}
    _check_single_images(config, networks, info, distribution)
    method = METHODS[config.method]
    _check_method(config, method, graph)
    frozen = _frozen(config, graph)
    learning_edges = tuple(edge for edge in graph.edges if edge.learner not in frozen)
    edges = graph.edges_from(frozen) if method.offline else learning_edges
    config = _with_default_features(config, networks, edges, info)
    features = method.features(config.hyperparameters)
    networks = adapters.with_features(networks, features, edges, info.image_shape)
    trained = adapters.trained_modules(
        networks, features, graph, edges, info.image_shape, convolve, **module_dtypes(config.dtype)
    )
    return RunSpec(
        config=config,
        topology=graph,
        networks=networks,
        method=method,
        adapters={
            name: adapters.adapter_spec(networks[config.network_of[entry.learner]], entry.module)
            for name, entry in trained.items()
        },
        adapter_inputs={name: entry.inputs for name, entry in trained.items()},
        distribution=distribution,
        dataset_info=info,
        steps_per_epoch=steps_per_epoch,
        total_steps=total_steps,
    )


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
        networks=[*config.network_of],
        teachers=spec.teachers,
        students=spec.students,
        names=spec.names,
        edges=spec.edges,
        relay=spec.relay,
        **weights,
    )
    try:
        graph = build(settings)
    except ValueError as error:
        raise UserError(f"config.topology: {error}") from None
    defaults = config_fields.defaults(method.hyperparameters)
    for name, field in zip(weights, method.edge_weights, strict=True):
        unweighted: dict[str, Any] = {name: 1.0}
        # A kind that does not use the weight builds the same topology without it.
        if weights[name] not in (1.0, defaults[field]) and build(dataclasses.replace(settings, **unweighted)) == graph:
            raise UserError(
                f"config.{config.method}.{field} is {weights[name]}, but topology.kind {kind!r} does not use it; leave "
                f"it at {defaults[field]} and put weights on the edges (topology.kind 'custom', topology.edges)"
            )
    if unknown := [node for node in graph.nodes if node not in config.network_of]:
        raise UserError(
            f"config.topology names the unknown network {unknown[0]!r}; config.networks has "
            f"{', '.join(config.network_of)}"
        )
    if unused := [node for node in config.network_of if node not in graph.nodes]:
        raise UserError(f"config.networks.{unused[0]} takes no part in config.topology; remove it or name it there")
    if branches := [teacher for teacher, _ in graph.pairs if teacher not in config.networks and method.switches]:
        raise UserError(
            f"config.method {config.method!r} would pause {branches[0]}, a branch, whose trunk learns from the other "
            "branches; take a network of its own, or another method"
        )
    return graph


def check_microbatches(config: Config, num_examples: int, num_devices: int) -> None:
    """Checks that every batch of an epoch can be divided into equal microbatches on each device.

    A device holds its share of a batch, or all of a batch that the devices do not divide.

    Raises:
      UserError: naming the batch that cannot be divided.
    """
    num_microbatches = config.gradient_accumulation
    for size in (config.batch_size, num_examples % config.batch_size):
        examples_per_device = size if size % num_devices else size // num_devices
        if examples_per_device % num_microbatches:
            batch = "a batch" if size == config.batch_size else "the last batch of an epoch"
            raise UserError(
                f"config.gradient_accumulation is {num_microbatches}, which does not divide {batch}, {size} examples "
                f"on {num_devices} device(s); change it or config.batch_size"
            )


def _warmup_steps(config: Config, steps_per_epoch: int) -> dict[str, int]:
    return {
        f"networks.{name}.warmup_epochs": round(network.warmup_epochs * steps_per_epoch)
        for name, network in config.networks.items()
    }


def _check_single_images(
    config: Config, networks: Mapping[str, NetworkSpec], info: dataset.DatasetInfo, distribution: mesh.Distribution
) -> None:
    """Checks networks on a batch of one image, if BatchNorm sees such batches: some layers may have one pixel left.

    Raises:
      UserError: naming the network and the layer whose statistics would be of one number.
    """
    num_microbatches = config.gradient_accumulation * (distribution.device_count if config.batch_norm == "local" else 1)
    last = info.train_examples % config.batch_size
    if 1 not in (
        config.batch_size // num_microbatches,
        last // num_microbatches if last % num_microbatches == 0 else last,
    ):
        return
    image = jax.ShapeDtypeStruct((1, *info.image_shape), DTYPES[config.dtype])
    for name, network in networks.items():
        module = with_options(network.module, axis_name=None)
        try:
            variables = jax.eval_shape(lambda x, m=module: m.init(jax.random.key(0), x, train=False), image)
            jax.eval_shape(
                lambda v, x, m=module: m.apply(
                    v, x, train=True, mutable=["batch_stats"], rngs={"dropout": jax.random.key(0)}
                ),
                variables,
                image,
            )
        except ValueError as error:  # images of a size that the model cannot take are reported when it is initialized
            if isinstance(error, UserError) and not network.frozen:
                raise UserError(f"config.networks.{name}: {error}") from None


def _frozen(config: Config, graph: Topology) -> frozenset[str]:
    return frozenset(node for node in graph.nodes if config.networks[config.network_of[node]].frozen)


def _ema(config: Config, node: str) -> float:
    return config.networks[config.network_of[node]].ema


def _check_method(config: Config, method: Method, graph: Topology) -> None:
    """Checks that the networks and the data are what the method needs.

    Raises:
      UserError: naming the network or field at fault.
    """
    frozen = _frozen(config, graph)
    for name in frozen:
        if not config.networks[name].init_from:
            raise UserError(
                f"config.networks.{name} is frozen and has no init_from: it would keep its random initial weights; "
                "name a checkpoint there"
            )
        if config.networks[name].ema:
            raise UserError(f"config.networks.{name} is frozen, so there is nothing to average; set its ema to 0")
    if method.offline and not graph.edges_from(frozen):
        raise UserError(
            f"config.method {config.method!r} learns from frozen networks and finds none to learn from; set "
            f"config.networks.{graph.nodes[0]}.frozen = True and its init_from"
        )
    if len(graph.nodes) < method.min_networks:
        raise UserError(
            f"config.method {config.method!r} needs {method.min_networks} networks or branches, and there are "
            f"{len(graph.nodes)}; add networks, or set config.networks.NAME.branches"
        )
    if method.branches and ({*graph.nodes} & {*config.networks} or len(config.networks) > 1):
        raise UserError(
            f"config.method {config.method!r} needs one network with branches; set config.networks.NAME.branches = 3, "
            "remove the other networks, and take topology.kind 'complete'"
        )
    if method.mean_teachers and (
        bare := [name for name in graph.nodes if name not in frozen and not _ema(config, name)]
    ):
        raise UserError(
            f"config.networks.{config.network_of[bare[0]]}.ema is 0, and {config.method!r} learns from averaged "
            "weights; set it to 0.999, say"
        )
    if frozen and len(frozen) == len(graph.nodes):
        raise UserError("config.networks: all networks are frozen, so none would learn")
    if method.update_memory_at_eval(config.hyperparameters) and config.data.validation_fraction == 0:
        raise UserError(
            f"config.data.validation_fraction is 0, and this form of {config.method!r} weights the networks on "
            "held-out images; set it to 0.1, say"
        )


def _with_default_features(
    config: Config, networks: Mapping[str, NetworkSpec], edges: Sequence[Edge], info: dataset.DatasetInfo
) -> Config:
    """Returns the config with the features that the method compares, where it leaves them open.

    Raises:
      UserError: if a network has no stages.
    """
    default_features = METHODS[config.method].default_features
    if not edges or default_features is None:
        return config
    stages = [
        adapters.compared_stages(networks[config.network_of[node]].module, info.image_shape)
        for node in (edges[0].learner, edges[0].source)
    ]
    try:
        return dataclasses.replace(config, hyperparameters=default_features(config.hyperparameters, *stages))
    except ValueError as error:
        raise UserError(f"config.{config.method}: {error}") from None


def _network(
    config: Config, name: str, create: Callable[[str], Any], steps_per_epoch: int, total_steps: int
) -> NetworkSpec:
    network = config.networks[name]
    branches: dict[str, Any] = {}
    if network.branches > 1:
        branches = {"branches": network.branches, "branch_from": network.branch_from}
        branches["mean_gradient"] = network.trunk_gradient == "mean"
    try:
        module = create(network.model, **branches)
    except ValueError as error:
        raise UserError(f"config.networks.{name}.model: {error}") from None
    if network.remat:
        try:
            module = with_options(module, remat=True)
        except ValueError:
            raise UserError(
                f"config.networks.{name}.remat: {network.model!r} has no blocks to recompute; set it to False"
            ) from None
    return NetworkSpec(
        module=module,
        optimizer=optim.make_optimizer(network.optimizer, network.optimizer_settings, network.clip_norm),
        schedule=optim.make_schedule(network.schedule, network.schedule_settings(steps_per_epoch, total_steps)),
        nodes=network.nodes(name),
        label_smoothing=network.label_smoothing,
        ema=network.ema,
        ema_warmup=network.ema_warmup,
        frozen=network.frozen,
    )
