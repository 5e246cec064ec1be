"""Grad-CAM: heat maps of the image regions that raise the logit of a class.

Source: Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization", ICCV 2017
(arXiv 1610.02391), equations 1 and 2.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from switokd_jax.analysis.trained_network import TrainedNetwork
from switokd_jax.data import transforms
from switokd_jax.errors import UserError, did_you_mean
from switokd_jax.models.layers import layers_of

MIN_MAP_SIDE = 4  # pixels; a smaller map has too little resolution to localize anything


def select_layer(network: TrainedNetwork) -> str:
    """Returns the name of the feature map that `grad_cam` explains by default.

    That is the last map with at least `MIN_MAP_SIDE` pixels a side, because the deepest features are the most specific
    to the classes; where all maps are smaller, it is the largest.

    Raises:
      UserError: naming the network, if it has no feature maps [batch, height, width, channels].
    """
    sides = _feature_map_sides(network)
    if not sides:
        info = network.model_info
        raise UserError(f"network {info.network!r} ({info.model}) has no feature maps for Grad-CAM")
    large = [name for name, side in sides.items() if min(side) >= MIN_MAP_SIDE]
    return large[-1] if large else max(sides, key=lambda name: min(sides[name]))


def grad_cam(
    network: TrainedNetwork, images: Any, classes: Any = None, layer_name: str = ""
) -> tuple[jax.Array, jax.Array]:
    """Computes heat maps of images for a network in evaluation mode.

    A map is relu(sum_k a_k A_k), where A_k are the feature maps, and a_k is the mean over pixels of the derivative of
    the class's logit by A_k. It is resized to the image bilinearly and scaled to a maximum of 1.

    Args:
      network: a network of `trained_network.read`.
      images: [batch, height, width, channels] uint8.
      classes: [batch] integer, the class to explain for each image; the predicted class by default.
      layer_name: name of the feature map; that of `select_layer` by default.

    Returns:
      Heat maps [batch, height, width] float32 within 0 and 1 (all 0 where no pixel raises the logit), and the predicted
      classes [batch] int32.

    Raises:
      UserError: as `select_layer`, or if the network has no feature map of that name.
    """
    name = layer_name or select_layer(network)
    sides = _feature_map_sides(network)
    if name not in sides:
        raise UserError(
            f"network {network.model_info.network!r} has no feature map {name!r}; {did_you_mean(name, sides)}"
        )
    inputs = transforms.normalize(jnp.asarray(images), network.preprocess, layers_of(network.module).dtype)
    targets = None if classes is None else jnp.asarray(classes)
    result: tuple[jax.Array, jax.Array] = _grad_cam(network.module, network.variables, inputs, targets, name)
    return result


# Compiled once per module and shape: networks of one model, as in a comparison of methods, share the program.
@functools.partial(jax.jit, static_argnums=(0, 4))
def _grad_cam(
    module: Any, variables: Any, inputs: jax.Array, classes: jax.Array | None, layer_name: str
) -> tuple[jax.Array, jax.Array]:
    def score_fn(perturbations: Any) -> tuple[jax.Array, tuple[jax.Array, Any]]:
        logits, mutated = module.apply(
            {**variables, "perturbations": perturbations}, inputs, train=False, mutable=["intermediates"]
        )
        predicted = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        targets = predicted if classes is None else classes
        # Images do not interact in evaluation mode: the gradient of the sum is the gradient for each image.
        score = jnp.sum(jnp.take_along_axis(logits, targets[:, None], axis=-1))
        return score, (predicted, mutated["intermediates"][layer_name][0])

    zeros = jax.tree.map(jnp.zeros_like, _perturbations(module, variables, inputs))
    gradients, (predicted, features) = jax.grad(score_fn, has_aux=True)(zeros)
    weights = jnp.mean(gradients[layer_name].astype(jnp.float32), axis=(1, 2), keepdims=True)
    maps = jax.nn.relu(jnp.sum(weights * features.astype(jnp.float32), axis=-1))
    maps = jnp.maximum(jax.image.resize(maps, inputs.shape[:3], "bilinear"), 0.0)
    largest = jnp.max(maps, axis=(1, 2), keepdims=True)
    return maps / jnp.where(largest > 0, largest, 1.0), predicted


def _perturbations(module: Any, variables: Any, inputs: jax.Array) -> Any:
    """Returns zeros in the shapes of all features of a network: the collection that `sow_feature` adds to them."""
    _, mutated = module.apply(variables, inputs, train=False, mutable=["perturbations"])
    return mutated.get("perturbations", {})


def _feature_map_sides(network: TrainedNetwork) -> dict[str, tuple[int, int]]:
    """Returns (height, width) of each feature map by name, in the order of the names; inner modules are left out."""
    image = jax.ShapeDtypeStruct((1, *network.model_info.image_shape), layers_of(network.module).dtype)
    features: Any = jax.eval_shape(functools.partial(_perturbations, network.module), network.variables, image)
    shapes = {name: features[name].shape for name in sorted(features) if not isinstance(features[name], Mapping)}
    return {name: shape[1:3] for name, shape in shapes.items() if len(shape) == 4}
