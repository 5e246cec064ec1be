"""What a run writes while it trains: metrics.jsonl, and where asked for TensorBoard events and Weights & Biases."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import json
import os
import uuid
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from absl import logging

from switokd_jax.errors import UserError
from switokd_jax.files import atomic_write

MetricsRow = dict[str, Any]


def read_metrics(path: Path) -> list[MetricsRow]:
    """The whole lines of a metrics.jsonl; a last line that a kill cut short is left out."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def truncate_after(path: Path, step: int) -> None:
    """Removes the lines after a global step, as a resumed run writes them again."""
    if not path.exists():
        return
    kept = [line for line in read_metrics(path) if line["step"] <= step]
    text = "".join(json.dumps(line) + "\n" for line in kept)
    atomic_write(path, lambda p: p.write_text(text))


def append_metrics(path: Path, lines: Sequence[MetricsRow]) -> None:
    """Appends lines: all of them or, where the disk is full, none.

    Raises:
      OSError: if they cannot be written.
    """
    text = "".join(json.dumps(line) + "\n" for line in lines).encode()
    with path.open("ab", buffering=0) as file:  # a buffer would write its rest once more when it is closed
        before = file.tell()
        try:
            while text:
                text = text[file.write(text) :]
        except OSError:
            file.truncate(before)
            raise


class TensorBoard:
    """An event file through CLU, written by one thread beside the training.

    CLU's writers import TensorFlow, which takes seconds: the thread does so at the first line.
    """

    def __init__(self, workdir: Path):
        self._workdir = workdir
        self._thread = ThreadPoolExecutor(1, "tensorboard")
        self._waiting: list[Future[None]] = []

    def write(self, lines: Sequence[MetricsRow]) -> None:
        """Writes means by split, at the step of its last line; says what an earlier write has met."""
        self._settle(done for done in self._waiting if done.done())
        for step, values in means(lines):
            self._waiting.append(self._thread.submit(self._write, step, values))

    def close(self) -> None:
        """Waits for what is being written and ends the file."""
        self._waiting.append(self._thread.submit(lambda: self._events.close()))
        self._thread.shutdown()
        self._settle(self._waiting)

    @functools.cached_property
    def _events(self) -> Any:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
        os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # TensorFlow announces it; only files are written with it
        from clu import metric_writers

        return metric_writers.SummaryWriter(str(self._workdir))

    def _write(self, step: int, means: dict[str, float]) -> None:
        self._events.write_scalars(step, means)

    def _settle(self, done: Iterable[Future[None]]) -> None:
        for each in [*done]:
            self._waiting.remove(each)
            if error := each.exception():
                logging.warning(
                    "TensorBoard's events cannot be written (%s); training goes on", " ".join(str(error).split())
                )


def means(lines: Sequence[MetricsRow]) -> list[tuple[int, dict[str, float]]]:
    """For each split the step of its last line, and the means of its numbers as SPLIT/NAME."""
    made = []
    for split in sorted({line["split"] for line in lines} - {"skipped"}):
        chosen = [line for line in lines if line["split"] == split]
        names = [n for n, v in chosen[-1].items() if isinstance(v, int | float) and n not in ("step", "epoch")]
        made.append(
            (chosen[-1]["step"], {f"{split}/{n}": sum(line[n] for line in chosen) / len(chosen) for n in names})
        )
    return made


class WeightsAndBiases:
    """A run of a Weights & Biases project; a workdir that goes on does so in the same one."""

    def __init__(self, workdir: Path, project: str, config: Mapping[str, Any]):
        import wandb

        where = workdir.resolve()
        self._run = wandb.init(
            project=project, id=_run_id(where), name=where.name, dir=str(where), config=dict(config), resume="allow"
        )
        # Its own count of steps refuses those before the last one, which a resumed run writes again.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def write(self, lines: Sequence[MetricsRow]) -> None:
        """Writes means by split; what goes wrong is a warning."""
        try:
            for step, values in means(lines):
                self._run.log({"step": step, **values})
        except Exception as error:  # of many kinds, and none is worth a run
            logging.warning("Weights & Biases cannot be written (%s); training goes on", " ".join(str(error).split()))

    def close(self) -> None:
        """Ends its run."""
        self._run.finish()


def _run_id(workdir: Path) -> str:
    """Drawn once for a workdir: folders of the same name on two machines are two runs."""
    path = workdir / "wandb" / "run_id"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        atomic_write(path, lambda p: p.write_text(uuid.uuid4().hex[:16]))
    return path.read_text()


@dataclasses.dataclass(frozen=True)
class Writer:
    """metrics.jsonl and others, where asked for. Lines that cannot be written wait for the next write."""

    path: Path
    others: tuple[TensorBoard | WeightsAndBiases, ...] = ()
    waiting: list[MetricsRow] = dataclasses.field(default_factory=list)

    def write(self, lines: Sequence[MetricsRow]) -> bool:
        """Appends lines {'split', 'epoch', 'step', metrics ...}; whether none waits now."""
        self.waiting.extend(lines)
        try:
            append_metrics(self.path, self.waiting)
            self.waiting.clear()
        except OSError as error:
            logging.warning("%s cannot be written (%s); %d lines wait", self.path, error.strerror, len(self.waiting))
        for other in self.others if lines else ():
            other.write(lines)
        return not self.waiting

    def close(self) -> None:
        """Ends what the others write."""
        for other in self.others:
            other.close()


def open_writer(workdir: Path, tensorboard: bool, wandb: str = "", config: Mapping[str, Any] | None = None) -> Writer:
    """The writer of a workdir.

    Args:
      workdir: an existing folder.
      tensorboard: whether to write its events.
      wandb: a Weights & Biases project, or ''.
      config: what Weights & Biases shows of the run.

    Raises:
      ConfigError: if what is asked for is not installed, or does not start.
    """
    others: list[TensorBoard | WeightsAndBiases] = []
    if tensorboard:
        if importlib.util.find_spec("tensorflow") is None:
            raise UserError("config.log.tensorboard needs TensorFlow: install tensorflow-cpu, or set it to False")
        others.append(TensorBoard(workdir))
    if wandb:
        try:
            others.append(WeightsAndBiases(workdir, wandb, config or {}))
        except ImportError:
            raise UserError("config.log.wandb needs Weights & Biases: pip install wandb, or set it to ''") from None
        except Exception as error:
            reason = " ".join(str(error).split())
            raise UserError(f"config.log.wandb {wandb!r} does not start ({reason}); log in, or set it to ''") from error
    return Writer(workdir / "metrics.jsonl", tuple(others))
