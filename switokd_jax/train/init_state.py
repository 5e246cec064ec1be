"""The state before the first step: drawn from the seed, or read from a checkpoint of ours or of PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from switokd_jax.errors import UserError
from switokd_jax.interop import pytorch
from switokd_jax.methods import MemoryInputs
from switokd_jax.state import TrainState, Tree, fold_in_name, init_variables, init_variables_jit, initial_state
from switokd_jax.train.adapters import initial_adapters
from switokd_jax.train.run_spec import RunSpec
from switokd_jax.workdir import restore

InitFn = Callable[[Any, jax.Array, tuple[int, ...]], dict[str, Tree]]


def initial(plan: RunSpec, draw: InitFn = init_variables_jit) -> TrainState:
    """The state before the first step.

    Args:
      plan: of the run.
      draw: (module, key, image_shape) -> its variables, where no `init_from` names others.

    Raises:
      ConfigError: naming the network and the file, if an `init_from` or an anchor cannot be used.
    """
    made = {}
    for name, network in plan.networks.items():
        spec = plan.config.networks[name]
        try:
            key = fold_in_name(jax.random.PRNGKey(plan.config.seed), name)
            made[name] = draw(network.module, key, plan.dataset_info.image_shape)
        except ValueError as error:  # images that the model cannot take
            raise UserError(f"config.networks.{name}.model {spec.model!r}: {error}") from None
        if spec.init_from:
            field = f"config.networks.{name}.init_from"
            made[name] = read_network(plan, name, spec.init_from, made[name], field)
        for source in plan.teacher_schedule.values() if network.frozen else ():
            read_anchor(plan, name, source, made[name])  # tried now: days may pass before its turn
    adapting = initial_adapters(plan.adapters, plan.networks, plan.dataset_info.image_shape, plan.config.seed)
    return initial_state(plan.networks, made, plan.pairs, plan.config.seed, initial_memory(plan), adapting)


def shapes(plan: RunSpec) -> TrainState:
    """The state before the first step as shapes and dtypes, traced alone; files are read and judged all the same.

    Raises:
      ConfigError: as `initial`.
    """
    made: TrainState = jax.eval_shape(lambda: initial(plan, init_variables))
    return made


def initial_memory(plan: RunSpec) -> Any:
    """What the method keeps between steps, before the first one.

    Raises:
      ConfigError: if the data set does not have what it is made of.
    """
    key = fold_in_name(jax.random.PRNGKey(plan.config.seed), plan.config.method)
    keys = {edge: fold_in_name(key, edge) for edge in plan.adapters}
    try:
        return plan.method.init_memory(
            plan.config.hyperparameters, MemoryInputs(plan.topology.nodes, plan.dataset_info.labels, keys)
        )
    except ValueError as error:
        raise UserError(f"config.method {plan.config.method!r}: {error}") from None


def read_anchor(plan: RunSpec, name: str, source: str, like: dict[str, Any]) -> dict[str, Any]:
    """Variables of a frozen network at another checkpoint; as `read_network`."""
    return read_network(plan, name, source, like, f"config.{plan.config.method}.anchors")


def read_network(plan: RunSpec, name: str, source: str, like: dict[str, Any], field: str) -> dict[str, Any]:
    """Variables of a network from a checkpoint of ours or of PyTorch, in the form of `like`.

    Raises:
      ConfigError: naming the field that gave the source, and the file, if it cannot be used.
    """
    try:
        return _read(source, plan.config.networks[name].model, plan.dataset_info.num_classes, like)
    except ValueError as error:
        raise UserError(f"{field}: {error}") from None


def _read(source: str, model: str, num_classes: int, like: dict[str, Any]) -> dict[str, Any]:
    if source.endswith((*pytorch.TORCH_SUFFIXES, ".safetensors")):
        read = pytorch.variables(model, pytorch.read(source), num_classes)
    else:
        read = restore.load_variables(*restore.parse_checkpoint_uri(source))
    if str(jax.tree.structure(read)) != str(jax.tree.structure(like)):
        raise ValueError(f"{source!r} holds another network than {model}")
    for (path, old), new in zip(jax.tree_util.tree_leaves_with_path(like), jax.tree.leaves(read), strict=True):
        if old.shape != new.shape:
            where = jax.tree_util.keystr(path)
            raise ValueError(f"{source!r} has shape {new.shape} at {where}, and {model} here has {old.shape}")
    return jax.tree.map(lambda old, new: np.asarray(new, old.dtype), like, read)
