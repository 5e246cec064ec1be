"""Methods side by side on one config: same networks, images, updates, batch order and seeds.

python experiments/compare_methods.py --workdir=runs/compare --data_dir=FOLDER_OF_TFDS

The config (configs/cifar100_small.py unless --config names another with networks `teacher` and `student`) is
trained once for each method and seed, by the command that a user types; runs that are done are skipped, and
one that was cut short goes on. KD's frozen teacher is the vanilla run's of the same seed, at its last step.
Prints a Markdown table of mean and standard deviation over the seeds, and what the methods' configs differ in.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from switokd_jax.workdir import flat

ROOT = Path(__file__).parents[1]
METHODS = ("vanilla", "dml", "kdcl", "switokd", "uniokd", "kd")
NETWORKS = ("teacher", "student")
QUIET = ("--config.log.progress=False", "--config.log.tensorboard=False", "--config.checkpoint.every=0")


def flags(method: str, seed: int, workdir: Path, data_dir: str) -> list[str]:
    """What one run differs in from the config."""
    out = [f"--config.method={method}", f"--config.seed={seed}", f"--config.data.dir={data_dir}", *QUIET]
    if method == "kd":
        teacher = folder("vanilla", seed, workdir).resolve()
        out += [
            "--config.networks.teacher.frozen=True",
            f"--config.networks.teacher.init_from={teacher}:teacher@latest",
        ]
    return out


def folder(method: str, seed: int, workdir: Path) -> Path:
    """Where a run lives."""
    return workdir / f"{method}_seed{seed}"


def train(config: Path, method: str, seed: int, workdir: Path, data_dir: str) -> dict[str, Any]:
    """The summary of a run, trained unless it is done."""
    run = folder(method, seed, workdir)
    if not (run / "summary.json").exists():
        command = [sys.executable, "-m", "switokd_jax.main", f"--config={config}", f"--workdir={run.resolve()}"]
        subprocess.run([*command, *flags(method, seed, workdir, data_dir)], cwd=ROOT, check=True)
    summary: dict[str, Any] = json.loads((run / "summary.json").read_text())
    return summary


def spread(values: list[float]) -> str:
    """Mean and sample standard deviation."""
    return f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}" if len(values) > 1 else f"{values[0]:.2f}"


def row(method: str, summaries: list[dict[str, Any]]) -> str:
    """One line of the table."""
    cells = [method]
    for name in NETWORKS[::-1]:
        runs = [summary["networks"][name] for summary in summaries]
        cells += [spread([run["final_top1"] for run in runs]), spread([run["best_top1"] for run in runs])]
    cells.append(f"{statistics.mean(summary['networks']['teacher']['updates'] for summary in summaries):.0f}")
    shares = [switch["expert_fraction"] for summary in summaries for switch in summary["switch"].values()]
    cells.append(f"{100 * statistics.mean(shares):.0f}" if shares else "-")
    return f"| {' | '.join(cells)} |"


def differences(method: str, seed: int, workdir: Path) -> list[str]:
    """Fields in which a run's config is another than vanilla's, but for what no method reads."""
    configs = [json.loads((folder(m, seed, workdir) / "config.json").read_text()) for m in ("vanilla", method)]
    base, own = (flat(config) for config in configs)
    changed = [f"{name} = {own[name]!r}" for name in sorted(own) if own[name] != base.get(name)]
    return changed + [f"{name} = {own[name]!r}" for name in sorted(own) if name.startswith(f"{method}.")]


def main() -> None:
    """Trains all, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("configs/cifar100_small.py"))
    parser.add_argument("--workdir", type=Path, default=Path("runs/compare"))
    parser.add_argument("--data_dir", default="")
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    options = parser.parse_args()
    # Vanilla first: KD needs its teachers, and the differences are counted from it.
    methods = ["vanilla", *(method for method in options.methods if method != "vanilla")]
    results: dict[str, list[dict[str, Any]]] = {}
    for method in methods:
        results[method] = [
            train(options.config, method, seed, options.workdir, options.data_dir) for seed in options.seeds
        ]
    print(
        "| method | student final % | student best % | teacher final % | teacher best % | teacher updates | expert % |"
    )
    print("|---|---|---|---|---|---|---|")
    for method in methods:
        print(row(method, results[method]))
    print(f"\n{len(options.seeds)} seeds, {options.config}. The configs differ in:\n")
    for method in methods:
        print(f"- {method}: {', '.join(differences(method, options.seeds[0], options.workdir)) or 'nothing'}")


if __name__ == "__main__":
    main()
