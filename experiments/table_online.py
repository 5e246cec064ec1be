"""Online methods on equal terms: four peers, or four branches of one network, and the ensemble of all.

python experiments/table_online.py --smoke --jobs=2           # all methods on digits, one seed, in minutes
python experiments/table_online.py --plan                     # what would run, and how long
python experiments/table_online.py --arms vanilla dml one -- --config.data.dir=DIR

Every arm is configs/online.py:DATA,METHOD with the method's published defaults; nothing is tuned, and the seeds and
the order of the images are the same. Published numbers are resnet32's top-1 on CIFAR-100 with three peers, as the
paper of PCL (AAAI 2021) reports them of all methods.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1])]

from experiments.grids import Arm, GridPoint, Setting
from experiments.study import Study, main, note
from switokd_jax import evaluate
from switokd_jax.analysis.jobs import Job
from switokd_jax.analysis.tables import Cell, MeanStd, Table
from switokd_jax.files import read_json, write_json
from switokd_jax.methods import METHODS
from switokd_jax.models import flops

ONLINE = [name for name, method in METHODS.items() if not method.offline]
ALSO_ON_BRANCHES = ("vanilla", "dml", "kdcl", "afd", "mcl")  # with branches, too; the others have one published form
PUBLISHED = {"dml": 73.68, "cl_ilr": 72.33, "one": 73.79, "ffl": 72.18, "okddip": 73.25, "kdcl": 73.76, "pcl": 74.14}


def arms(data: str) -> dict[str, Arm]:
    """Returns an arm for every online method: networks, or branches where it is published so."""
    methods = {name: Arm(config=f"configs/online.py:{data},{name}") for name in ONLINE}
    branches = {
        f"{name}_branches": Arm(config=f"configs/online.py:{data},{name},branches") for name in ALSO_ON_BRANCHES
    }
    return methods | branches


def scores(workdir: Path) -> dict[str, Any]:
    """Evaluates the last checkpoint of a run and keeps the result in its folder, as peers.json."""
    path = workdir / "peers.json"
    if not path.exists():
        write_json(path, evaluate.evaluate(workdir, "latest"))
    found: dict[str, Any] = read_json(path)
    return found


def make_table(study: Study, points: Mapping[Job, GridPoint], results: Mapping[str, Any], folder: Path) -> Table:
    """Builds the table: a row for each setting and arm.

    A row has the final top-1 of the mean and the best of the four peers, of the last one (the leader of OKDDip) and of
    their mean probability, beside the published one; calibration errors; and what the training cost.
    """
    rows_of: dict[tuple[str, str], list[tuple[float, ...]]] = {}
    unit, size = flops.unit(max(summary["training_flops"] for summary in results.values()))
    settings = {point.setting.name: point.setting for point in points.values()}
    for job, point in points.items():
        of_arm = rows_of.setdefault((point.setting.name, point.arm), [])
        if job.name not in results:
            continue
        found, summary = scores(folder / job.name), results[job.name]
        top1 = [network["top1"] for network in found["networks"].values()]
        errors = [network["calibration_error"] for network in found["networks"].values()]
        of_arm.append(
            (
                *(statistics.fmean(top1), max(top1), top1[-1], found["ensemble"]["top1"]),
                *(100.0 * statistics.fmean(errors), 100.0 * found["ensemble"]["calibration_error"]),
                *(summary["training_flops"] / size, summary["seconds"]),
            )
        )
    rows = []
    for (setting, arm), of_seeds in rows_of.items():
        published = settings[setting].published.get(arm, {}).get("peer")
        cells: list[Cell] = [setting, arm, published]
        cells += [MeanStd(column) for column in zip(*of_seeds, strict=True)] or [None] * 8
        rows.append(tuple(cells))
    head = ("setting", "arm", "published %", "mean peer %", "best peer %", "last peer %", "ensemble %")
    return Table(
        study.title,
        (*head, "ECE of peers %", "ECE of ensemble %", unit, "seconds"),
        tuple(rows),
        f"{note(points, unit)} ECE is the calibration error in 15 bins.",
    )


STUDY = Study(
    title="Online distillation: four peers or branches",
    full=(
        Setting(
            name="cifar100",
            config="configs/online.py:cifar100,vanilla",
            arms=arms("cifar100"),
            published={arm: {"peer": top1} for arm, top1 in PUBLISHED.items()},
        ),
    ),
    smoke=(Setting(name="digits", config="configs/online.py:digits,vanilla", arms=arms("digits"), epochs=16),),
    smoke_seeds=(0,),
    make_table=make_table,
)

if __name__ == "__main__":
    main(STUDY, __doc__)
