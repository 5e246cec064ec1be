"""Time of a traced call by kind of XLA operation.

python -m switokd_jax.main --config=... --workdir=W --config.log.profile=True
python experiments/speed/trace_table.py W

The trace itself opens in https://ui.perfetto.dev (the *.trace.json.gz) or in XProf.
"""

from __future__ import annotations

import argparse
import collections
import gzip
import json
import re
import sys
from pathlib import Path
from typing import Any

CONTAINERS = ("while", "conditional", "cond", "call")  # their time is that of the operations inside


def operations(trace: Path) -> list[dict[str, Any]]:
    """Reads the events of XLA operations from a trace; `dur` is in microseconds."""
    with gzip.open(trace, "rt") as file:
        events = json.load(file)["traceEvents"]
    return [event for event in events if event.get("ph") == "X" and "hlo_op" in event.get("args", {})]


def by_kind(events: list[dict[str, Any]]) -> dict[str, tuple[float, int]]:
    """Sums the seconds and counts the operations whose names differ in numbers only; the longest come first."""
    seconds: collections.Counter[str] = collections.Counter()
    counts: collections.Counter[str] = collections.Counter()
    for event in events:
        kind = re.sub(r"[.\d]+(clone)?$", "", event["args"]["hlo_op"])
        if kind not in CONTAINERS:
            seconds[kind] += event["dur"] / 1e6
            counts[kind] += 1
    return {kind: (duration, counts[kind]) for kind, duration in seconds.most_common()}


def main() -> None:
    """Reads the flags and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workdir", type=Path)
    parser.add_argument("--rows", type=int, default=20)
    args = parser.parse_args()
    traces = sorted((args.workdir / "profile").rglob("*.trace.json.gz"))
    if not traces:
        sys.exit(f"{args.workdir}/profile holds no trace; run with --config.log.profile=True")
    kinds = by_kind(operations(traces[-1]))
    total = sum(duration for duration, _ in kinds.values())
    print(f"{total:.3f} s of operations, summed over threads or streams")
    for kind, (duration, count) in [*kinds.items()][: args.rows]:
        print(f"{100 * duration / total:5.1f} %  {1000 * duration:9.1f} ms  {count:6} x  {kind}")


if __name__ == "__main__":
    main()
