"""Agreement of the processes of a run: they compare what each was started with, before the first step.

Processes with different settings, data or code would train to wrong numbers, or wait for each other forever.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from switokd_jax.errors import UserError


def check_agreement(facts: Mapping[str, Any], advice: str) -> None:
    """Checks that all processes have the same facts. All of them call it, and all of them raise the error.

    Args:
      facts: JSON values by name.
      advice: what to do about a difference.

    Raises:
      UserError: naming the first fact that differs, two processes, and their values.
    """
    if jax.process_count() == 1:
        return
    facts_by_process = gather(dict(facts))
    first = facts_by_process[0]
    for process, other in enumerate(facts_by_process[1:], 1):
        for name in [*first, *(name for name in other if name not in first)]:
            if first.get(name) != other.get(name):
                values = f"{name} = {other.get(name)!r}, and process 0 has {first.get(name)!r}"
                raise UserError(f"process {process} has {values}; {advice}")


def gather(value: Any) -> list[Any]:
    """Returns the JSON value of every process, in the order of their indices. All of them call it."""
    encoded = np.frombuffer(json.dumps(value).encode(), np.uint8)
    lengths = np.asarray(multihost_utils.process_allgather(np.asarray([len(encoded)], np.int32))).ravel()
    padded = np.zeros(int(lengths.max()), np.uint8)
    padded[: len(encoded)] = encoded
    # One byte in an int32: not every backend sums small integers.
    rows = np.asarray(multihost_utils.process_allgather(padded.astype(np.int32))).reshape(len(lengths), -1)
    return [
        json.loads(row[:length].astype(np.uint8).tobytes().decode()) for row, length in zip(rows, lengths, strict=True)
    ]
