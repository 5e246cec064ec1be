"""Pair, stars and chains on digits: trains every configs/digits*.py and prints one Markdown table.

python experiments/digits_topologies.py --workdir=runs/digits_topologies

Runs that are done are not trained again, and one that was cut short goes on. Exit status 1 if a network
ends at or below --floor percent.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def train(name: str, workdir: Path, seed: int) -> dict[str, Any]:
    """Trains configs/NAME.py by the command that a user types; returns its summary."""
    folder = workdir / f"{name}_seed{seed}"
    flags = [f"--config=configs/{name}.py", f"--config.seed={seed}", f"--workdir={folder.resolve()}"]
    quiet = ["--config.log.progress=False", "--config.log.tensorboard=False"]
    subprocess.run([sys.executable, "-m", "switokd_jax.main", *flags, *quiet], cwd=ROOT, check=True)
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return summary


def rows(name: str, summary: dict[str, Any]) -> list[str]:
    """A row for each network: its own scores, and the expert share of the pairs that it teaches in."""
    out = []
    for network, scores in summary["networks"].items():
        shares = [
            f"{pair.split('->')[1]} {100 * switch['expert_fraction']:.0f} %"
            for pair, switch in summary["switch"].items()
            if pair.split("->")[0] == network
        ]
        numbers = f"{scores['final_top1']:.2f} | {scores['best_top1']:.2f} | {scores['updates']} of {summary['steps']}"
        out.append(f"| {name} | {network} | {scores['model']} | {numbers} | {', '.join(shares) or '-'} |")
    return out


def main() -> None:
    """Trains all, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, default=Path("runs/digits_topologies"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--floor", type=float, default=90.0, help="least final top-1 of every network, percent")
    options = parser.parse_args()
    summaries = {
        path.stem: train(path.stem, options.workdir, options.seed) for path in sorted(ROOT.glob("configs/digits*.py"))
    }
    print("| config | network | model | final top-1 % | best top-1 % | updates | expert steps with |")
    print("|---|---|---|---|---|---|---|")
    for name, summary in summaries.items():
        print("\n".join(rows(name, summary)))
    scores = [network["final_top1"] for summary in summaries.values() for network in summary["networks"].values()]
    if min(scores) <= options.floor:
        sys.exit(f"a network ended at {min(scores):.2f} %, not above {options.floor:g} %")


if __name__ == "__main__":
    main()
