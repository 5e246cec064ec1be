"""What a run writes while it trains: metrics.jsonl, TensorBoard events, progress on the console."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import json
import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from switokd_jax.fields import ConfigError
from switokd_jax.files import write_whole

Line = dict[str, Any]
LABELS = {"train": "now", "validation": "val", "test": "test"}


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


class TensorBoard:
    """An event file through CLU, written by one thread beside the training.

    CLU's writers import TensorFlow, which takes seconds: the thread does so at the first line.
    """

    def __init__(self, workdir: Path):
        self._workdir = workdir
        self._thread = ThreadPoolExecutor(1, "tensorboard")
        self._waiting: list[Future[None]] = []

    def write(self, lines: Sequence[Line]) -> None:
        """Writes means by split, at the step of its last line.

        Raises:
          Exception: what an earlier write has met.
        """
        self._settle(done for done in self._waiting if done.done())
        for split in sorted({line["split"] for line in lines}):
            chosen = [line for line in lines if line["split"] == split]
            names = [n for n, v in chosen[-1].items() if isinstance(v, int | float) and n not in ("step", "epoch")]
            means = {f"{split}/{n}": sum(line[n] for line in chosen) / len(chosen) for n in names}
            self._waiting.append(self._thread.submit(self._write, chosen[-1]["step"], means))

    def close(self) -> None:
        """Waits for what is being written and ends the file; raises as `write` does."""
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
            each.result()


@dataclasses.dataclass(frozen=True)
class Writer:
    """metrics.jsonl and, where asked for, TensorBoard."""

    path: Path
    tensorboard: TensorBoard | None = None

    def write(self, lines: Sequence[Line]) -> None:
        """Appends lines {'split', 'epoch', 'step', metrics ...}."""
        append_metrics(self.path, lines)
        if self.tensorboard is not None:
            self.tensorboard.write(lines)

    def close(self) -> None:
        """Ends TensorBoard's file."""
        if self.tensorboard is not None:
            self.tensorboard.close()


def open_writer(workdir: Path, tensorboard: bool) -> Writer:
    """The writer of a workdir.

    Raises:
      ConfigError: if TensorBoard is asked for and what writes its files is not installed.
    """
    if tensorboard and importlib.util.find_spec("tensorflow") is None:
        raise ConfigError("config.log.tensorboard needs TensorFlow: install tensorflow-cpu, or set it to False")
    return Writer(workdir / "metrics.jsonl", TensorBoard(workdir) if tensorboard else None)


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
class Pace:
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

    def step(self, line: Line, pace: Pace) -> None:
        """Moves the live row: the latest training losses and top-1 of the batch."""
        if self._bar is not None:
            self._bar.set_description_str(self._row(line, pace), refresh=False)
            self._bar.n = line["step"]
            self._bar.refresh()

    def evaluated(self, line: Line, pace: Pace) -> None:
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

    def _row(self, line: Line, pace: Pace) -> str:
        names = [key.removesuffix("/loss") for key in line if key.endswith("/loss")]
        scores = "".join(f" {line[f'{name}/loss']:5.3f} {line[f'{name}/top1']:5.1f}" for name in names)
        expert = "   -" if pace.expert is None else f"{100 * pace.expert:4.0f}"
        epoch = f"{line['epoch']:.3g}/{self._epochs:.3g}"
        return f"{LABELS[line['split']]:4} {epoch:>7}{scores} {expert} {pace.rate:6.0f} {clock(pace.left):>7}"


def clock(seconds: float) -> str:
    """m:ss, h:mm:ss, or 12h34m from ten hours on."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 10:
        return f"{hours}h{minutes:02}m"
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def expert_shares(expert_steps: Mapping[str, Any], steps: int) -> dict[str, float]:
    """Share of the steps so far in expert mode, by pair, from their counts."""
    return {pair: int(count) / max(steps, 1) for pair, count in expert_steps.items()}
