"""Conversion of official-layout PyTorch checkpoints to Flax variables and back.

Our Flax modules have torch's names with '_' before an index ('layer1_0' for 'layer1.0'), so one rule converts every
model: kernels are transposed, and BatchNorm's scale, mean and var are torch's weight, running_mean and running_var.
Only .pth files need torch itself.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from switokd_jax import models
from switokd_jax.errors import UserError, one_line
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


def variables(model_name: str, state_dict: StateDict, num_classes: int) -> dict[str, Any]:
    """Converts an official-layout state_dict to Flax variables.

    Args:
      model_name: a name of `models.MODELS`.
      state_dict: torch names to arrays in torch's layouts. 'module.' prefixes of DataParallel and num_batches_tracked
        are ignored.
      num_classes: number of logits of the classifier.

    Returns:
      {'params', 'batch_stats'} of NumPy arrays in the state_dict's dtypes.

    Raises:
      ValueError: naming the first tensor that is missing, left over or of another shape.
    """
    tensors = {
        name.removeprefix("module."): np.asarray(value)
        for name, value in state_dict.items()
        if not name.endswith("num_batches_tracked")
    }
    expected = variable_shapes(model_name, num_classes)
    # The number of image channels comes from the checkpoint: only the kernel of the stem depends on it.
    stem = next(path for path, shape in expected.items() if len(shape) == 4 and shape[2] == CHANNELS)
    stem_tensor = tensors.get(torch_name(stem))
    if stem_tensor is not None and stem_tensor.ndim == 4:
        expected[stem] = (*expected[stem][:2], stem_tensor.shape[1], expected[stem][3])
    converted = {}
    for path, shape in expected.items():
        name = torch_name(path)
        if name not in tensors:
            raise ValueError(f"{model_name}: the checkpoint has no tensor {name!r}")
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
    return {"params": {}, "batch_stats": {}} | traverse_util.unflatten_dict(converted)


def state_dict(flax_variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Inverts `variables`: returns torch names and layouts, without num_batches_tracked."""
    flat = traverse_util.flatten_dict({k: flax_variables[k] for k in ("params", "batch_stats")})
    return {torch_name(path): _to_torch(path, np.asarray(value)) for path, value in flat.items()}


def variable_shapes(model_name: str, num_classes: int) -> dict[tuple[str, ...], tuple[int, ...]]:
    """Returns the shape of every variable of a model for RGB images by its Flax path; computes nothing."""
    module = models.create(model_name, num_classes)
    image = jax.ShapeDtypeStruct((1, 32, 32, CHANNELS), jnp.float32)
    tree = jax.eval_shape(lambda x: module.init(jax.random.PRNGKey(0), x, train=False), image)
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

    A state_dict inside of a dict, under 'state_dict', 'model' or 'net', is unwrapped.

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
        raise UserError(f"{path} was refused by torch.load(weights_only=True): {one_line(error)}") from None
    for key in ("state_dict", "model", "net"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict) or not all(isinstance(v, torch.Tensor) for v in loaded.values()):
        raise UserError(f"{path} contains no state_dict (names to tensors)")
    try:
        return {str(name): value.detach().numpy() for name, value in loaded.items()}
    except (RuntimeError, TypeError):  # bfloat16, quantized, sparse, without storage
        raise UserError(f"{path} {_NO_NUMPY}") from None


def _torch(path: Path) -> Any:
    try:
        import torch
    except ImportError:
        raise UserError(f"{path} needs PyTorch; pip install 'switokd_jax[torch]' or use .safetensors") from None
    return torch


def _to_flax(path: tuple[str, ...], value: np.ndarray) -> np.ndarray:
    if path[-1] != "kernel":  # tables of positions have the same layout in both
        return value
    return value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T


def _to_torch(path: tuple[str, ...], value: np.ndarray) -> np.ndarray:
    if path[-1] != "kernel":
        return value
    return value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
