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
from switokd_jax.models.branches import split_collection
from switokd_jax.models.layers import with_options
from switokd_jax.topology import Edge, Topology

Shapes = dict[str, tuple[int, ...]]


def feature_shapes(module: Any, image_shape: tuple[int, ...]) -> Shapes:
    """Shapes [1, ...] of the features of a network or its branches, for images (height, width, channels)."""
    # The axis of a norm exists inside the step only.
    module = with_options(module, axis_name=None)

    def run(image: jax.Array) -> Any:
        variables = module.init(jax.random.PRNGKey(0), image, train=False)
        return module.apply(variables, image, train=False, mutable=["intermediates"])[1]

    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    intermediates = jax.eval_shape(run, image).get("intermediates", {})
    # All branches have the same features.
    return {name: values[0].shape for name, values in split_collection(module, intermediates)[0].items()}


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
    if len(spec.learner) != len(spec.source):
        raise UserError(
            f"config: {len(spec.learner)} features of the student and {len(spec.source)} of the teacher are named; "
            "each needs its counterpart"
        )
    for name, features in wanted.items():
        try:
            known = feature_shapes(networks[name].module, image_shape) if features else {}
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
    **dtypes: Any,
) -> dict[str, TrainedModule]:
    """Creates the method's modules: the adapters of edges by the edge, the others by their own names.

    Raises:
      UserError: if a module cannot be made for these features, or has a name or learner that cannot be.
    """
    modules: dict[str, TrainedModule] = {}
    network_of = {node: network for network in networks.values() for node in network.nodes}
    for edge in edges:
        if spec.adapter is None:
            break
        shapes = (
            feature_shapes(network_of[edge.learner].module, image_shape)[spec.learner[0]],
            feature_shapes(network_of[edge.source].module, image_shape)[spec.source[0]],
        )
        try:
            modules[str(edge)] = TrainedModule(spec.adapter(*shapes, **dtypes), shapes, edge.learner)
        except ValueError as error:
            raise UserError(f"edge {edge}: {error}") from None
    every: dict[str, Shapes] = {}
    for network in networks.values() if spec.every else ():
        known = feature_shapes(network.module, image_shape)
        every |= {node: {feature: known[feature] for feature in spec.every} for node in network.nodes}
    for name, trained in spec.modules(topology, every, **dtypes).items():
        learner = network_of.get(trained.learner)
        if name in modules or learner is None or learner.frozen:
            raise UserError(
                f"the method's module {name!r} learns with {trained.learner!r}, which has to be a network that learns, "
                "and its name has to be its own"
            )
        modules[name] = trained
    return modules


def adapter_spec(learner: NetworkSpec, module: Any) -> NetworkSpec:
    """Returns the static part of a module that is trained with the optimizer and schedule of a network."""
    return dataclasses.replace(learner, module=module, ema=0.0, features=())
