"""Grad-CAM: which places of an image speak for a class.

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

LEAST = 4  # places a side: on fewer a map hardly says where


def select_layer(network: TrainedNetwork) -> str:
    """The features that `heat` looks at: the last ones that models tap with at least 4 places a side, as the deepest
    convolutions have the classes in them; of small images the finest ones.

    Raises:
      ConfigError: naming the network, if it taps no features [batch, height, width, channels].
    """
    spatial = _maps(network)
    if not spatial:
        raise UserError(f"network {network.facts.network!r} ({network.facts.model}) taps no feature maps for Grad-CAM")
    fine = [name for name, sides in spatial.items() if min(sides) >= LEAST]
    return fine[-1] if fine else max(spatial, key=lambda name: min(spatial[name]))


def grad_cam(network: TrainedNetwork, images: Any, classes: Any = None, of: str = "") -> tuple[jax.Array, jax.Array]:
    """Heat maps of images, by a network in evaluation mode.

    A map is relu(sum_k a_k A_k), where A_k are the feature maps, and a_k is the mean over places of the derivative of
    the class's logit by A_k; it is brought to the image's size bilinearly, and its largest value to 1.

    Args:
      network: of `trained.read`.
      images: [batch, height, width, channels] uint8.
      classes: [batch] integer, the class to explain for each image; the network's own choice unless given.
      of: name of the tapped features; those of `layer` unless given.

    Returns:
      Maps [batch, height, width] float32 within 0 and 1 (all 0 where nothing speaks for the class), and the network's
      own choices [batch] int32.

    Raises:
      ConfigError: as `layer`, or if the network taps no maps of the name `of`.
    """
    name = of or select_layer(network)
    if name not in (known := _maps(network)):
        raise UserError(f"network {network.facts.network!r} taps no maps {name!r}; {did_you_mean(name, known)}")
    inputs = transforms.normalize(jnp.asarray(images), network.preprocess, network.module.dtype)
    asked = None if classes is None else jnp.asarray(classes)
    made: tuple[jax.Array, jax.Array] = _heat(network.module, network.variables, inputs, asked, name)
    return made


# Networks of one model, as the methods of a comparison have them, share a compilation.
@functools.partial(jax.jit, static_argnums=(0, 4))
def _heat(
    module: Any, variables: Any, inputs: jax.Array, classes: jax.Array | None, of: str
) -> tuple[jax.Array, jax.Array]:
    def explained(perturbations: Any) -> tuple[jax.Array, tuple[jax.Array, Any]]:
        logits, moved = module.apply(
            {**variables, "perturbations": perturbations}, inputs, train=False, mutable=["intermediates"]
        )
        chosen = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        asked = chosen if classes is None else classes
        # Images do not meet in evaluation mode: the gradient of the sum is that of each.
        score = jnp.sum(jnp.take_along_axis(logits, asked[:, None], axis=-1))
        return score, (chosen, moved["intermediates"][of][0])

    zeros = jax.tree.map(jnp.zeros_like, _perturbations(module, variables, inputs))
    gradients, (chosen, features) = jax.grad(explained, has_aux=True)(zeros)
    weights = jnp.mean(gradients[of].astype(jnp.float32), axis=(1, 2), keepdims=True)
    maps = jax.nn.relu(jnp.sum(weights * features.astype(jnp.float32), axis=-1))
    maps = jnp.maximum(jax.image.resize(maps, inputs.shape[:3], "bilinear"), 0.0)
    largest = jnp.max(maps, axis=(1, 2), keepdims=True)
    return maps / jnp.where(largest > 0, largest, 1.0), chosen


def _perturbations(module: Any, variables: Any, inputs: jax.Array) -> Any:
    """Zeros, to be added to everything that the network taps."""
    _, made = module.apply(variables, inputs, train=False, mutable=["perturbations"])
    return made.get("perturbations", {})


def _maps(network: TrainedNetwork) -> dict[str, tuple[int, int]]:
    """Height and width of the feature maps that it taps, stage1 before stage2; taps of inner modules are left out."""
    image = jax.ShapeDtypeStruct((1, *network.facts.image_shape), network.module.dtype)
    shapes: Any = jax.eval_shape(functools.partial(_perturbations, network.module), network.variables, image)
    tapped = {name: shapes[name].shape for name in sorted(shapes) if not isinstance(shapes[name], Mapping)}
    return {name: shape[1:3] for name, shape in tapped.items() if len(shape) == 4}
