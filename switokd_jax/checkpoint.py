"""Orbax checkpoints of a run: `latest/STEP` holds all that resuming needs, `best/NAME/STEP` one network.

What is saved is a plain nested dict of arrays, so that neither the device count nor a renamed class stands
between a file and its reader.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from flax import serialization

from switokd_jax.config import Checkpoint
from switokd_jax.fields import ConfigError
from switokd_jax.state import TrainState, Tree

# Asks for shape, dtype and placement of each array that is read.
Template = Any


@dataclasses.dataclass(frozen=True)
class Checkpoints:
    """The managers behind `checkpoints/`; close it."""

    latest: ocp.CheckpointManager
    best: Mapping[str, ocp.CheckpointManager]

    def save_latest(self, step: int, state: TrainState, progress: Mapping[str, Any]) -> None:
        """Starts writing the whole state; training goes on meanwhile.

        Args:
          step: global step.
          state: single values (no copies per device).
          progress: JSON values that the host keeps (training time, best scores).
        """
        self.latest.wait_until_finished()
        self._drop_superseded()
        # Copied first: the next step reuses the donated buffers while Orbax is still writing.
        tree = jax.tree.map(jnp.copy, serialization.to_state_dict(state))
        self.latest.save(
            step,
            args=ocp.args.Composite(state=ocp.args.StandardSave(tree), progress=ocp.args.JsonSave(dict(progress))),
        )

    def save_best(self, name: str, step: int, variables: Tree) -> None:
        """Writes one network's variables, and returns when they are safe: `latest` refers to them."""
        manager = self.best[name]
        manager.save(step, args=ocp.args.Composite(variables=ocp.args.StandardSave(dict(variables))))
        manager.wait_until_finished()

    def restore(self, state: TrainState, template: Template) -> tuple[TrainState, dict[str, Any]] | None:
        """The newest saved state with its progress, or None; drops what later steps had left behind.

        Args:
          state: a state of the same structure.
          template: `state` as a nested dict of ShapeDtypeStructs with shardings.
        """
        step = self.latest.latest_step()
        if step is None:
            return None
        restored = self.latest.restore(
            step,
            args=ocp.args.Composite(state=ocp.args.StandardRestore(template), progress=ocp.args.JsonRestore()),
        )
        for manager in self.best.values():
            for later in [s for s in manager.all_steps() if s > step]:
                manager.delete(later)
        return serialization.from_state_dict(state, restored["state"]), restored["progress"]

    def close(self) -> None:
        """Waits for what is being written."""
        self.latest.wait_until_finished()
        self._drop_superseded()
        for manager in (self.latest, *self.best.values()):
            manager.close()

    def _drop_superseded(self) -> None:
        """Deletes what was best before the best that `latest` knows of: until then a restart may need it."""
        saved = self.latest.latest_step() or 0
        for manager in self.best.values():
            for older in sorted(s for s in manager.all_steps() if s <= saved)[:-1]:
                manager.delete(older)


def open_checkpoints(workdir: Path, networks: tuple[str, ...], spec: Checkpoint, steps_per_epoch: int) -> Checkpoints:
    """Opens `workdir/checkpoints`, and clears it of saves that a kill cut short."""
    root = workdir.resolve() / "checkpoints"
    for unfinished in root.glob("**/*.orbax-checkpoint-tmp*"):
        shutil.rmtree(unfinished, ignore_errors=True)
    period = spec.keep_every_epochs * steps_per_epoch or None
    options = ocp.CheckpointManagerOptions(max_to_keep=spec.keep, keep_period=period)
    return Checkpoints(
        ocp.CheckpointManager(root / "latest", options=options),
        {name: ocp.CheckpointManager(root / "best" / name) for name in networks},
    )


def read_network(source: str) -> dict[str, Tree]:
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
        raise ConfigError(f"{source!r}: after '@' stands 'best', 'latest' or a saved step, not {which!r}")
    run = Path(workdir).expanduser().resolve()
    if which == "best":
        return dict(_newest(run / "checkpoints" / "best" / name, "variables", source, which))
    networks = _newest(run / "checkpoints" / "latest", "state", source, which)["networks"]
    if name not in networks:
        raise ConfigError(f"{source!r}: that run has the networks {', '.join(networks)}")
    network = networks[name]
    return {"params": network["ema"] or network["params"], "batch_stats": network["batch_stats"]}


def read_state(workdir: Path) -> dict[str, Tree]:
    """The newest whole state of a run as a nested dict of NumPy arrays.

    Raises:
      ConfigError: if there is none.
    """
    return _newest(workdir.resolve() / "checkpoints" / "latest", "state", str(workdir), "latest")


def _newest(folder: Path, item: str, source: str, which: str) -> Any:
    # Saves that a kill cut short have longer names.
    steps = [int(path.name) for path in folder.glob("*") if path.name.isdigit()]
    if not steps:
        raise ConfigError(f"{source!r}: {folder} holds no finished checkpoint; train it first or mend the path")
    if which.isdigit() and int(which) not in steps:
        raise ConfigError(f"{source!r}: {folder} holds the steps {', '.join(map(str, sorted(steps)))}, not {which}")
    path = folder / (which if which.isdigit() else str(max(steps))) / item
    handler = ocp.PyTreeCheckpointHandler()
    # As NumPy: the devices that wrote it need not be here.
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), handler.metadata(path).tree)
    return handler.restore(path, args=ocp.args.PyTreeRestore(restore_args=as_numpy))
