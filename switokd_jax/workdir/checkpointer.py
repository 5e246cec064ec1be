"""Orbax checkpoints of a run: `latest/STEP` holds a train state with all that resuming needs, `best/NAME/STEP` the
variables of one network.

A checkpoint is a plain nested dict of arrays, so it can be read with another device count and after a class is renamed.
It holds the checksums of its own files. A save that fails, because the disk is full for example, is reported and never
damages an earlier checkpoint; the next save tries again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import resource
import shutil
import threading
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
from switokd_jax.parallel.multihost import is_main_process
from switokd_jax.state import TrainState, Tree
from switokd_jax.workdir import checksums
from switokd_jax.workdir.layout import Workdir

TMP_MARKER = ".orbax-checkpoint-tmp"  # in the name of an unfinished save
IO_ERRORS = (OSError, ValueError, RuntimeError, KeyError)  # Orbax and TensorStore: files that cannot be read or written


@dataclasses.dataclass
class Checkpointer:
    """Saves and restores the checkpoints of a run. Create with `open_checkpointer`; has to be closed.

    Attributes:
      root: folder of all checkpoints.
      latest: manager of the train states.
      best: managers of the networks' variables, by network.
      reopen_latest: makes a new manager in place of `latest`.
      reopen_best: makes a new manager for a network.
      on_corrupt: 'fallback' to an older checkpoint if the latest one is damaged, or 'stop'.
      save_lock: held during a save, if other threads of the process save as well; None if none does, and a train state
        is then saved while training continues.
      failures: messages of the failed saves since the last `save_latest`.
      is_read_back: whether a save of this start has been read back.
    """

    root: Path
    latest: ocp.CheckpointManager
    best: dict[str, ocp.CheckpointManager]
    reopen_latest: Callable[[], ocp.CheckpointManager]
    reopen_best: Callable[[str], ocp.CheckpointManager]
    on_corrupt: str
    save_lock: threading.Lock | None = None
    failures: list[str] = dataclasses.field(default_factory=list)
    is_read_back: bool = False

    @property
    def latest_step(self) -> int:
        """Step of the latest train state; 0 if there is none."""
        return int(self.latest.latest_step() or 0)

    def save_latest(self, step: int, state: TrainState, progress: Mapping[str, Any]) -> None:
        """Starts to save the train state. Training continues meanwhile, also if the save fails.

        Args:
          step: global step.
          state: single values (no copies per device).
          progress: JSON values of the host (training time, best scores).
        """
        self._wait_until_finished()
        self._drop_superseded()
        self.failures.clear()
        if not self._has_disk_space(state):
            return
        # A copy: the next step reuses the donated buffers while Orbax is still writing.
        tree = jax.tree.map(jnp.copy, serialization.to_state_dict(state))
        items = ocp.args.Composite(state=ocp.args.StandardSave(tree), progress=ocp.args.JsonSave(dict(progress)))
        try:
            with self.save_lock or contextlib.nullcontext():
                self.latest.save(step, args=items)
                if self.save_lock:
                    self.latest.wait_until_finished()
        except IO_ERRORS as error:
            self._recover_latest(error)
        if not self.is_read_back:
            self._read_back(step, tree)

    def save_best(self, network: str, step: int, variables: Tree) -> bool:
        """Saves the variables of a network and waits until they are safe, because the next train state refers to them.

        Returns:
          Whether they were saved.
        """
        if not self._has_disk_space(variables):
            return False
        manager = self.best[network]
        try:
            with self.save_lock or contextlib.nullcontext():
                manager.save(step, args=ocp.args.Composite(variables=ocp.args.StandardSave(dict(variables))))
                manager.wait_until_finished()
        except IO_ERRORS as error:
            self._recover_best(network, error)
            return False
        return True

    def restore(self, state: TrainState, abstract_state: Tree) -> tuple[TrainState, dict[str, Any]] | None:
        """Restores the latest intact train state, and deletes all checkpoints of later steps.

        Args:
          state: a state of the same structure.
          abstract_state: `state` as a nested dict of ShapeDtypeStructs with shardings.

        Returns:
          The state and the progress that was saved with it; None if there is no checkpoint.

        Raises:
          UserError: naming the damaged checkpoint, if `on_corrupt` is 'stop' or none is intact.
        """
        steps = sorted(self.latest.all_steps(), reverse=True)
        for step in steps:
            problem, restored = self._read(step, abstract_state)
            if restored is None:
                if self.on_corrupt == "stop" or step == steps[-1]:
                    raise UserError(
                        f"{problem}; remove {self._step_folder(step)}, set config.checkpoint.on_corrupt to "
                        "'fallback' to resume from an older checkpoint, or choose another --workdir"
                    )
                logging.warning("%s; resuming from an older checkpoint", problem)
                continue
            progress = restored["progress"]
            # An event that was interrupted is repeated, and saves its best networks again.
            first_best = step if progress.get("event_is_due") else step + 1
            for manager, first in [(self.latest, step + 1), *((best, first_best) for best in self.best.values())]:
                for later in [s for s in manager.all_steps() if s >= first]:
                    manager.delete(later)
            return serialization.from_state_dict(state, restored["state"]), progress
        return None

    def close(self) -> None:
        """Waits for the save under way and ends Orbax's threads.

        Raises:
          SaveError: if the last train state could not be saved.
        """
        self._wait_until_finished()
        self._drop_superseded()
        try:
            self.latest.close()
        except IO_ERRORS as error:
            self._recover_latest(error)
        for network, manager in [*self.best.items()]:
            try:
                manager.close()
            except IO_ERRORS as error:
                self._recover_best(network, error)
        if self.failures:
            advice = "free disk space and repeat the command to resume"
            if jax.process_count() > 1:  # a process that dies during a save ends the save of the others
                advice = f"if another process has ended, restart all of them; else {advice}"
            raise SaveError(f"{self.failures[0]}; the latest checkpoint is that of step {self.latest_step}: {advice}")

    def report_failed_save(self, reason: str) -> None:
        """Reports a save that fails."""
        self.failures.append(f"no checkpoint could be written: {reason}")
        logging.warning("%s; training continues, and the next save tries again", self.failures[-1])

    def _read(self, step: int, abstract_state: Tree) -> tuple[str, Any]:
        """Reads a checkpoint; returns the problem or '', and the items or None."""
        folder = self._step_folder(step)
        if problem := checksums.verify(folder):
            return f"the checkpoint of step {step} is damaged: {problem}", None
        items = ocp.args.Composite(state=ocp.args.StandardRestore(abstract_state), progress=ocp.args.JsonRestore())
        try:
            return "", self.latest.restore(step, args=items)
        except IO_ERRORS as error:
            return f"the checkpoint {folder} cannot be read ({one_line(error)})", None

    def _read_back(self, step: int, tree: Tree) -> None:
        """Reads the first save of a start: a file system or folder that loses saves shows now, not after days.

        Raises:
          SaveError: if it was written and cannot be read.
        """
        if jax.process_count() > 1:  # others would have to read at the same moment
            self.is_read_back = True
            return
        self._wait_until_finished()
        if self.latest_step != step:
            return  # it failed, which is reported; the next one is read back
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)
        problem, restored = self._read(step, abstract)
        if restored is None:
            raise SaveError(f"{problem}, though it has just been written; choose another --workdir")
        self.is_read_back = True

    def _step_folder(self, step: int) -> Path:
        return Path(self.latest.directory) / str(step)

    def _wait_until_finished(self) -> None:
        """Waits for the train state that is being saved."""
        try:
            self.latest.wait_until_finished()
        except IO_ERRORS as error:
            self._recover_latest(error)

    # A manager whose save has failed still counts that step, and its threads may have ended: it is replaced.
    def _recover_latest(self, error: BaseException) -> None:
        self.report_failed_save(one_line(error))
        remove_partial_saves(Path(self.latest.directory))
        self.latest = self.reopen_latest()

    def _recover_best(self, network: str, error: BaseException) -> None:
        self.report_failed_save(one_line(error))
        remove_partial_saves(Path(self.best[network].directory))
        self.best[network] = self.reopen_best(network)

    def _has_disk_space(self, tree: Tree) -> bool:
        """Returns whether a tree can be saved, and reports if not. Asked before each save: if TensorStore itself runs
        out of space, the writer of every array prints a traceback."""
        size = 1.2 * sum(x.nbytes for x in jax.tree.leaves(tree))
        needed = size + 2**20
        try:
            free = shutil.disk_usage(self.root).free
        except OSError as error:
            self.report_failed_save(f"{self.root}: {error.strerror}")
            return False
        if not os.access(self.root, os.W_OK):
            self.report_failed_save(f"{self.root} may not be written")
            return False
        limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
        if limit != resource.RLIM_INFINITY and limit < size:
            self.report_failed_save(
                f"a file may hold {limit / 2**20:.2f} MiB, and one takes up to {size / 2**20:.2f}; raise `ulimit -f`"
            )
            return False
        if jax.process_count() == 1 and free < needed:  # several processes have to save together or not at all
            self.report_failed_save(f"{self.root} has {free / 2**20:.1f} MiB left, and one takes {needed / 2**20:.1f}")
            return False
        return True

    def _drop_superseded(self) -> None:
        """Deletes the best checkpoints before the one that `latest` refers to. A restart may need that one, so newer
        ones are kept beside it."""
        latest = self.latest.latest_step() or 0
        for manager in self.best.values():
            for older in sorted(step for step in manager.all_steps() if step <= latest)[:-1]:
                try:
                    manager.delete(older)
                except IO_ERRORS as error:  # a folder that has become read-only: nothing is lost
                    logging.warning("an old checkpoint cannot be deleted (%s)", one_line(error))


def open_checkpointer(
    workdir: Workdir,
    networks: tuple[str, ...],
    config: CheckpointConfig,
    steps_per_epoch: int,
    save_lock: threading.Lock | None = None,
) -> Checkpointer:
    """Opens the checkpoints of a workdir, and removes saves that a kill interrupted.

    Args:
      workdir: of the run.
      networks: names of the networks, each with its own best checkpoints.
      config: `config.checkpoint`.
      steps_per_epoch: for `config.keep_every_epochs`.
      save_lock: of all threads of the process that save; None if there is one only.
    """
    workdir = Workdir(workdir.root.resolve())  # Orbax wants absolute paths
    remove_partial_saves(workdir.checkpoints)

    def open_latest() -> ocp.CheckpointManager:
        keep_period = config.keep_every_epochs * steps_per_epoch or None
        return _open_manager(workdir.latest_checkpoints, max_to_keep=config.keep, keep_period=keep_period)

    def open_best(network: str) -> ocp.CheckpointManager:
        return _open_manager(workdir.best_checkpoints(network))

    return Checkpointer(
        root=workdir.checkpoints,
        latest=open_latest(),
        best={network: open_best(network) for network in networks},
        reopen_latest=open_latest,
        reopen_best=open_best,
        on_corrupt=config.on_corrupt,
        save_lock=save_lock,
    )


def _open_manager(folder: Path, **retention: int | None) -> ocp.CheckpointManager:
    async_options = ocp.options.AsyncOptions(post_finalization_callback=functools.partial(_write_checksums, folder))
    return ocp.CheckpointManager(folder, options=ocp.CheckpointManagerOptions(async_options=async_options, **retention))


def remove_partial_saves(folder: Path) -> None:
    """Removes saves below a folder that were interrupted."""
    for partial in folder.glob(f"**/*{TMP_MARKER}*") if is_main_process() else ():
        shutil.rmtree(partial, ignore_errors=True)


def _write_checksums(folder: Path) -> None:
    """Writes the checksums of a save that is about to get its final name; Orbax calls this once its files are there."""
    for finished in folder.glob(f"*{TMP_MARKER}*") if is_main_process() else ():
        checksums.write(finished)
