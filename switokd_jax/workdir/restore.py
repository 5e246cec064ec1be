"""Reading what other runs have saved: networks for `init_from`, whole states for tools."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from switokd_jax.errors import UserError, one_line
from switokd_jax.state import Tree
from switokd_jax.workdir import checksums
from switokd_jax.workdir.checkpointer import IO_ERRORS


def load_variables(source: str) -> dict[str, Tree]:
    """Variables of one network from 'WORKDIR:NAME@best', 'WORKDIR:NAME@latest' or 'WORKDIR:NAME@STEP'.

    Returns:
      {'params', 'batch_stats'} as NumPy arrays.

    Raises:
      ConfigError: if there is no such checkpoint.
    """
    workdir, _, rest = source.rpartition(":")
    name, _, which = rest.partition("@")
    which = which or "best"
    if which not in ("best", "latest") and not which.isdigit():
        raise UserError(f"{source!r}: after '@' stands 'best', 'latest' or a saved step, not {which!r}")
    run = Path(workdir).expanduser().resolve()
    if which == "best":
        return dict(_newest(run / "checkpoints" / "best" / name, "variables", source, which))
    networks = _newest(run / "checkpoints" / "latest", "state", source, which)["networks"]
    if name not in networks:
        raise UserError(f"{source!r}: that run has the networks {', '.join(networks)}")
    network = networks[name]
    return {"params": network["ema"] or network["params"], "batch_stats": network["batch_stats"]}


def load_state(workdir: Path) -> dict[str, Tree]:
    """The newest whole state of a run as a nested dict of NumPy arrays.

    Raises:
      ConfigError: if there is none.
    """
    return _newest(workdir.resolve() / "checkpoints" / "latest", "state", str(workdir), "latest")


def _newest(folder: Path, item: str, source: str, which: str) -> Any:
    # Saves that a kill cut short have longer names.
    steps = [int(path.name) for path in folder.glob("*") if path.name.isdigit()]
    if not steps:
        raise UserError(f"{source!r}: {folder} holds no finished checkpoint; train it first or mend the path")
    if which.isdigit() and int(which) not in steps:
        raise UserError(f"{source!r}: {folder} holds the steps {', '.join(map(str, sorted(steps)))}, not {which}")
    path = folder / (which if which.isdigit() else str(max(steps))) / item
    if damage := checksums.verify(path.parent):
        raise UserError(f"{source!r}: {damage}; name another checkpoint")
    handler = ocp.PyTreeCheckpointHandler()
    try:
        # As NumPy: the devices that wrote it need not be here.
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), handler.metadata(path).tree)
        return handler.restore(path, args=ocp.args.PyTreeRestore(restore_args=as_numpy))
    except IO_ERRORS as error:
        raise UserError(f"{source!r}: {path} cannot be read ({one_line(error)}); name another one") from error
