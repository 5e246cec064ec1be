"""TensorBoard's event files of scalars: CLU's writer, or TensorBoard's own where TensorFlow is not installed."""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol


class EventWriter(Protocol):
    """Writes scalars into an event file."""

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Adds the scalars of a step."""

    def close(self) -> None:
        """Closes the file."""


def open_event_writer(folder: Path) -> EventWriter:
    """Opens a new event file in a folder. Importing CLU's writer imports TensorFlow, which takes seconds."""
    if importlib.util.find_spec("tensorflow") is None:
        return ScalarEvents(folder)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # TensorFlow logs a line about it, and only writes files here
    from clu import metric_writers

    writer: EventWriter = metric_writers.SummaryWriter(str(folder))
    return writer


class ScalarEvents:
    """Writes events with the package `tensorboard` alone, in the form that CLU's writer gives them."""

    def __init__(self, folder: Path) -> None:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._file = EventFileWriter(str(folder))

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Adds the scalars of a step."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.plugins.scalar.summary import scalar_pb

        for name, value in scalars.items():
            self._file.add_event(Event(step=step, wall_time=time.time(), summary=scalar_pb(name, value)))
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()
