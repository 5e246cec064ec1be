"""Conversion of official-layout PyTorch checkpoints to Flax variables and back.

Our Flax modules have torch's names with '_' before an index ('layer1_0' for 'layer1.0'), so one rule converts every
model: kernels are transposed, and BatchNorm's scale, mean and var are torch's weight, running_mean and running_var.
Only .pth files need torch itself.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax import traverse_util

from switokd_jax import models
from switokd_jax.errors import UserError, import_extra, one_line
from switokd_jax.files import atomic_write

StateDict = Mapping[str, np.ndarray]
_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
CHANNELS = 3
_NO_NUMPY = "contains a tensor whose dtype NumPy lacks (bfloat16, say); save it as dense float32"
TORCH_SUFFIXES = (".pth", ".pth.tar", ".pt", ".tar", ".ckpt")
WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network", "weights")  # keys of a state_dict in a dict
# Networks that a file which does not fit is compared with.
USUAL_NETWORKS = (
    *(f"resnet{depth}" for depth in (8, 14, 20, 32, 44, 56, 110, 18, 34, 50)),
    *(f"wrn_{depth}_{width}" for depth in (10, 16, 28, 40) for width in (1, 2, 4)),
    *(f"resnet{depth}_rd" for depth in (8, 14, 20, 32, 44, 56, 110)),
    *("resnet8x4", "resnet32x4"),
    *(f"wrn_{depth}_{width}_rd" for depth in (16, 40) for width in (1, 2)),
    *("mobilenetv2_0.5", "mobilenetv2_1.0", "mobilenet", "vgg8", "vgg13", "vgg16", "vit_small", "swin_tiny"),
)


def variables(
    model_name: str,
    state_dict: StateDict,
    num_classes: int,
    *,
    network: str = "",
    image_size: int = 32,
    head: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Converts an official-layout state_dict to Flax variables.

    Args:
      model_name: a name of `models.MODELS`.
      state_dict: torch names to arrays in torch's layouts. A prefix that wrappers give to all names of a network
        ('module.', '_orig_mod.', 'model.') and num_batches_tracked are ignored.
      num_classes: number of logits of the classifier.
      network: name of the network in the config; it decides between several networks that fit.
      image_size: height and width of the images, for networks with a table of positions.
      head: variables of the model, from which the classifier is taken instead; None to convert that as well.

    Returns:
      {'params', 'batch_stats'} of NumPy arrays in the state_dict's dtypes.

    Raises:
      ValueError: naming the first tensor that is missing, left over or of another shape.
    """
    expected = variable_shapes(model_name, num_classes, image_size)
    own_head: dict[tuple[str, ...], Any] = {}
    if head is not None:
        flat = traverse_util.flatten_dict({key: head[key] for key in ("params", "batch_stats")})
        own_head = {path: flat[path] for path in head_paths(model_name, image_size)}
    tensors = {
        name: np.asarray(value) for name, value in state_dict.items() if not name.endswith("num_batches_tracked")
    }
    tensors = _without_prefix(tensors, {torch_name(path) for path in expected.keys() - own_head.keys()}, network)
    for path in own_head:
        tensors.pop(torch_name(path), None)
        del expected[path]
    # The number of image channels comes from the checkpoint: only the kernel of the stem depends on it.
    stem = next(path for path, shape in expected.items() if len(shape) == 4 and shape[2] == CHANNELS)
    stem_tensor = tensors.get(torch_name(stem))
    if stem_tensor is not None and stem_tensor.ndim == 4:
        expected[stem] = (*expected[stem][:2], stem_tensor.shape[1], expected[stem][3])
    converted = {}
    for path, shape in expected.items():
        name = torch_name(path)
        if name not in tensors:
            first = ", ".join([*state_dict][:3])
            raise ValueError(
                f"{model_name}: the checkpoint has no tensor {name!r}; its first are {first}{_nearest(tensors)}"
            )
        value = _to_flax(path, tensors.pop(name))
        if value.shape != shape:
            raise ValueError(
                f"{model_name}: tensor {name!r} has shape {value.shape} (in Flax's layout), not {shape}; "
                f"{num_classes} classes were asked for"
            )
        converted[path] = value
    if tensors:
        raise ValueError(
            f"{model_name} has no tensor {next(iter(tensors))!r} of the checkpoint ({len(tensors)} left over)"
        )
    return {"params": {}, "batch_stats": {}} | traverse_util.unflatten_dict(converted | own_head)


def head_paths(model_name: str, image_size: int = 32) -> list[tuple[str, ...]]:
    """Returns the Flax paths of the variables whose shape depends on the number of classes."""
    two_classes, three_classes = (variable_shapes(model_name, count, image_size) for count in (2, 3))
    return [path for path, shape in two_classes.items() if three_classes[path] != shape]


def _without_prefix(tensors: dict[str, np.ndarray], expected: set[str], network: str) -> dict[str, np.ndarray]:
    """Removes the prefix below which all expected tensors are found, and says so.

    Tensors outside of it belong to something else, such as another network of the same training.

    Raises:
      ValueError: if several prefixes fit, and none of them ends with the network's name.
    """
    if not expected or expected <= tensors.keys():
        return tensors
    first_name = min(expected)
    prefixes = {name.removesuffix(first_name) for name in tensors if name.endswith(f".{first_name}")}
    matching = sorted(prefix for prefix in prefixes if all(prefix + name in tensors for name in expected))
    if len(matching) > 1:
        named = [prefix for prefix in matching if network and prefix.endswith(f"{network}.")]
        if len(named) != 1:
            raise ValueError(
                f"several networks of the checkpoint fit, {' and '.join(map(repr, matching))}; save one of them alone"
            )
        matching = named
    if not matching:
        return tensors
    (prefix,) = matching
    outside = sum(not name.startswith(prefix) for name in tensors)
    if prefix != "module.":  # DataParallel's is too common to be worth a word
        logging.warning(
            "weights of %s are those below %r in the file%s",
            network or "the network",
            prefix,
            f"; {outside} other tensors are left out" if outside else "",
        )
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _nearest(tensors: Mapping[str, np.ndarray]) -> str:
    """Names the usual network that shares most tensors with a file, for a message; '' if none shares half of them."""
    shapes = {name: value.shape for name, value in tensors.items()}

    def overlap(model_name: str) -> float:
        found = {torch_name(path): _torch_shape(path, shape) for path, shape in variable_shapes(model_name, 10).items()}
        return sum(shapes.get(name) == shape for name, shape in found.items()) / max(len(found), len(shapes), 1)

    best = max(USUAL_NETWORKS, key=overlap)
    return f"; it looks like {best}" if overlap(best) > 0.5 else ""


def _torch_shape(path: tuple[str, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    if path[-1] != "kernel":
        return shape
    return (shape[3], shape[2], shape[0], shape[1]) if len(shape) == 4 else shape[::-1]


def state_dict(flax_variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Inverts `variables`: returns torch names and layouts, without num_batches_tracked."""
    flat = traverse_util.flatten_dict({k: flax_variables[k] for k in ("params", "batch_stats")})
    return {torch_name(path): _to_torch(path, np.asarray(value)) for path, value in flat.items()}


def variable_shapes(model_name: str, num_classes: int, image_size: int = 32) -> dict[tuple[str, ...], tuple[int, ...]]:
    """Returns the shape of every variable of a model for square RGB images by its Flax path; computes nothing."""
    module = models.create(model_name, num_classes)
    image = jax.ShapeDtypeStruct((1, image_size, image_size, CHANNELS), jnp.float32)
    tree = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, train=False), image)
    return {path: leaf.shape for path, leaf in traverse_util.flatten_dict(dict(tree)).items()}


def torch_name(path: tuple[str, ...]) -> str:
    """Returns the torch name of a Flax path.

    >>> torch_name(("params", "layer1_0", "bn1", "scale"))
    'layer1.0.bn1.weight'
    """
    _, *modules, leaf = path
    return ".".join([*(re.sub(r"_(\d+)", r".\1", module) for module in modules), _LEAVES.get(leaf, leaf)])


def read(path: str | Path) -> dict[str, np.ndarray]:
    """Reads the state_dict of a .safetensors file, or of a torch file (with weights_only=True).

    A state_dict inside of a dict, under one of `WRAPPERS`, is unwrapped. bfloat16 becomes float32.

    Raises:
      UserError: naming the file, if it cannot be read or contains anything but tensors.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise UserError(f"{path} is not a file")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise UserError(f"{path} is not a complete safetensors file: {one_line(error)}") from None
        except (AttributeError, TypeError):
            raise UserError(f"{path} {_NO_NUMPY}") from None
    return _read_torch(path)


def write(path: str | Path, flax_variables: Mapping[str, Any]) -> None:
    """Writes an official-layout state_dict: .safetensors, or .pth with torch installed."""
    path, tensors = Path(path), state_dict(flax_variables)
    if path.suffix == ".safetensors":
        from safetensors.numpy import save

        content = save({name: np.ascontiguousarray(value) for name, value in tensors.items()})
        atomic_write(path, lambda p: p.write_bytes(content))  # `save_file` gives others no permission to read
        return
    torch = _torch(path)
    state = {name: torch.from_numpy(np.array(value)) for name, value in tensors.items()}
    atomic_write(path, lambda p: torch.save({"state_dict": state}, p))


def _read_torch(path: Path) -> dict[str, np.ndarray]:
    torch = _torch(path)
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises UnpicklingError, RuntimeError, EOFError and more
        raise UserError(f"{path} {_refusal(error)}") from None
    for key in WRAPPERS:
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict) or not all(isinstance(v, torch.Tensor) for v in loaded.values()):
        raise UserError(f"{path} contains no state_dict (names to tensors)")
    try:
        return {
            str(name): (value.float() if value.dtype == torch.bfloat16 else value).detach().numpy()
            for name, value in loaded.items()
        }
    except (RuntimeError, TypeError):  # quantized, sparse, without storage
        raise UserError(f"{path} {_NO_NUMPY}") from None


def _refusal(error: Exception) -> str:
    """Says why torch.load refused a file, without its advice to run the code inside."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    if wanted := re.search(r"GLOBAL (\S+)", text):
        return (
            f"holds a Python object, {wanted[1]}, and loading it could run code; save the weights alone: "
            "torch.save(model.state_dict(), FILE)"
        )
    return f"was refused by torch.load(weights_only=True): {one_line(text)}"


def _torch(path: Path) -> ModuleType:
    return import_extra("torch", "torch", str(path), otherwise="use .safetensors")


def _to_flax(path: tuple[str, ...], value: np.ndarray) -> np.ndarray:
    if path[-1] != "kernel":  # tables of positions have the same layout in both
        return value
    return value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T


def _to_torch(path: tuple[str, ...], value: np.ndarray) -> np.ndarray:
    if path[-1] != "kernel":
        return value
    return value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
