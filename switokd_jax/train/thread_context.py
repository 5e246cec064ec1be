"""What a run needs if it is one of several threads of a process."""

from __future__ import annotations

import dataclasses
import threading
from typing import TextIO


@dataclasses.dataclass(frozen=True)
class ThreadContext:
    """Output, stop and locks of a run in a thread.

    Attributes:
      console: receives the table of the run.
      stop: an event that, once set, makes the run save and end as SIGTERM does: only a process's main thread receives
        signals.
      save_lock: held during a save, the same for all runs of the process: Orbax numbers the saves of a process by one
        counter, and two at a time would take each other's signals.
    """

    console: TextIO
    stop: threading.Event
    save_lock: threading.Lock
