"""What a run shows while it trains: a clock, and a table on the console."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Sequence
from typing import TextIO

from tqdm import tqdm

from switokd_jax.workdir.metric_writers import MetricsRow

LABELS = {"train": "now", "validation": "val", "test": "test"}


@dataclasses.dataclass
class Clock:
    """Training time [seconds] and examples of all restarts; compilation and evaluation are left out."""

    seconds: float = 0.0
    examples: int = 0
    _since: float | None = None

    @property
    def rate(self) -> float:
        """Images per second."""
        return self.examples / self.seconds if self.seconds else 0.0

    def start(self) -> None:
        """Runs from now on, unless it runs already."""
        if self._since is None:
            self._since = time.monotonic()

    def stop(self) -> None:
        """Adds the time since `start`."""
        if self._since is not None:
            self.seconds += time.monotonic() - self._since
            self._since = None

    def lap(self) -> None:
        """Brings `seconds` up to now; goes on if it runs."""
        if self._since is not None:
            self.stop()
            self.start()


@dataclasses.dataclass(frozen=True)
class ProgressStats:
    """rate: images per second; left: seconds of training to go; expert: share of expert steps, or None."""

    rate: float
    left: float
    expert: float | None


class Progress:
    """Rows of a table, 80 columns wide for up to four networks: one for each evaluation, and on a terminal a
    live one for the step before a bar.

    Each network has its loss and its top-1 in percent; exp% is the share of expert steps, img/s training
    images per second, left the training time to go.
    """

    def __init__(self, total_steps: int, first_step: int, epochs: float, *, shown: bool, to: TextIO | None = None):
        self._to = to or sys.stdout
        self._shown, self._epochs = shown, epochs
        self._bar = (
            tqdm(
                total=total_steps,
                initial=first_step,
                file=self._to,
                dynamic_ncols=True,
                leave=False,
                bar_format="{desc} {bar}",
            )
            if shown and self._to.isatty()
            else None
        )

    def head(self, names: Sequence[str]) -> None:
        """Prints the head of the table."""
        self.say(f"{'':4} {'epoch':>7}{''.join(f' {name[:11]:>11}' for name in names)} exp%  img/s    left")

    def step(self, line: MetricsRow, pace: ProgressStats) -> None:
        """Moves the live row: the latest training losses and top-1 of the batch."""
        if self._bar is not None:
            self._bar.set_description_str(self._row(line, pace), refresh=False)
            self._bar.n = line["step"]
            self._bar.refresh()

    def evaluated(self, line: MetricsRow, pace: ProgressStats) -> None:
        """Prints the row of an evaluation."""
        self.say(self._row(line, pace))

    def say(self, text: str) -> None:
        """Prints lines without disturbing the live row."""
        if self._bar is not None:
            self._bar.write(text, file=self._to)
        elif self._shown:
            print(text, file=self._to, flush=True)

    def close(self) -> None:
        """Removes the live row."""
        if self._bar is not None:
            self._bar.close()

    def _row(self, line: MetricsRow, pace: ProgressStats) -> str:
        names = [key.removesuffix("/loss") for key in line if key.endswith("/loss")]
        scores = "".join(f" {short(line[f'{name}/loss'])} {line[f'{name}/top1']:5.1f}" for name in names)
        expert = "   -" if pace.expert is None else f"{100 * pace.expert:4.0f}"
        epoch = "/".join(f"{x:.3g}" if x < 999.5 else f"{x:.0f}" for x in (line["epoch"], self._epochs))
        return f"{LABELS[line['split']]:4} {epoch:>7}{scores} {expert} {pace.rate:6.0f} {clock(pace.left):>7}"


def short(loss: float) -> str:
    """In five characters, however large: 3.859, 38.59, 38594, 4e+06."""
    if loss < 99999.5:
        return f"{loss:5.{max(0, 4 - len(f'{loss:.0f}'))}f}"
    return f"{loss:5.0e}"


def clock(seconds: float) -> str:
    """m:ss, h:mm:ss, or 12h34m from ten hours on."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 10:
        return f"{hours}h{minutes:02}m"
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
