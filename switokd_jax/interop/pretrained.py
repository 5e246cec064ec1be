"""Pretrained weights by name, from timm, torchvision or a repository of the Hugging Face Hub.

Each library downloads, checks and caches its own files. Only the weights are taken from it.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from switokd_jax.errors import UserError, import_extra, one_line
from switokd_jax.interop import pytorch
from switokd_jax.models import swin


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """Weights of a library, and the constants of the images that they were trained on.

    Attributes:
      state_dict: torch names to arrays in torch's layouts.
      mean: of pixels between 0 and 1, one number per channel; empty if the source does not say.
      std: standard deviation, likewise.
    """

    state_dict: pytorch.StateDict
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()


def is_pretrained(source: str) -> bool:
    """Returns whether a source names weights of a library.

    >>> is_pretrained("timm:resnet18.a1_in1k"), is_pretrained("runs/digits:teacher@best")
    (True, False)
    """
    library, colon, name = source.partition(":")
    return bool(colon and name) and library in SOURCES and "@" not in name.rsplit("/", 1)[-1]


def read(source: str, image_size: int) -> Pretrained:
    """Reads pretrained weights, which the library downloads unless it has them.

    Args:
      source: 'timm:NAME', 'torchvision:WEIGHTS' such as ResNet50_Weights.IMAGENET1K_V2, or 'hf:OWNER/NAME'.
      image_size: height and width of the images. timm adapts tables of positions to it.

    Raises:
      UserError: naming the source, if the library is missing, does not know the name, or cannot download.
    """
    library, _, name = source.partition(":")
    try:
        return SOURCES[library](name, image_size)
    except UserError:
        raise
    except Exception as error:  # each library has its own errors, for networks and files
        raise UserError(
            f"{source} cannot be read; without network, fetch {_url(library, name)} elsewhere and give its path as "
            f"init_from ({one_line(error)})"
        ) from None


def _timm(name: str, image_size: int) -> Pretrained:
    timm = import_extra("timm", "timm", "timm:...")
    if not timm.is_model(name.partition(".")[0]):
        raise UserError(f"timm:{name}: timm has no such model; timm.list_pretrained() has its names")
    model = timm.create_model(name, pretrained=True, **timm_options(timm, name, image_size))
    return _pretrained(model.state_dict(), model.pretrained_cfg)


def timm_options(timm: ModuleType, name: str, image_size: int) -> dict[str, Any]:
    """Returns the arguments of timm.create_model with which a transformer has our positions and windows."""
    if not timm.get_pretrained_cfg(name).fixed_input_size:
        return {}
    return {"img_size": image_size, **({"window_size": swin.WINDOW} if name.startswith("swin") else {})}


def _torchvision(name: str, image_size: int) -> Pretrained:
    del image_size  # none of our networks takes a table of positions from there
    models = import_extra("torchvision", "torchvision", "torchvision:...").models
    try:
        weights = models.get_weight(name)
    except (KeyError, ValueError, AttributeError, TypeError):
        raise UserError(f"torchvision:{name}: no such weights; give them as ResNet50_Weights.IMAGENET1K_V2") from None
    transforms = weights.transforms()
    return _pretrained(
        weights.get_state_dict(progress=False, check_hash=True), {"mean": transforms.mean, "std": transforms.std}
    )


def _hugging_face(name: str, image_size: int) -> Pretrained:
    del image_size  # a file is read as it is
    hub = import_extra("huggingface_hub", "hf", "hf:...")
    tensors = pytorch.read(hub.hf_hub_download(name, "model.safetensors"))
    config = json.loads(Path(hub.hf_hub_download(name, "config.json")).read_text())
    constants = config.get("pretrained_cfg", config)
    return Pretrained(tensors, tuple(constants.get("mean", ())), tuple(constants.get("std", ())))


SOURCES: dict[str, Callable[[str, int], Pretrained]] = {"timm": _timm, "torchvision": _torchvision, "hf": _hugging_face}


def _url(library: str, name: str) -> str:
    """Returns the address of the file that the library reads."""
    if library == "torchvision":
        return str(importlib.import_module("torchvision").models.get_weight(name).url)
    if library == "timm":
        model, _, tag = name.partition(".")
        name = f"timm/{model}.{tag or importlib.import_module('timm').get_pretrained_cfg(model).tag}"
    return f"https://huggingface.co/{name}/resolve/main/model.safetensors"


def _pretrained(tensors: Mapping[str, Any], constants: Mapping[str, Any]) -> Pretrained:
    state_dict = {name: np.asarray(value.detach().float().numpy()) for name, value in tensors.items()}
    return Pretrained(state_dict, tuple(constants["mean"]), tuple(constants["std"]))
