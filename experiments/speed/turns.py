"""Alternating measurements: whatever slows the machine down slows all contenders alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping


def taking_turns(contenders: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Measures each contender once per round, after one round of warming up.

    Args:
      contenders: functions that measure once, by name.
      rounds: number of measurements of each.

    Returns:
      The measurements by name, in the order of the rounds.
    """
    results: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(-1, rounds):
        for name, measure in contenders.items():
            result = measure()
            if turn >= 0:
                results[name].append(result)
    return results
