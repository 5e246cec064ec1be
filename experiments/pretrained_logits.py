"""Compares our networks with those of timm and torchvision, which have the same weights: logits of random images.

python experiments/pretrained_logits.py            # pip install -e '.[timm,torchvision]'; about a minute

The weights are random, running statistics too, so that nothing is downloaded. Exit status 1 if logits differ by more
than 1e-4 of the largest.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1])]

import jax
import numpy as np
import timm
import torch
import torchvision

from switokd_jax import models
from switokd_jax.interop import pretrained, pytorch

CLASSES = 1000
LIMIT = 1e-4


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A network of a library and ours.

    Attributes:
      ours: name in `models.MODELS`.
      theirs: name in the library.
      make: makes the library's network with random weights.
      image_size: height and width of the images.
    """

    ours: str
    theirs: str
    make: Callable[[], Any]
    image_size: int


def comparisons() -> list[Comparison]:
    """Returns all networks that we have in common with the libraries."""
    found = []
    for depth in (18, 34, 50):
        name = f"resnet{depth}"
        found.append(Comparison(name, f"torchvision {name}", getattr(torchvision.models, name), 96))
        found.append(Comparison(name, f"timm {name}", functools.partial(timm.create_model, name), 96))
    for ours, theirs, size in (
        ("vit_small", "vit_small_patch16_224", 128),
        ("vit_base", "vit_base_patch16_224", 128),
        ("vit_small", "vit_small_patch32_224", 256),
        ("swin_tiny", "swin_tiny_patch4_window7_224", 64),
        ("swin_small", "swin_small_patch4_window7_224", 64),
    ):
        make = functools.partial(timm.create_model, theirs, **pretrained.timm_options(timm, theirs, size))
        found.append(Comparison(ours, f"timm {theirs}", make, size))
    return found


def difference(comparison: Comparison, images: np.ndarray) -> float:
    """Returns the largest difference of logits, relative to the largest logit.

    Args:
      comparison: the two networks.
      images: [batch, height, width, 3] float32.
    """
    torch.manual_seed(0)
    network = comparison.make().eval()
    for name, buffer in network.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(0.0, 0.1)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)
    with torch.no_grad():
        theirs = network(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    tensors = {name: value.numpy() for name, value in network.state_dict().items()}
    variables = pytorch.variables(comparison.ours, tensors, CLASSES, image_size=comparison.image_size)
    ours = models.create(comparison.ours, CLASSES).apply(variables, images, train=False)
    return float(np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max())


def main() -> int:
    """Prints a line for each network."""
    worst = 0.0
    for comparison in comparisons():
        size = comparison.image_size
        images = np.random.default_rng(0).normal(size=(4, size, size, 3)).astype(np.float32)
        found = difference(comparison, images)
        worst = max(worst, found)
        print(f"{comparison.ours:10} {comparison.theirs:38} {size:4} pixels  {found:.1e}", flush=True)
    return int(worst > LIMIT)


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    sys.exit(main())
