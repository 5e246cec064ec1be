"""Cost and benefit of switching: an expert step beside its parts, a learning step beside DML's.

python experiments/speed/switching_cost.py --rounds=7 --steps=8

The CIFAR-100 pair (wrn_16_2 teaches mobilenetv2_0.5) in batches of 128; all contenders alternate in one process. The
decision about the teacher is a traced value. Prints medians and the two ratios.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT)]

from experiments.speed.our_step import BATCH, Timed, forward_only, our_config, our_timer
from experiments.speed.turns import taking_turns
from switokd_jax import config
from switokd_jax.files import write_json

TEACHER, STUDENT = "wrn_16_2", "mobilenetv2_0.5"


def alone(model: str) -> Any:
    """Builds the config of one network that learns from labels only."""
    c = our_config((model,), (model,), "float32")
    c.method, c.topology.kind, c.topology.names = "vanilla", "complete", ("n0",)
    c.networks = {"n0": config.network(model=model, learning_rate=0.01, schedule="constant")}
    return c


def main() -> None:
    """Reads the flags, measures, prints, and writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--json", type=Path, default=Path("runs/switching_cost.json"))
    args = parser.parse_args()
    pair = our_config((TEACHER,), (STUDENT,), "float32")
    dml = our_config((TEACHER,), (STUDENT,), "float32")
    dml.method, dml.topology.kind, dml.topology.names = "dml", "complete", ("n0", "n1")
    switching, mutual = our_timer(pair)[0], our_timer(dml)[0]
    student, teacher = our_timer(alone(STUDENT))[0], our_timer(alone(TEACHER), forward_only)[0]

    def milliseconds(step: Timed, paused: bool) -> Callable[[], float]:
        return lambda: 1000 * step(paused, args.steps) / args.steps

    contenders = {
        "expert step": milliseconds(switching, True),
        "student's step alone": milliseconds(student, False),
        "teacher's forward pass alone": milliseconds(teacher, False),
        "learning step": milliseconds(switching, False),
        "DML's step": milliseconds(mutual, False),
    }
    results = taking_turns(contenders, args.rounds)
    median = {name: statistics.median(times) for name, times in results.items()}
    parts = median["student's step alone"] + median["teacher's forward pass alone"]
    ratios = {
        "expert step to its parts": median["expert step"] / parts,
        "learning step to DML's": median["learning step"] / median["DML's step"],
    }
    for name, duration in median.items():
        print(f"{name:30} {duration:7.1f} ms   ({', '.join(f'{time:.0f}' for time in results[name])})")
    for name, ratio in ratios.items():
        print(f"{name:30} {ratio:7.3f}")
    args.json.parent.mkdir(parents=True, exist_ok=True)
    write_json(args.json, {"batch": BATCH, "milliseconds": median, "rounds": results, "ratios": ratios})


if __name__ == "__main__":
    main()
