"""The state before the first step: initialised from the seed, or loaded from a checkpoint of ours or of PyTorch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax import traverse_util

from switokd_jax.errors import UserError
from switokd_jax.forward import NetworkSpec
from switokd_jax.interop import pretrained, pytorch
from switokd_jax.methods import MemoryInputs
from switokd_jax.models.init import init_in_float32, init_variables, init_variables_jit
from switokd_jax.program_cache import LowerByName, trace
from switokd_jax.state import NetworkState, TrainState, Tree, fold_in_name, pair_name
from switokd_jax.topology import Pair
from switokd_jax.train.run_spec import RunSpec
from switokd_jax.workdir import restore


def init_network(network: NetworkSpec, variables: Mapping[str, Tree]) -> NetworkState:
    """State of one network or adapter before its first step, from {'params', 'batch_stats'}."""
    params = variables["params"]
    return NetworkState(
        params=params,
        batch_stats=variables["batch_stats"],
        opt_state=jax.jit(network.optimizer.init)(params),  # in one program, not one for each shape
        ema=jax.tree.map(jnp.array, params) if network.ema else None,
        updates=jnp.zeros((), jnp.int32),
    )


def create_train_state(
    networks: Mapping[str, NetworkSpec],
    variables: Mapping[str, Mapping[str, Tree]],
    pairs: tuple[Pair, ...] = (),
    *,
    seed: int = 0,
    memory: Tree = None,
    adapters: Mapping[str, NetworkState] | None = None,
) -> TrainState:
    """State before the first step, from the variables of every network.

    Args:
      networks: the static part, by name.
      variables: {'params', 'batch_stats'} by name.
      pairs: the gated pairs whose expert steps are counted.
      seed: of the run's PRNG key.
      memory: the method's, from its `init_memory`.
      adapters: of methods that train modules, by name.
    """
    return TrainState(
        networks={name: init_network(networks[name], variables[name]) for name in networks},
        expert_steps={pair_name(pair): jnp.zeros((), jnp.int32) for pair in pairs},
        step=jnp.zeros((), jnp.int32),
        rng=jax.random.key_data(jax.random.key(seed)),
        memory=memory,
        adapters=dict(adapters or {}),
    )


def init_state(run: RunSpec, lower_by_name: LowerByName | None = trace) -> TrainState:
    """State of a run before its first step.

    Args:
      run: all that is static in the run.
      lower_by_name: traces the networks' initialization, or finds it traced; None where nothing can be compiled, inside
        of `jax.eval_shape`.

    Raises:
      UserError: naming the network and the file, if an `init_from` or a later teacher checkpoint cannot be used.
    """
    seed, image_shape = run.config.seed, run.dataset_info.image_shape
    variables = {}
    for name, network in run.networks.items():
        config = run.config.networks[name]
        try:
            key = fold_in_name(jax.random.key(seed), name)
            if lower_by_name is None:
                variables[name] = init_variables(network.module, key, image_shape)
            else:
                lower = lower_by_name(f"init of {name}")
                variables[name] = init_variables_jit(network.module, key, image_shape, lower)
        except ValueError as error:  # images that the model cannot take
            raise UserError(f"config.networks.{name}.model {config.model!r}: {error}") from None
        if config.init_from:
            field = f"config.networks.{name}.init_from"
            variables[name] = load_network(run, name, config.init_from, variables[name], field)
        for source in run.teacher_schedule.values() if network.frozen else ():
            load_scheduled_teacher(run, name, source, variables[name])  # checked now: its epoch may be days away
    return create_train_state(
        run.networks,
        variables,
        run.pairs,
        seed=seed,
        memory=init_memory(run),
        adapters=init_adapters(run),
    )


def abstract_state(run: RunSpec) -> TrainState:
    """The shapes and dtypes of `init_state`, without computing it; files are read and checked all the same.

    Raises:
      UserError: as `init_state`.
    """
    state: TrainState = jax.eval_shape(lambda: init_state(run, None))
    return state


def init_memory(run: RunSpec) -> Any:
    """What the method keeps between steps, before the first one.

    Raises:
      UserError: if the data set lacks what the memory is made of.
    """
    key = fold_in_name(jax.random.key(run.config.seed), run.config.method)
    keys = {name: fold_in_name(key, name) for name in run.adapters}
    inputs = MemoryInputs(run.topology.nodes, run.dataset_info.labels, keys)
    try:
        return run.method.init_memory(run.config.hyperparameters, inputs)
    except ValueError as error:
        raise UserError(f"config.method {run.config.method!r}: {error}") from None


def init_adapters(run: RunSpec) -> dict[str, NetworkState]:
    """States of the method's adapters before the first step, by name; keyed by the seed and the name."""
    states = {}
    for name, adapter in run.adapters.items():
        inputs = [jnp.zeros(shape, jnp.float32) for shape in run.adapter_inputs[name]]
        key = fold_in_name(jax.random.key(run.config.seed), name)
        states[name] = init_network(adapter, init_in_float32(adapter.module, key, *inputs))
    return states


def load_scheduled_teacher(run: RunSpec, name: str, source: str, target: Mapping[str, Any]) -> dict[str, Any]:
    """Loads a frozen network's variables from a checkpoint of the method's teacher schedule; see `load_network`."""
    return load_network(run, name, source, target, f"config.{run.config.method}.anchors")


def load_network(run: RunSpec, name: str, source: str, target: Mapping[str, Any], field: str) -> dict[str, Any]:
    """Loads a network's variables from a checkpoint of ours or of PyTorch.

    Args:
      run: all that is static in the run.
      name: of the network.
      source: 'WORKDIR:NAME@best', a .pth, .pt or .safetensors file, or a name of `pretrained.SOURCES`.
      target: variables of the structure, shapes and dtypes that are wanted.
      field: the config field that gave the source, for messages.

    Raises:
      UserError: naming the field and the file, if it cannot be used.
    """
    try:
        return _load(run, name, source, target)
    except ValueError as error:
        raise UserError(f"{field}: {error}") from None


def _load(run: RunSpec, name: str, source: str, target: Mapping[str, Any]) -> dict[str, Any]:
    config, info = run.config.networks[name], run.dataset_info
    model, has_new_head = config.model, config.head == "new"
    if pretrained.is_pretrained(source) or source.endswith((*pytorch.TORCH_SUFFIXES, ".safetensors")):
        tensors = _read_tensors(run, name, source)
        try:
            loaded = pytorch.variables(
                model,
                tensors,
                info.num_classes,
                network=name,
                image_size=info.image_shape[0],
                head=target if has_new_head else None,
            )
        except ValueError as error:
            raise ValueError(f"{source!r}: {error}") from None
    else:
        loaded = restore.load_variables(*restore.parse_checkpoint_uri(source))
        if has_new_head:
            loaded = _with_head(loaded, target, pytorch.head_paths(model, info.image_shape[0]))
    if str(jax.tree.structure(loaded)) != str(jax.tree.structure(target)):
        raise ValueError(f"{source!r} holds another network than {model}")
    for (path, old), new in zip(jax.tree_util.tree_leaves_with_path(target), jax.tree.leaves(loaded), strict=True):
        if old.shape != new.shape:
            where = jax.tree_util.keystr(path)
            raise ValueError(f"{source!r} has shape {new.shape} at {where}, and {model} here has {old.shape}")
    for path, leaf in jax.tree_util.tree_leaves_with_path(loaded):
        if not np.isfinite(np.asarray(leaf, np.float64)).all():
            raise ValueError(
                f"{source!r} has NaN or infinite numbers at {jax.tree_util.keystr(path)}; take another file"
            )
    cast: dict[str, Any] = jax.tree.map(lambda old, new: np.asarray(new, old.dtype), target, loaded)
    return cast


def _read_tensors(run: RunSpec, name: str, source: str) -> pytorch.StateDict:
    """Reads a file, or the weights of a library; warns if those were trained on other inputs than the run's."""
    if not pretrained.is_pretrained(source):
        return pytorch.read(source)
    info = run.dataset_info
    weights = pretrained.read(source, info.image_shape[0])
    ours = (info.preprocess.mean, info.preprocess.std)
    if weights.mean and not np.allclose(ours, (weights.mean, weights.std), atol=1e-3):
        logging.warning(
            "%s of network %s expects --config.data.mean='%s' --config.data.std='%s'; this run has other constants",
            source,
            name,
            weights.mean,
            weights.std,
        )
    return weights.state_dict


def _with_head(
    loaded: Mapping[str, Any], target: Mapping[str, Any], paths: Sequence[tuple[str, ...]]
) -> dict[str, Any]:
    """Returns `loaded` with the variables at these paths taken from `target`."""
    flat, wanted = (
        traverse_util.flatten_dict({key: tree[key] for key in ("params", "batch_stats")}, keep_empty_nodes=True)
        for tree in (loaded, target)
    )
    return dict(traverse_util.unflatten_dict(flat | {path: wanted[path] for path in paths}))
