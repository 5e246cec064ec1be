"""The training clock."""

from __future__ import annotations

import dataclasses
import time


@dataclasses.dataclass
class TrainingClock:
    """Training time [seconds] and examples over all restarts; compilation and evaluation are left out."""

    seconds: float = 0.0
    examples: int = 0
    _started: float | None = None

    @property
    def examples_per_second(self) -> float:
        """Training examples per second of training time."""
        return self.examples / self.seconds if self.seconds else 0.0

    def start(self) -> None:
        """Starts the clock, unless it runs already."""
        if self._started is None:
            self._started = time.monotonic()

    def stop(self) -> None:
        """Stops the clock, and adds the time since `start`."""
        if self._started is not None:
            self.seconds += time.monotonic() - self._started
            self._started = None

    def update(self) -> None:
        """Brings `seconds` up to now without stopping a running clock."""
        if self._started is not None:
            self.stop()
            self.start()
