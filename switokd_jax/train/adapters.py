"""Features between networks: which ones a method asks for, and the modules that it trains on them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from switokd_jax.errors import UserError, did_you_mean
from switokd_jax.forward import NetworkSpec
from switokd_jax.methods import FeatureSpec, TrainedModule
from switokd_jax.models.branches import split_collection, split_logits
from switokd_jax.models.layers import with_options
from switokd_jax.topology import Edge, Topology

Shapes = dict[str, tuple[int, ...]]


def feature_shapes(module: Any, image_shape: tuple[int, ...]) -> Shapes:
    """Shapes [1, ...] of the features and the 'logits' of a network or its branches.

    Args:
      module: a network of `models.create`.
      image_shape: (height, width, channels).
    """
    # The axis of a norm exists inside the step only.
    module = with_options(module, axis_name=None)

    def run(image: jax.Array) -> Any:
        variables = module.init(jax.random.key(0), image, train=False)
        return module.apply(variables, image, train=False, mutable=["intermediates"])

    logits, mutated = jax.eval_shape(run, jax.ShapeDtypeStruct((1, *image_shape), jnp.float32))
    # All branches have the same features.
    features = split_collection(module, mutated.get("intermediates", {}))[0]
    shapes = {name: values[0].shape for name, values in features.items()}
    return {**shapes, "logits": split_logits(module, logits)[0].shape}


def compared_stages(module: Any, image_shape: tuple[int, ...]) -> tuple[str, ...]:
    """Names of the stages that methods compare unless the config names others: the last four at most.

    These are the features of RepDistiller's code, where the first of VGG's five stages is no hint and no attention map.
    """
    stages = sorted(name for name in feature_shapes(module, image_shape) if name.startswith("stage"))
    return tuple(stages[-4:])


def with_features(
    networks: Mapping[str, NetworkSpec], spec: FeatureSpec, edges: tuple[Edge, ...], image_shape: tuple[int, ...]
) -> dict[str, NetworkSpec]:
    """Returns the networks with the features that they have to output; unchanged for methods that ask for none.

    Raises:
      UserError: for a feature that a network does not have; it lists those that it has.
    """
    wanted: dict[str, dict[str, None]] = {name: {} for name in networks}  # ordered sets
    name_of = {node: name for name, network in networks.items() for node in network.nodes}
    for edge in edges:
        wanted[name_of[edge.learner]] |= dict.fromkeys(spec.learner)
        wanted[name_of[edge.source]] |= dict.fromkeys(spec.source)
    for features in wanted.values():
        features |= dict.fromkeys(spec.every)
    if spec.learner and len(spec.learner) != len(spec.source):
        raise UserError(
            f"config: {len(spec.learner)} features of the student and {len(spec.source)} of the teacher are named; "
            "each needs its counterpart"
        )
    for name, features in wanted.items():
        try:
            known = feature_shapes(networks[name].module, image_shape) if features else {}
            known.pop("logits", None)  # no feature, although methods see its shape
        except ValueError as error:  # images that the model cannot take
            raise UserError(f"network {name!r}: {error}") from None
        for feature in features:
            if feature not in known:
                raise UserError(f"network {name!r} has no feature {feature!r}; {did_you_mean(str(feature), known)}")
    return {name: dataclasses.replace(network, features=tuple(wanted[name])) for name, network in networks.items()}


def trained_modules(
    networks: Mapping[str, NetworkSpec],
    spec: FeatureSpec,
    topology: Topology,
    edges: tuple[Edge, ...],
    image_shape: tuple[int, ...],
    convolution: Any = None,
    **dtypes: Any,
) -> dict[str, TrainedModule]:
    """Creates the method's modules: the adapters of edges by the edge, the others by their own names.

    Args:
      networks: the static parts, by name.
      spec: what the method asks for.
      topology: of the run.
      edges: those that the method uses.
      image_shape: (height, width, channels).
      convolution: for modules with an attribute of this name, see `models.ops.convolution`.
      **dtypes: `dtype` and `param_dtype` of all modules.

    Raises:
      UserError: if a module cannot be made for these features, or has a name or learner that cannot be.
    """
    modules: dict[str, TrainedModule] = {}
    if spec.adapter is None and not spec.has_modules:
        return modules
    network_of = {node: network for network in networks.values() for node in network.nodes}
    uses_features = spec.every or spec.learner or spec.source
    of_network = {
        name: feature_shapes(network.module, image_shape) if uses_features else {} for name, network in networks.items()
    }
    shapes = {node: of_network[name] for name, network in networks.items() for node in network.nodes}
    more: dict[str, TrainedModule] = {}
    for edge in edges:
        learner, source = shapes[edge.learner], shapes[edge.source]
        try:
            if spec.adapter is not None:
                inputs = (learner[spec.learner[0]], source[spec.source[0]])
                modules[str(edge)] = TrainedModule(spec.adapter(*inputs, **dtypes), inputs, edge.learner)
            more |= spec.of_edge(edge, learner, source, **dtypes)
        except ValueError as error:
            raise UserError(f"edge {edge}: {error}") from None
    every = {
        node: {name: of_node[name] for name in (*spec.every, "logits")} for node, of_node in shapes.items() if of_node
    }
    try:
        more |= spec.modules(topology, every, **dtypes)
    except ValueError as error:
        raise UserError(f"config.method: {error}") from None
    for name, trained in more.items():
        network = network_of.get(trained.learner)
        if name in modules or network is None or network.frozen:
            raise UserError(
                f"the method's module {name!r} learns with {trained.learner!r}, which has to be a network that learns, "
                "and its name has to be its own"
            )
    return {
        name: dataclasses.replace(trained, module=with_convolution(trained.module, convolution))
        for name, trained in (modules | more).items()
    }


def with_convolution(module: Any, convolution: Any) -> Any:
    """Returns a copy of a trained module that convolves so; the module itself if it has no such attribute."""
    return module.clone(convolution=convolution) if hasattr(module, "convolution") else module


def adapter_spec(learner: NetworkSpec, module: Any) -> NetworkSpec:
    """Returns the static part of a module that is trained with the optimizer and schedule of a network."""
    return dataclasses.replace(learner, module=module, ema=0.0, features=())
