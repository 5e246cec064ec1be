"""Keeps the best student of each table whose results the repository keeps, as a safetensors file of PyTorch's names.

python experiments/keep_best.py runs/table_cifar     # after runs of a setting that keeps its results

For each setting it looks for the run with the best final test top-1 among results/SETTING/*.json. If that run's workdir
is in the folder, its student is written to results/SETTING/best_student.safetensors, and next to it best_student.json
says which run it is and how to train it again. Otherwise the file of another machine stays.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1])]

from experiments.grids import RESULTS
from switokd_jax import cli
from switokd_jax.errors import UserError
from switokd_jax.files import read_json, write_json
from switokd_jax.interop import pytorch
from switokd_jax.workdir import restore
from switokd_jax.workdir.layout import Workdir

STUDENT = "student"
MAX_BYTES = 4 * 2**20  # of one file in the repository


def best_run(results: Path) -> tuple[str, dict[str, Any]] | None:
    """Returns the name and the kept result of the run with the best student of a setting; None if it has no runs."""
    found = {path.stem: read_json(path) for path in sorted(results.glob(f"{results.name}_*_seed*.json"))}
    if not found:
        return None
    name = max(found, key=lambda name: found[name]["summary"]["networks"][STUDENT]["final_top1"])
    return name, found[name]


def keep(results: Path, folder: Path) -> str:
    """Writes the student of a setting's best run, if its workdir is in the folder; returns what was done as one line.

    Args:
      results: folder of the kept results, with the setting's name.
      folder: of workdirs.

    Raises:
      UserError: if the file would be too large for the repository.
    """
    best = best_run(results)
    if best is None:
        return f"{results.name}: no results"
    name, result = best
    about, weights = results / f"best_{STUDENT}.json", results / f"best_{STUDENT}.safetensors"
    if about.exists() and read_json(about)["run"] == name:
        return f"{results.name}: {name} is kept already"
    if not Workdir(folder / name).checkpoints.exists():
        return f"{results.name}: {name} is the best run, and {folder} does not have its workdir"
    variables = restore.load_variables(folder / name, STUDENT, "latest")
    pytorch.write(weights, variables)
    if weights.stat().st_size > MAX_BYTES:
        weights.unlink()
        raise UserError(f"{weights} would have more than {MAX_BYTES // 2**20} MiB; keep it elsewhere")
    network = result["summary"]["networks"][STUDENT]
    command = ["python", "-m", "switokd_jax.main", f"--config={result['config']}", *result["flags"]]
    write_json(
        about, {"run": name, "model": network["model"], "top1": network["final_top1"], "command": " ".join(command)}
    )
    return f"{results.name}: wrote {weights.name}, {name} with {network['final_top1']:.2f} %"


def main() -> None:
    """Reads the folder and keeps the best students of all settings."""
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit(f"{__doc__}")
    folder = Path(sys.argv[1]).expanduser()

    def command() -> str:
        if not folder.is_dir():
            raise UserError(f"{folder} is no folder of runs")
        return "\n".join(keep(path, folder) for path in sorted(RESULTS.iterdir()) if path.is_dir())

    cli.run(command)


if __name__ == "__main__":
    main()
