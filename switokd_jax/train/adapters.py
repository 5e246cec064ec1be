"""Feature projections between networks: which features a method asks for, and the adapters that it trains on them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from switokd_jax.errors import UserError, did_you_mean
from switokd_jax.forward import NetworkSpec
from switokd_jax.methods import FeatureSpec
from switokd_jax.models.layers import with_options
from switokd_jax.topology import Edge

Shapes = dict[str, tuple[int, ...]]


def feature_shapes(module: Any, image_shape: tuple[int, ...]) -> Shapes:
    """Shapes [1, ...] of a network's intermediate features by name, for images (height, width, channels)."""
    # The axis of a norm exists inside the step only.
    module = with_options(module, axis_name=None)

    def run(image: jax.Array) -> Any:
        variables = module.init(jax.random.PRNGKey(0), image, train=False)
        return module.apply(variables, image, train=False, mutable=["intermediates"])[1]

    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    intermediates = jax.eval_shape(run, image).get("intermediates", {})
    return {name: values[0].shape for name, values in intermediates.items()}


def with_features(
    networks: Mapping[str, NetworkSpec], spec: FeatureSpec, edges: tuple[Edge, ...], image_shape: tuple[int, ...]
) -> dict[str, NetworkSpec]:
    """Returns the networks with the features that they have to output; unchanged for methods that ask for none.

    Raises:
      UserError: for a feature that a network does not have; it lists those that it has.
    """
    wanted: dict[str, dict[str, None]] = {name: {} for name in networks}  # ordered sets
    for edge in edges:
        wanted[edge.learner] |= dict.fromkeys(spec.learner)
        wanted[edge.source] |= dict.fromkeys(spec.source)
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


def make_adapters(
    networks: Mapping[str, NetworkSpec],
    spec: FeatureSpec,
    edges: tuple[Edge, ...],
    image_shape: tuple[int, ...],
    **dtypes: Any,
) -> dict[str, NetworkSpec]:
    """Builds the method's adapters by edge; each learns with the optimizer and schedule of its edge's learner.

    Raises:
      UserError: if an adapter cannot project between two features.
    """
    adapter_specs: dict[str, NetworkSpec] = {}
    if spec.adapter is None:
        return adapter_specs
    for edge in edges:
        learner, source = networks[edge.learner], networks[edge.source]
        shapes = (
            feature_shapes(learner.module, image_shape)[spec.learner[0]],
            feature_shapes(source.module, image_shape)[spec.source[0]],
        )
        try:
            module = spec.adapter(*shapes, **dtypes)
        except ValueError as error:
            raise UserError(f"edge {edge}: {error}") from None
        adapter_specs[str(edge)] = dataclasses.replace(learner, module=module, ema=0.0, features=())
    return adapter_specs
