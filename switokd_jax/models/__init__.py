"""Networks by name: `create('wrn_16_2', num_classes=100)`."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable
from typing import Any

from flax import linen as nn

from switokd_jax.errors import did_you_mean
from switokd_jax.models.branches import with_branches
from switokd_jax.models.densenet import DenseNet
from switokd_jax.models.imagenet_resnet import DEPTHS, VARIANTS, ImageNetResNet
from switokd_jax.models.layers import OPTIONS, with_options
from switokd_jax.models.mobilenet import MobileNet, MobileNetV2, MobileNetV2Tiny
from switokd_jax.models.repdistiller import DEPTHS as RD_DEPTHS
from switokd_jax.models.repdistiller import NARROW, WIDE, RepDistillerResNet, RepDistillerWideResNet
from switokd_jax.models.resnet import ResNet
from switokd_jax.models.swin import DEPTHS as SWIN_DEPTHS
from switokd_jax.models.swin import SwinTransformer
from switokd_jax.models.vgg import BLOCKS, VGG
from switokd_jax.models.vit import SIZES, VisionTransformer
from switokd_jax.models.wide_resnet import WideResNet

__all__ = ["MODELS", "create"]

# Names as users write them; D, K and W stand for numbers.
MODELS: dict[str, Callable[..., nn.Module]] = {
    "wrn_D_K": WideResNet,
    **{f"resnet{depth}": functools.partial(ResNet, depth) for depth in (8, 14, 20, 32, 44, 56, 110)},
    **{
        "_".join(filter(None, (f"resnet{depth}", name))): functools.partial(ImageNetResNet, depth, variant)
        for name, variant in VARIANTS.items()
        for depth, (_, has_bottlenecks) in DEPTHS.items()
        if not has_bottlenecks or len(variant.convs) == 3
    },
    "wrn_D_K_rd": RepDistillerWideResNet,
    **{f"resnet{depth}_rd": functools.partial(RepDistillerResNet, depth, NARROW) for depth in RD_DEPTHS},
    **{f"resnet{depth}x4": functools.partial(RepDistillerResNet, depth, WIDE) for depth in (8, 32)},
    "mobilenetv2_W": MobileNetV2,
    "mobilenetv2_tiny_W": MobileNetV2Tiny,
    "mobilenet": MobileNet,
    **{f"vgg{depth}": functools.partial(VGG, depth) for depth in BLOCKS},
    "densenet_D_K": DenseNet,
    **{f"vit_{size}": functools.partial(VisionTransformer, size) for size in SIZES},
    **{f"swin_{size}": functools.partial(SwinTransformer, size) for size in SWIN_DEPTHS},
}


def create(
    name: str,
    num_classes: int,
    *,
    branches: int = 1,
    branch_from: str = "",
    mean_gradient: bool = False,
    **overrides: Any,
) -> nn.Module:
    """Creates the network of that name.

    Args:
      name: a key of `MODELS` with its capital letters replaced by numbers: wrn_16_2, mobilenetv2_0.5.
      num_classes: number of logits.
      branches: how often its last stages exist; with 2 or more it is a `branches.Branches`.
      branch_from: the first of these stages; '' for the last one.
      mean_gradient: see `branches.Branches`.
      **overrides: options of the network's layers (dtype, param_dtype, axis_name, convolution, remat; see
        `layers.Layers`), or other attributes of the module.

    Raises:
      ValueError: if there is no such network, its depth or width is not legal, `remat` is set and it has no blocks, or
        it cannot have these branches.
    """
    if branches > 1:
        return with_branches(create(name, num_classes, **overrides), branches, branch_from, mean_gradient=mean_gradient)
    factory = _factory(name)
    if "layers" not in inspect.signature(factory).parameters:  # a user's own network with plain attributes
        return factory(num_classes=num_classes, **overrides)
    options = {option: overrides.pop(option) for option in OPTIONS if option in overrides}
    module: nn.Module = with_options(factory(num_classes=num_classes, **overrides), **options)
    return module


def _factory(name: str) -> Callable[..., nn.Module]:
    if name in MODELS and not re.search("_[A-Z]", name):
        return MODELS[name]
    if match := re.fullmatch(r"(wrn|densenet)_(\d+)_(\d+)(_rd)?", name):
        depth, width = int(match[2]), int(match[3])
        if depth < 10 or (depth - 4) % 6 or width < 1:
            raise ValueError(f"model {name!r}: its depth is 10, 16, 22, 28, ... and its width at least 1")
        if family := MODELS.get(f"{match[1]}_D_K{match[4] or ''}"):
            return functools.partial(family, depth, width)
    if match := re.fullmatch(r"(mobilenetv2(?:_tiny)?)_(\d+(?:\.\d+)?)", name):
        if int(16 * float(match[2])) < 1:
            raise ValueError(f"model {name!r}: the width must leave at least one channel (1/16 or more)")
        return functools.partial(MODELS[f"{match[1]}_W"], float(match[2]))
    raise ValueError(f"model {name!r} is unknown; {did_you_mean(name, MODELS)}")
