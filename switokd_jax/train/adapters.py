"""Features between networks: which a method takes, whether they exist, and the adapters that it trains on them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from switokd_jax.errors import UserError, did_you_mean
from switokd_jax.forward import NetworkSpec
from switokd_jax.methods import FeatureSpec
from switokd_jax.models.layers import layers_of, with_options
from switokd_jax.state import NetworkState, fold_in_name, network_state
from switokd_jax.topology import Edge

Shapes = dict[str, tuple[int, ...]]


def tapped(module: Any, image_shape: tuple[int, ...]) -> Shapes:
    """Shapes [batch of 1, ...] of the features that a network taps, by name, for images (height, width, channels)."""
    # Without devices: the axis of a norm exists inside the step only.
    module = with_options(module, axis_name=None)

    def run(image: jax.Array) -> Any:
        variables = module.init(jax.random.PRNGKey(0), image, train=False)
        return module.apply(variables, image, train=False, mutable=["intermediates"])[1]

    seen = jax.eval_shape(run, jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)).get("intermediates", {})
    return {name: values[0].shape for name, values in seen.items()}


def with_features(
    networks: Mapping[str, NetworkSpec], use: FeatureSpec, edges: tuple[Edge, ...], image_shape: tuple[int, ...]
) -> dict[str, NetworkSpec]:
    """The networks, told which features to give; unchanged for methods that take none.

    Raises:
      ConfigError: for a name that a network does not tap, with those that it does.
    """
    wanted: dict[str, dict[str, None]] = {name: {} for name in networks}  # ordered sets
    for edge in edges:
        wanted[edge.learner] |= dict.fromkeys(use.learner)
        wanted[edge.source] |= dict.fromkeys(use.source)
    if len(use.learner) != len(use.source):
        raise UserError(
            f"config: {len(use.learner)} features of the student and {len(use.source)} of the teacher are named; "
            "each needs its counterpart"
        )
    for name, features in wanted.items():
        try:
            known = tapped(networks[name].module, image_shape) if features else {}
        except ValueError as error:  # images that the model cannot take
            raise UserError(f"network {name!r}: {error}") from None
        for feature in features:
            if feature not in known:
                raise UserError(f"network {name!r} has no feature {feature!r}; {did_you_mean(str(feature), known)}")
    return {name: dataclasses.replace(network, features=tuple(wanted[name])) for name, network in networks.items()}


def make_adapters(
    networks: Mapping[str, NetworkSpec],
    use: FeatureSpec,
    edges: tuple[Edge, ...],
    image_shape: tuple[int, ...],
    **kinds: Any,
) -> dict[str, NetworkSpec]:
    """The method's adapters by edge; each learns with the optimizer and rate of its edge's learner.

    Raises:
      ConfigError: if two features cannot be brought together.
    """
    made: dict[str, NetworkSpec] = {}
    if use.adapter is None:
        return made
    for edge in edges:
        learner, source = networks[edge.learner], networks[edge.source]
        shapes = tapped(learner.module, image_shape)[use.learner[0]], tapped(source.module, image_shape)[use.source[0]]
        try:
            module = use.adapter(*shapes, **kinds)
        except ValueError as error:
            raise UserError(f"edge {edge}: {error}") from None
        made[str(edge)] = dataclasses.replace(learner, module=module, ema=0.0, features=())
    return made


def initial_adapters(
    adapters: Mapping[str, NetworkSpec], networks: Mapping[str, NetworkSpec], image_shape: tuple[int, ...], seed: int
) -> dict[str, NetworkState]:
    """Their states before the first step; the key is the seed folded with the edge's name."""
    states = {}
    for edge, adapter in adapters.items():
        features = [
            jnp.zeros(tapped(networks[name].module, image_shape)[networks[name].features[0]], jnp.float32)
            for name in edge.split(" <- ", 1)
        ]
        key = fold_in_name(jax.random.PRNGKey(seed), edge)
        # Drawn in float32 and cast, as the networks' own weights are.
        drawn = with_options(adapter.module, dtype=jnp.float32, param_dtype=jnp.float32)
        variables = drawn.init(key, *features, train=False)
        whole = {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}
        states[edge] = network_state(
            adapter, jax.tree.map(lambda x, like=adapter: x.astype(layers_of(like.module).param_dtype), whole)
        )
    return states
