"""Metric writers: metrics.jsonl and, if asked for, TensorBoard events and Weights & Biases."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import math
import os
import re
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from absl import logging

from switokd_jax.errors import UserError, import_extra, one_line
from switokd_jax.files import atomic_write, to_json
from switokd_jax.workdir.event_writer import EventWriter, open_event_writer
from switokd_jax.workdir.layout import Workdir

ROW_START = re.compile(rb'\{"split": "(\w+)", "epoch": [-+.\w]+, "step": (\d+)[,}]')  # as `append_metrics` writes it
TAIL_BYTES = 2**16
TRAINING_SPLITS = ("train", "skipped")  # of rows for a step; all others are of an evaluation
MetricsRow = dict[str, Any]
"""One line of metrics.jsonl: 'split', 'epoch', 'step', then metrics of any name as JSON values."""


def read_metrics(path: Path) -> list[MetricsRow]:
    """Reads the rows of a metrics.jsonl. A last line that was cut off when the process was killed is left out.

    Lines that are no rows are left out as well, and a warning tells their number.
    """
    rows, bad = list[MetricsRow](), list[int]()
    for number, line in enumerate(_lines(path), 1):
        if row := _parse(line):
            rows.append(row)
        elif line.endswith(b"\n"):
            bad.append(number)
    _warn_about(path, bad)
    return rows


def last_row(path: Path, split: str) -> MetricsRow | None:
    """Returns the last row of a split, without reading all of the file; None if there is none."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        end, rest = file.seek(0, os.SEEK_END), b""
        while end > 0:
            start = max(end - TAIL_BYTES, 0)
            file.seek(start)
            lines = (file.read(end - start) + rest).splitlines(keepends=True)
            # The first line may begin before this part of the file.
            rest = lines.pop(0) if start else b""
            for line in reversed(lines):
                if (row := _parse(line)) and row.get("split") == split:
                    return row
            end = start
    return None


def _lines(path: Path) -> Iterator[bytes]:
    if path.exists():
        try:
            with path.open("rb") as file:
                yield from file
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror})") from None


def _parse(line: bytes) -> MetricsRow | None:
    """Parses one line; None if it is no row, or not complete."""
    if not line.endswith(b"\n"):
        return None
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or not {"split", "step"} & row.keys():
        return None
    step = row.get("step", 0)
    return row if isinstance(step, int | float) and not isinstance(step, bool) else None


def _warn_about(path: Path, bad: Sequence[int]) -> None:
    if bad:
        logging.warning("%s: line %d is no row of metrics; %d such lines are left out", path, bad[0], len(bad))


def truncate_after(path: Path, step: int, *, keep_evaluation: bool = True) -> None:
    """Removes the rows after a global step: a resumed run writes them again.

    Args:
      path: the metrics.jsonl.
      step: global step that the run resumes at.
      keep_evaluation: whether to keep the rows of an evaluation after that very step.
    """
    if not path.exists():
        return

    def is_kept(row: MetricsRow) -> bool:
        row_step = row.get("step", math.inf)
        return row_step < step or (row_step == step and (keep_evaluation or row.get("split") in TRAINING_SPLITS))

    def write(target: Path) -> None:
        bad = list[int]()
        with target.open("wb") as file:
            for number, line in enumerate(_lines(path), 1):
                # The beginning of a row tells all that is needed here. To parse a long run's metrics takes minutes.
                start = ROW_START.match(line) if line.endswith(b"}\n") and b"\0" not in line else None
                row = {"split": start[1].decode(), "step": int(start[2])} if start else _parse(line)
                if row and is_kept(row):
                    file.write(line)
                elif row is None and line.endswith(b"\n"):
                    bad.append(number)
        _warn_about(path, bad)

    atomic_write(path, write)


def append_metrics(path: Path, rows: Sequence[MetricsRow]) -> None:
    """Appends rows: all of them or, if the disk is full, none.

    Raises:
      OSError: if they cannot be written.
    """
    text = "".join(to_json(row) + "\n" for row in rows).encode()
    with path.open("ab", buffering=0) as file:  # a buffer would write its rest once more when it is closed
        end = file.tell()
        try:
            while text:
                text = text[file.write(text) :]
        except OSError:
            file.truncate(end)
            raise


def mean_by_split(rows: Sequence[MetricsRow]) -> list[tuple[int, dict[str, float]]]:
    """Averages rows for each split but 'skipped'.

    Returns:
      For each split the step of its last row, and the means of that row's numbers by 'SPLIT/METRIC', over all rows
      that have them.

    >>> rows = [{"split": "train", "epoch": 0.5 * step, "step": step, "grad_norm": float(step)} for step in (1, 2)]
    >>> mean_by_split(rows)
    [(2, {'train/grad_norm': 1.5})]
    """
    means = []
    for split in sorted({row["split"] for row in rows} - {"skipped"}):
        rows_of_split = [row for row in rows if row["split"] == split]
        last = rows_of_split[-1]
        metrics = {}
        for name, value in last.items():
            if isinstance(value, int | float) and name not in ("step", "epoch"):
                values = [row[name] for row in rows_of_split if name in row]
                metrics[f"{split}/{name}"] = sum(values) / len(values)
        means.append((last["step"], metrics))
    return means


def evaluation_rows(rows: Sequence[MetricsRow]) -> list[dict[str, float]]:
    """Returns a row for each evaluation: its numbers, and the means of the training steps since the one before.

    >>> train = [{"split": "train", "epoch": 0.5 * step, "step": step, "loss": float(step)} for step in (1, 2, 3)]
    >>> test = {"split": "test", "epoch": 1.0, "step": 2, "top1": 90.0}
    >>> evaluation_rows([*train[:2], test, train[2]])
    [{'epoch': 1.0, 'test/top1': 90.0, 'train/loss': 1.5}]
    """
    found, chunk = [], list[MetricsRow]()
    for row, following in itertools.zip_longest(rows, rows[1:]):
        chunk.append(row)
        is_evaluation = row["split"] not in TRAINING_SPLITS
        if is_evaluation and (following is None or following["step"] > row["step"]):
            means = {name: mean for _, metrics in mean_by_split(chunk) for name, mean in metrics.items()}
            found.append({"epoch": row["epoch"], **means})
            chunk = []
    return found


class Sink(Protocol):
    """A place besides metrics.jsonl where metrics are written. A failure is a warning and never stops a run."""

    def write(self, rows: Sequence[MetricsRow]) -> None:
        """Writes the means of some rows."""

    def close(self) -> None:
        """Waits until all is written."""


class TensorBoard:
    """An event file, written by a thread of its own: what opens it takes seconds to import."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._thread = ThreadPoolExecutor(1, "tensorboard")
        self._pending: list[Future[None]] = []

    def write(self, rows: Sequence[MetricsRow]) -> None:
        """Writes means by split, at the step of the split's last row. Warns if an earlier write has failed."""
        self._check(future for future in self._pending if future.done())
        for step, means in mean_by_split(rows):
            self._pending.append(self._thread.submit(self._write, step, means))

    def close(self) -> None:
        """Waits for pending writes and closes the file."""
        self._pending.append(self._thread.submit(lambda: self._events.close()))
        self._thread.shutdown()
        self._check(self._pending)

    @functools.cached_property
    def _events(self) -> EventWriter:
        return open_event_writer(self._folder)

    def _write(self, step: int, means: dict[str, float]) -> None:
        self._events.write_scalars(step, means)

    def _check(self, finished: Iterable[Future[None]]) -> None:
        """Removes writes from the pending ones and warns of those that have failed."""
        for future in [*finished]:
            self._pending.remove(future)
            if error := future.exception():
                logging.warning("TensorBoard's events cannot be written (%s); training continues", one_line(error))


class WeightsAndBiases:
    """A run of a Weights & Biases project; it resumes with its workdir."""

    def __init__(self, wandb: ModuleType, workdir: Workdir, project: str, config: Mapping[str, Any]):
        workdir = Workdir(workdir.root.resolve())
        self._run = wandb.init(
            project=project,
            id=_run_id(workdir.wandb),
            name=workdir.root.name,
            dir=str(workdir.root),
            config=dict(config),
            resume="allow",
        )
        # Its own step counter refuses steps before the last one, which a resumed run writes again.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def write(self, rows: Sequence[MetricsRow]) -> None:
        """Writes means by split. Warns if that fails."""
        try:
            for step, means in mean_by_split(rows):
                self._run.log({"step": step, **means})
        except Exception as error:  # of any type: no error of theirs is worth losing a run
            logging.warning("Weights & Biases cannot be written (%s); training continues", one_line(error))

    def close(self) -> None:
        """Ends the run."""
        self._run.finish()


def _run_id(folder: Path) -> str:
    """Returns the run's id, drawn once per workdir: workdirs of equal name on two machines are two runs."""
    path = folder / "run_id"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        atomic_write(path, lambda p: p.write_text(uuid.uuid4().hex[:16]))
    return path.read_text()


@dataclasses.dataclass(frozen=True)
class Writer:
    """Writes metrics.jsonl and passes rows on to other sinks. Create with `open_writer`.

    Attributes:
      path: metrics.jsonl.
      sinks: TensorBoard and Weights & Biases, if asked for.
      pending: rows that could not be written; the next write tries again.
    """

    path: Path
    sinks: tuple[Sink, ...] = ()
    pending: list[MetricsRow] = dataclasses.field(default_factory=list)

    def write(self, rows: Sequence[MetricsRow]) -> bool:
        """Appends rows.

        Returns:
          Whether metrics.jsonl has all rows so far, so that a checkpoint may be saved.
        """
        self.pending.extend(rows)
        try:
            append_metrics(self.path, self.pending)
            self.pending.clear()
        except OSError as error:
            logging.warning(
                "%s cannot be written (%s); %d rows are pending", self.path, error.strerror, len(self.pending)
            )
        for sink in self.sinks if rows else ():
            sink.write(rows)
        return not self.pending

    def close(self) -> None:
        """Closes the sinks."""
        for sink in self.sinks:
            sink.close()


def open_writer(
    workdir: Workdir, tensorboard: bool, wandb: str = "", config: Mapping[str, Any] | None = None
) -> Writer:
    """Opens the metric writer of a workdir.

    Args:
      workdir: its folder exists.
      tensorboard: whether to write events.
      wandb: a Weights & Biases project, or ''.
      config: config that Weights & Biases shows of the run.

    Raises:
      UserError: if a package that is asked for is not installed, or does not start.
    """
    sinks: list[Sink] = []
    if tensorboard:
        sinks.append(TensorBoard(workdir.root))
    if wandb:
        library = import_extra("wandb", "wandb", "config.log.wandb", otherwise="set it to ''")
        try:
            sinks.append(WeightsAndBiases(library, workdir, wandb, config or {}))
        except Exception as error:
            raise UserError(
                f"config.log.wandb {wandb!r} does not start ({one_line(error)}); log in, or set it to ''"
            ) from error
    return Writer(workdir.metrics, tuple(sinks))
