"""Where the time of a traced call goes, by kind of XLA operation.

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

CONTAINERS = ("while", "conditional", "cond", "call")  # their time is that of what they hold


def operations(trace: Path) -> list[dict[str, Any]]:
    """The events of XLA operations: name, dur [microseconds]."""
    with gzip.open(trace, "rt") as file:
        events = json.load(file)["traceEvents"]
    return [event for event in events if event.get("ph") == "X" and "hlo_op" in event.get("args", {})]


def by_kind(events: list[dict[str, Any]]) -> dict[str, tuple[float, int]]:
    """Seconds and number of operations whose names differ by numbers only; the longest first."""
    seconds: collections.Counter[str] = collections.Counter()
    counts: collections.Counter[str] = collections.Counter()
    for event in events:
        kind = re.sub(r"[.\d]+(clone)?$", "", event["args"]["hlo_op"])
        if kind not in CONTAINERS:
            seconds[kind] += event["dur"] / 1e6
            counts[kind] += 1
    return {kind: (taken, counts[kind]) for kind, taken in seconds.most_common()}


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workdir", type=Path)
    parser.add_argument("--rows", type=int, default=20)
    options = parser.parse_args()
    traces = sorted((options.workdir / "profile").rglob("*.trace.json.gz"))
    if not traces:
        sys.exit(f"{options.workdir}/profile holds no trace; run with --config.log.profile=True")
    found = by_kind(operations(traces[-1]))
    total = sum(taken for taken, _ in found.values())
    print(f"{total:.3f} s of operations, summed over threads or streams")
    for kind, (taken, count) in [*found.items()][: options.rows]:
        print(f"{100 * taken / total:5.1f} %  {1000 * taken:9.1f} ms  {count:6} x  {kind}")


if __name__ == "__main__":
    main()
