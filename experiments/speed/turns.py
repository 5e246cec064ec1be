"""Ways that are compared take turns, so that what slows the machine slows all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping


def taking_turns(ways: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """What each way measures in each round, by name, after one round of warming up."""
    seen: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(-1, rounds):
        for name, way in ways.items():
            measured = way()
            if turn >= 0:
                seen[name].append(measured)
    return seen
