"""Reads checkpoints of other runs: variables of one network (`init_from`), or a train state (for tools)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from switokd_jax.config import branch_nodes
from switokd_jax.errors import UserError, one_line
from switokd_jax.models.branches import of_branch, saved_branches
from switokd_jax.state import Tree
from switokd_jax.workdir import checksums
from switokd_jax.workdir.checkpointer import IO_ERRORS
from switokd_jax.workdir.layout import Workdir


class CheckpointUri(NamedTuple):
    """One network's checkpoint in a workdir.

    Attributes:
      workdir: folder of the run.
      network: name of the network in that run.
      version: 'best', 'latest' or a saved step.
    """

    workdir: str
    network: str
    version: str


def parse_checkpoint_uri(uri: str) -> CheckpointUri:
    """Parses 'WORKDIR:NAME@best', 'WORKDIR:NAME@latest', 'WORKDIR:NAME@STEP' or 'WORKDIR:NAME', which is the best.

    Raises:
      UserError: if there is no ':', saying what the path is instead.

    >>> parse_checkpoint_uri("runs/digits:student@latest")
    CheckpointUri(workdir='runs/digits', network='student', version='latest')
    """
    workdir, colon, rest = uri.rpartition(":")
    if not colon:
        raise UserError(f"{uri!r} {_what_it_is(Path(uri).expanduser())}")
    network, _, version = rest.partition("@")
    return CheckpointUri(workdir, network, version or "best")


def _what_it_is(path: Path) -> str:
    if path.is_file():
        return (
            f"has the suffix {path.suffix!r}; weights are read from .pth, .pt, .tar, .ckpt and .safetensors: rename it"
        )
    if path.is_dir():
        best = Workdir(path).checkpoints / "best"
        names = sorted(folder.name for folder in best.iterdir() if folder.is_dir()) if best.is_dir() else []
        return f"names no network; write {path}:{names[0] if names else 'NAME'}@best" + (
            f" (there are {', '.join(names)})" if len(names) > 1 else ""
        )
    return "is no file and names no run; give a file of weights, or WORKDIR:NAME@best"


def load_variables(workdir: str | Path, network: str, version: str = "best") -> dict[str, Tree]:
    """Loads the variables of one network.

    Args:
      workdir: folder of a run; '~' is expanded.
      network: name of the network in that run.
      version: 'best', 'latest' or a saved step.

    Returns:
      {'params', 'batch_stats'} as NumPy arrays. Where the run averages parameters, those are the averages.

    Raises:
      UserError: if there is no such checkpoint, or it is damaged.
    """
    source = f"{workdir}:{network}@{version}"
    if version not in ("best", "latest") and not version.isdigit():
        raise UserError(f"{source!r}: the version after '@' is 'best', 'latest' or a saved step, not {version!r}")
    paths = Workdir(Path(workdir).expanduser().resolve())
    if version == "best":
        return dict(_load(paths.best_checkpoints(network), "variables", source))
    step = int(version) if version.isdigit() else None
    networks = _eval_variables(_load(paths.latest_checkpoints, "state", source, step)["networks"])
    if network not in networks:
        raise UserError(f"{source!r}: that run has the networks {', '.join(networks)}")
    return networks[network]


def _eval_variables(states: dict[str, Tree]) -> dict[str, dict[str, Tree]]:
    """Returns the variables of networks, and for one with branches those of each branch with the trunk."""
    networks: dict[str, dict[str, Tree]] = {}
    for name, state in states.items():
        variables = evaluation_variables(state)
        branches = saved_branches(variables["params"])
        networks |= {
            node: {kind: of_branch(tree, branch) for kind, tree in variables.items()}
            for node, branch in zip(branch_nodes(name, len(branches)), branches, strict=True)
        } or {name: variables}
    return networks


def evaluation_variables(state: Tree) -> dict[str, Tree]:
    """Returns {'params', 'batch_stats'} of a saved network or module: the averages where it keeps them."""
    return {"params": state["ema"] or state["params"], "batch_stats": state["batch_stats"]}


def load_state(workdir: str | Path, step: int | None = None) -> dict[str, Tree]:
    """Loads a train state of a run as a nested dict of NumPy arrays.

    Args:
      workdir: folder of a run.
      step: a saved step; None for the latest.

    Raises:
      UserError: if there is none, or it is damaged.
    """
    return _load(Workdir(Path(workdir).resolve()).latest_checkpoints, "state", str(workdir), step)


def _load(folder: Path, item: str, source: str, step: int | None = None) -> Any:
    """Loads an item of the checkpoint of a step, or of the latest one in a folder.

    Args:
      folder: holds a checkpoint per step.
      item: 'state' or 'variables'.
      source: what the user asked for, for messages.
      step: None for the latest.
    """
    # Saves that were interrupted have longer names.
    steps = [int(path.name) for path in folder.glob("*") if path.name.isdigit()]
    if not steps:
        raise UserError(f"{source!r}: {folder} holds no finished checkpoint; train that run first or correct the path")
    if step is not None and step not in steps:
        raise UserError(f"{source!r}: {folder} holds the steps {', '.join(map(str, sorted(steps)))}, not {step}")
    path = folder / str(max(steps) if step is None else step) / item
    if problem := checksums.verify(path.parent):
        raise UserError(f"{source!r}: {problem}; name another checkpoint")
    handler = ocp.PyTreeCheckpointHandler()
    try:
        # As NumPy arrays: the devices that wrote the checkpoint may not exist here.
        restore_args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), handler.metadata(path).tree)
        return handler.restore(path, args=ocp.args.PyTreeRestore(restore_args=restore_args))
    except IO_ERRORS as error:
        raise UserError(f"{source!r}: {path} cannot be read ({one_line(error)}); name another checkpoint") from error
