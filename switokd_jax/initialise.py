"""The state before the first step: drawn from the seed, or read from a checkpoint of ours or of PyTorch."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from switokd_jax import checkpoint
from switokd_jax.adapters import initial_adapters
from switokd_jax.fields import ConfigError
from switokd_jax.interop import pytorch
from switokd_jax.plan import Plan
from switokd_jax.state import TrainState, initial_state, initial_variables


def initial(plan: Plan) -> TrainState:
    """The state before the first step.

    Raises:
      ConfigError: naming the network and the file, if an `init_from` cannot be used.
    """
    made = {}
    for name, network in plan.networks.items():
        spec = plan.config.networks[name]
        made[name] = initial_variables(network.module, name, plan.config.seed, plan.image_shape)
        if spec.init_from:
            field = f"config.networks.{name}.init_from"
            made[name] = read_network(plan, name, spec.init_from, made[name], field)
    memory = plan.method.start(plan.config.hyperparameters, plan.topology.nodes)
    adapting = initial_adapters(plan.adapters, plan.networks, plan.image_shape, plan.config.seed)
    return initial_state(plan.networks, made, plan.pairs, plan.config.seed, memory, adapting)


def read_network(plan: Plan, name: str, source: str, like: dict[str, Any], field: str) -> dict[str, Any]:
    """Variables of a network from a checkpoint of ours or of PyTorch, in the form of `like`.

    Raises:
      ConfigError: naming the field that gave the source, and the file, if it cannot be used.
    """
    try:
        return _read(source, plan.config.networks[name].model, plan.num_classes, like)
    except ValueError as error:
        raise ConfigError(f"{field}: {error}") from None


def _read(source: str, model: str, num_classes: int, like: dict[str, Any]) -> dict[str, Any]:
    if source.endswith((*pytorch.TORCH_SUFFIXES, ".safetensors")):
        read = pytorch.variables(model, pytorch.read(source), num_classes)
    else:
        read = checkpoint.read_network(source)
    if str(jax.tree.structure(read)) != str(jax.tree.structure(like)):
        raise ValueError(f"{source!r} holds another network than {model}")
    for (path, old), new in zip(jax.tree_util.tree_leaves_with_path(like), jax.tree.leaves(read), strict=True):
        if old.shape != new.shape:
            where = jax.tree_util.keystr(path)
            raise ValueError(f"{source!r} has shape {new.shape} at {where}, and {model} here has {old.shape}")
    return jax.tree.map(lambda old, new: np.asarray(new, old.dtype), like, read)
