"""What a run writes while it trains: metrics.jsonl, TensorBoard events, progress on the console."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from switokd_jax.files import write_whole

Line = dict[str, Any]


def read_metrics(path: Path) -> list[Line]:
    """The whole lines of a metrics.jsonl; a last line that a kill cut short is left out."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def drop_beyond(path: Path, step: int) -> None:
    """Removes the lines after a global step, as a resumed run writes them again."""
    if not path.exists():
        return
    kept = [line for line in read_metrics(path) if line["step"] <= step]
    text = "".join(json.dumps(line) + "\n" for line in kept)
    write_whole(path, lambda p: p.write_text(text))


def append_metrics(path: Path, lines: Sequence[Line]) -> None:
    """Appends whole lines in one write."""
    with path.open("a") as file:
        file.write("".join(json.dumps(line) + "\n" for line in lines))


@dataclasses.dataclass(frozen=True)
class Writer:
    """metrics.jsonl and, where asked for, TensorBoard through CLU."""

    path: Path
    tensorboard: Any = None

    def write(self, lines: Sequence[Line]) -> None:
        """Appends lines {'split', 'epoch', 'step', metrics ...}; TensorBoard gets means per call and split."""
        append_metrics(self.path, lines)
        if self.tensorboard is None:
            return
        for split in sorted({line["split"] for line in lines}):
            chosen = [line for line in lines if line["split"] == split]
            names = [n for n, v in chosen[-1].items() if isinstance(v, int | float) and n not in ("step", "epoch")]
            means = {f"{split}/{n}": sum(line[n] for line in chosen) / len(chosen) for n in names}
            self.tensorboard.write_scalars(chosen[-1]["step"], means)

    def close(self) -> None:
        """Ends TensorBoard's file."""
        if self.tensorboard is not None:
            self.tensorboard.close()


def open_writer(workdir: Path, tensorboard: bool) -> Writer:
    """The writer of a workdir. CLU's writers import TensorFlow, so only where they are wanted."""
    path = workdir / "metrics.jsonl"
    if not tensorboard:
        return Writer(path)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # TensorFlow announces it; only files are written with it
    from clu import metric_writers

    return Writer(path, metric_writers.SummaryWriter(str(workdir)))


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


class Progress:
    """A live bar on a terminal, plain lines elsewhere; one line for each evaluation either way."""

    def __init__(self, total_steps: int, first_step: int, epochs: float, *, shown: bool, to: TextIO | None = None):
        self._to = to or sys.stdout
        self._shown, self._epochs, self._total = shown, epochs, total_steps
        live = shown and self._to.isatty()
        self._bar = (
            tqdm(
                total=total_steps,
                initial=first_step,
                file=self._to,
                dynamic_ncols=True,
                leave=False,
                bar_format="{desc}|{bar}| {remaining} left",
            )
            if live
            else None
        )
        self._first, self._started = first_step, time.monotonic()

    def step(self, step: int, line: Line, rate: float, expert_share: float | None) -> None:
        """Moves the live bar: the latest training losses and top-1 of the batch."""
        if self._bar is not None:
            self._bar.set_description_str(self._text("", line, rate, expert_share), refresh=False)
            self._bar.update(step - self._bar.n)

    def evaluated(self, step: int, line: Line, rate: float, expert_share: float | None) -> None:
        """Prints one line with the test scores."""
        if not self._shown:
            return
        done = max(step - self._first, 1)
        left = (time.monotonic() - self._started) / done * (self._total - step)
        text = self._text(f"{line['split']} ", line, rate, expert_share) + f" {clock(left)} left"
        if self._bar is not None:
            self._bar.write(text, file=self._to)
        else:
            print(text, file=self._to, flush=True)

    def say(self, text: str) -> None:
        """Prints lines without disturbing the bar."""
        if self._shown:
            (self._bar.write(text, file=self._to) if self._bar is not None else print(text, file=self._to, flush=True))

    def close(self) -> None:
        """Removes the bar."""
        if self._bar is not None:
            self._bar.close()

    def _text(self, head: str, line: Line, rate: float, expert_share: float | None) -> str:
        names = [key.removesuffix("/loss") for key in line if key.endswith("/loss")]
        parts = [f"{name} {line[f'{name}/loss']:.3f} {line[f'{name}/top1']:.1f}%" for name in names]
        share = [] if expert_share is None else [f"expert {100 * expert_share:.0f}%"]
        start = f"{head}{line['epoch']:g}/{self._epochs:g} {rate:.0f} img/s"
        return " ".join([start, *parts, *share])


def clock(seconds: float) -> str:
    """m:ss or h:mm:ss."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def expert_shares(expert_steps: Mapping[str, int], steps: int) -> dict[str, float]:
    """Share of the steps so far in expert mode, by pair."""
    return {pair: int(count) / max(steps, 1) for pair, count in expert_steps.items()}
