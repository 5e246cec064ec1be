"""The console table of a run."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, TextIO

from absl import logging
from tqdm import tqdm

from switokd_jax.errors import one_line
from switokd_jax.workdir.metric_writers import MetricsRow

SPLIT_LABELS = {"train": "now", "validation": "val", "test": "test"}


@dataclasses.dataclass(frozen=True)
class ProgressStats:
    """State of a run beside its metrics.

    Attributes:
      total_epochs: of the whole run.
      examples_per_second: of training.
      eta_seconds: training time to go.
      expert_share: share of expert steps in [0, 1], or None without gated pairs.
    """

    total_epochs: float
    examples_per_second: float
    eta_seconds: float
    expert_share: float | None


@dataclasses.dataclass(frozen=True)
class Column:
    """One column of the table: its title, its width in characters, and the text of its cells."""

    title: str
    width: int
    cell: Callable[[MetricsRow, ProgressStats], str]


def _epoch(row: MetricsRow, stats: ProgressStats) -> str:
    return "/".join(f"{x:.3g}" if x < 999.5 else f"{x:.0f}" for x in (row["epoch"], stats.total_epochs))


def _expert_share(row: MetricsRow, stats: ProgressStats) -> str:
    del row
    return "-" if stats.expert_share is None else f"{100 * stats.expert_share:.0f}"


def _loss_and_top1(network: str) -> Callable[[MetricsRow, ProgressStats], str]:
    return lambda row, stats: f"{format_loss(row[f'{network}/loss'])} {row[f'{network}/top1']:5.1f}"


# To add a column, add a line. Before the networks, and after them; 80 characters hold four networks.
COLUMNS_BEFORE = (
    Column("", 4, lambda row, stats: f"{SPLIT_LABELS[row['split']]:4}"),
    Column("epoch", 7, _epoch),
)
COLUMNS_AFTER = (
    Column("exp%", 4, _expert_share),
    Column("img/s", 6, lambda row, stats: f"{stats.examples_per_second:.0f}"),
    Column("left", 7, lambda row, stats: format_duration(stats.eta_seconds)),
)


class Console:
    """A text stream whose failures do not matter: training goes on when the disk is full or the reader has ended.

    Args:
      file: the stream; None for a process without one.
    """

    def __init__(self, file: TextIO | None):
        self._file = file or os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")

    def write(self, text: str) -> int:
        """Writes text, or nothing if the stream has failed."""
        try:
            return self._file.write(text)
        except (OSError, ValueError) as error:
            self._give_up(error)
        return len(text)

    def flush(self) -> None:
        """Flushes the stream."""
        try:
            self._file.flush()
        except (OSError, ValueError) as error:
            self._give_up(error)

    def fileno(self) -> int:
        """Returns the file descriptor, of which the width of a terminal is asked."""
        return self._file.fileno()

    def isatty(self) -> bool:
        """Returns whether the stream is a terminal."""
        return not self._file.closed and self._file.isatty()

    def _give_up(self, error: Exception) -> None:
        logging.warning("progress cannot be printed any more (%s); training continues", one_line(error))
        nowhere = os.open(os.devnull, os.O_WRONLY)
        with contextlib.suppress(OSError, ValueError):  # a stream without a file descriptor
            os.dup2(nowhere, self._file.fileno())  # or what it holds back fails once more when Python ends
        self._file = os.fdopen(nowhere, "w")


class Progress:
    """Prints a row of the table for each evaluation; on a terminal also a live row for the current step and a bar.

    Each network has its loss and its top-1 in percent. exp% is the share of expert steps, img/s training images per
    second, left the training time to go.
    """

    def __init__(
        self, total_steps: int, first_step: int, networks: Sequence[str], *, shown: bool, file: TextIO | None = None
    ):
        self._file: Any = Console(file or sys.stdout)
        self._shown = shown
        network_columns = (Column(name[:11], 11, _loss_and_top1(name)) for name in networks)
        self._columns = (*COLUMNS_BEFORE, *network_columns, *COLUMNS_AFTER)
        self._bar = (
            tqdm(
                total=total_steps,
                initial=first_step,
                file=self._file,
                dynamic_ncols=True,
                leave=False,
                bar_format="{desc} {bar}",
            )
            if shown and self._file.isatty()
            else None
        )

    def print_header(self) -> None:
        """Prints the titles of the columns."""
        self.print(" ".join(f"{column.title:>{column.width}}" for column in self._columns))

    def update(self, row: MetricsRow, stats: ProgressStats) -> None:
        """Moves the live row to a training step."""
        if self._bar is not None:
            self._bar.set_description_str(self._format(row, stats), refresh=False)
            self._bar.n = row["step"]
            self._bar.refresh()

    def add_eval_row(self, row: MetricsRow, stats: ProgressStats) -> None:
        """Prints the row of an evaluation."""
        self.print(self._format(row, stats))

    def print(self, text: str) -> None:
        """Prints lines without disturbing the live row."""
        if self._bar is not None:
            self._bar.write(text, file=self._file)
        elif self._shown:
            print(text, file=self._file, flush=True)

    def close(self) -> None:
        """Removes the live row."""
        if self._bar is not None:
            self._bar.close()

    def _format(self, row: MetricsRow, stats: ProgressStats) -> str:
        return " ".join(f"{column.cell(row, stats):>{column.width}}" for column in self._columns)


def format_loss(loss: float) -> str:
    """Formats a loss in five characters, however large.

    >>> [format_loss(x) for x in (3.8594, 38.594, 38594.0, 4e6)]
    ['3.859', '38.59', '38594', '4e+06']
    """
    if loss < 99999.5:
        return f"{loss:5.{max(0, 4 - len(f'{loss:.0f}'))}f}"
    return f"{loss:5.0e}"


def format_duration(seconds: float) -> str:
    """Formats a duration as m:ss, h:mm:ss, or 12h34m from ten hours on.

    >>> [format_duration(x) for x in (75, 3675, 45240)]
    ['1:15', '1:01:15', '12h34m']
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 10:
        return f"{hours}h{minutes:02}m"
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
