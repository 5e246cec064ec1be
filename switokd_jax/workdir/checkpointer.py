"""Orbax checkpoints of a run: `latest/STEP` holds all that resuming needs, `best/NAME/STEP` one network.

What is saved is a plain nested dict of arrays, so that neither the device count nor a renamed class stands
between a file and its reader. Each checkpoint holds the checksums of its files. A save that fails, for want of room,
say, is reported and leaves what was saved before as it was; the next one tries again.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from absl import logging
from flax import serialization

from switokd_jax.config import CheckpointConfig
from switokd_jax.errors import SaveError, UserError, one_line
from switokd_jax.parallel.mesh import is_main_process
from switokd_jax.state import TrainState, Tree
from switokd_jax.workdir import checksums

UNFINISHED = ".orbax-checkpoint-tmp"  # in the name of a save under way
# Asks for shape, dtype and placement of each array that is read.
Template = Any
# What Orbax and TensorStore raise for files that they cannot write or read.
IO_ERRORS = (OSError, ValueError, RuntimeError, KeyError)


@dataclasses.dataclass(frozen=True)
class Checkpointer:
    """The managers behind the folder `root`; close it. `failed` has what went wrong since the last good save."""

    root: Path
    open: Callable[[str | None], ocp.CheckpointManager]
    managers: dict[str | None, ocp.CheckpointManager]
    on_corrupt: str
    failed: list[str] = dataclasses.field(default_factory=list)

    @property
    def latest(self) -> ocp.CheckpointManager:
        """Of whole states."""
        return self.managers[None]

    @property
    def best(self) -> dict[str, ocp.CheckpointManager]:
        """Of networks, by name."""
        return {name: manager for name, manager in self.managers.items() if name is not None}

    @property
    def latest_step(self) -> int:
        """The step of the newest whole state, or 0."""
        return int(self.latest.latest_step() or 0)

    def save_latest(self, step: int, state: TrainState, progress: Mapping[str, Any]) -> None:
        """Starts writing the whole state; training goes on meanwhile, also if it fails.

        Args:
          step: global step.
          state: single values (no copies per device).
          progress: JSON values that the host keeps (training time, best scores).
        """
        self._settle()
        self._drop_superseded()
        self.failed.clear()
        if not self._has_room(state):
            return
        # Copied first: the next step reuses the donated buffers while Orbax is still writing.
        tree = jax.tree.map(jnp.copy, serialization.to_state_dict(state))
        items = ocp.args.Composite(state=ocp.args.StandardSave(tree), progress=ocp.args.JsonSave(dict(progress)))
        try:
            self.latest.save(step, args=items)
        except IO_ERRORS as error:
            self._report(None, error)

    def save_best(self, name: str, step: int, variables: Tree) -> bool:
        """Writes one network's variables, and returns when they are safe: `latest` refers to them.

        Returns whether they were written.
        """
        manager = self.best[name]
        if not self._has_room(variables):
            return False
        try:
            manager.save(step, args=ocp.args.Composite(variables=ocp.args.StandardSave(dict(variables))))
            manager.wait_until_finished()
        except IO_ERRORS as error:
            self._report(name, error)
            return False
        return True

    def restore(self, state: TrainState, template: Template) -> tuple[TrainState, dict[str, Any]] | None:
        """The newest intact state with its progress, or None; drops what later steps had left behind.

        Args:
          state: a state of the same structure.
          template: `state` as a nested dict of ShapeDtypeStructs with shardings.

        Raises:
          ConfigError: naming the checkpoint that is damaged, if `on_corrupt` is 'stop' or none is intact.
        """
        steps = sorted(self.latest.all_steps(), reverse=True)
        for step in steps:
            damage, restored = self._read(step, template)
            if restored is None:
                if self.on_corrupt == "stop" or step == steps[-1]:
                    raise UserError(
                        f"{damage}; remove {self.root / 'latest' / str(step)}, set config.checkpoint.on_corrupt to "
                        "'fallback' to go on from an older one, or choose another --workdir"
                    )
                logging.warning("%s; going on from an older checkpoint", damage)
                continue
            for manager in self.managers.values():
                for later in [s for s in manager.all_steps() if s > step]:
                    manager.delete(later)
            return serialization.from_state_dict(state, restored["state"]), restored["progress"]
        return None

    def close(self) -> None:
        """Waits for what is being written.

        Raises:
          SaveError: if the last state could not be saved.
        """
        self._settle()
        self._drop_superseded()
        for name, manager in self.managers.items():
            try:
                manager.close()
            except IO_ERRORS as error:
                self._report(name, error)
        if self.failed:
            raise SaveError(
                f"{self.failed[0]}; the newest checkpoint is that of step {self.latest_step}: make room "
                "and start the same command again"
            )

    def _read(self, step: int, template: Template) -> tuple[str, Any]:
        """What is wrong with a checkpoint, or what is in it."""
        folder = self.root / "latest" / str(step)
        if damage := checksums.verify(folder):
            return f"the checkpoint of step {step} is damaged: {damage}", None
        items = ocp.args.Composite(state=ocp.args.StandardRestore(template), progress=ocp.args.JsonRestore())
        try:
            return "", self.latest.restore(step, args=items)
        except IO_ERRORS as error:
            return f"the checkpoint {folder} cannot be read ({one_line(error)})", None

    def _settle(self) -> None:
        """Waits for the save under way."""
        try:
            self.latest.wait_until_finished()
        except IO_ERRORS as error:
            self._report(None, error)

    def report_failed_save(self, reason: str) -> None:
        """Reports a save that fails."""
        self.failed.append(f"no checkpoint could be written: {reason}")
        logging.warning("%s; training goes on, and the next save tries again", self.failed[-1])

    def _report(self, name: str | None, error: BaseException) -> None:
        self.report_failed_save(one_line(error))
        clear(Path(self.managers[name].directory))
        self.managers[name] = self.open(name)  # the old one counts what it has begun, and its threads may have ended

    def _has_room(self, tree: Tree) -> bool:
        """Asked first: where TensorStore finds none itself, every array's writer says so in a traceback of its own."""
        needed = 1.2 * sum(x.nbytes for x in jax.tree.leaves(tree)) + 2**20
        try:
            free = shutil.disk_usage(self.root).free
        except OSError as error:
            self.report_failed_save(f"{self.root}: {error.strerror}")
            return False
        if not os.access(self.root, os.W_OK):
            self.report_failed_save(f"{self.root} may not be written")
            return False
        if jax.process_count() == 1 and free < needed:  # of several processes all save, or none
            self.report_failed_save(f"{self.root} has {free / 2**20:.1f} MiB left, and one takes {needed / 2**20:.1f}")
            return False
        return True

    def _drop_superseded(self) -> None:
        """Deletes what was best before the best that `latest` knows of: until then a restart may need it."""
        saved = self.latest.latest_step() or 0
        for manager in self.best.values():
            for older in sorted(s for s in manager.all_steps() if s <= saved)[:-1]:
                manager.delete(older)


def open_checkpointer(
    workdir: Path, networks: tuple[str, ...], spec: CheckpointConfig, steps_per_epoch: int
) -> Checkpointer:
    """Opens `workdir/checkpoints`, and clears it of saves that a kill cut short."""
    root = workdir.resolve() / "checkpoints"
    clear(root)
    period = spec.keep_every_epochs * steps_per_epoch or None

    def manager(name: str | None) -> ocp.CheckpointManager:
        folder = root / "latest" if name is None else root / "best" / name
        kept = {"max_to_keep": spec.keep, "keep_period": period} if name is None else {}
        noting = ocp.options.AsyncOptions(post_finalization_callback=lambda: _note_checksums(folder))
        return ocp.CheckpointManager(folder, options=ocp.CheckpointManagerOptions(async_options=noting, **kept))

    return Checkpointer(root, manager, {name: manager(name) for name in (None, *networks)}, spec.on_corrupt)


def clear(root: Path) -> None:
    """Removes saves that were cut short."""
    for unfinished in root.glob(f"**/*{UNFINISHED}*") if is_main_process() else ():
        shutil.rmtree(unfinished, ignore_errors=True)


def _note_checksums(folder: Path) -> None:
    """In the save that is about to get its name: Orbax calls this when all its files are there."""
    for unfinished in folder.glob(f"*{UNFINISHED}*") if is_main_process() else ():
        checksums.write(unfinished)
