"""Finished runs, read from their workdirs, and groups of runs that differ in their seed only."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from switokd_jax.errors import UserError
from switokd_jax.files import read_json
from switokd_jax.methods import METHODS
from switokd_jax.workdir.layout import Workdir
from switokd_jax.workdir.metric_writers import MetricsRow, read_metrics
from switokd_jax.workdir.resume import flatten, is_overridable, settings

MAX_LABEL_LENGTH = 40  # characters
# Fields that a run's files must have, and their types.
CONFIG_FIELDS: dict[str, type] = {"method": str, "seed": int, "data": dict, "networks": dict}
SUMMARY_FIELDS: dict[str, type] = {
    **{"steps": float, "epochs": float, "networks": dict, "switch": dict, "best_selected_on": str},
}
# Early runs lack these.
OPTIONAL_FIELDS: dict[str, type] = {"examples": float, "training_flops": float, "record": dict, "reported_on": str}
NETWORK_FIELDS: dict[str, type] = {
    **{"model": str, "parameters": int, "final_top1": float, "best_top1": float, "updates": int},
}


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """One finished run; `read_run` loads it.

    Attributes:
      folder: the workdir.
      config: content of config.json.
      summary: content of summary.json.
    """

    folder: Path
    config: Mapping[str, Any]
    summary: Mapping[str, Any]

    @functools.cached_property
    def all_rows(self) -> list[MetricsRow]:
        """All rows of metrics.jsonl, in their order."""
        return read_metrics(Workdir(self.folder).metrics)

    def rows(self, split: str) -> list[MetricsRow]:
        """Returns the rows of one split: 'train', 'validation', 'test' or 'skipped'."""
        return [row for row in self.all_rows if row.get("split") == split]

    @property
    def reported_split(self) -> str:
        """'test', or 'validation' if the data set has no test split."""
        return str(self.summary.get("reported_on", "test"))

    @property
    def networks(self) -> list[str]:
        """Names of the networks, in the topology's order."""
        return [*self.summary["networks"]]

    @property
    def pairs(self) -> list[str]:
        """Names of the switched pairs, 'teacher->student'; empty where the method does not switch."""
        return [*self.summary["switch"]]

    @functools.cached_property
    def settings(self) -> dict[str, Any]:
        """Settings that define the experiment, by dotted name, with the defaults of fields that the config lacks.

        Left out are the seed, fields that may change when a run resumes, the blocks of other methods, and the files
        that networks start from.
        """
        try:
            values = settings(self.config)
        except UserError:  # a method that only the user's config file registers, or a field of another version
            others = tuple(f"{name}." for name in METHODS if name != self.config.get("method"))
            values = {name: value for name, value in flatten(self.config).items() if not name.startswith(others)}
        return {
            name: value
            for name, value in values.items()
            if name != "seed" and not name.endswith((".init_from", ".anchors")) and not is_overridable(name)
        }


def read_run(folder: str | Path) -> Run:
    """Reads one finished run.

    Raises:
      UserError: if the folder is no workdir, or the run in it has not finished.
    """
    folder = Path(folder)
    paths = Workdir(folder)
    for path, problem in (
        (paths.config, "no run"),
        (paths.summary, "an unfinished run; repeat its command to resume it"),
    ):
        if not path.exists():
            raise UserError(f"{folder} holds {problem} ({path.name}: No such file or directory)")
    return Run(folder, read_json(paths.config), read_json(paths.summary))


def check_run(run: Run) -> Run:
    """Checks that the files of a run have the fields on which figures and reports rely, and returns the run.

    Raises:
      UserError: naming the file and the field that is missing or of another type.
    """
    paths = Workdir(run.folder)
    _check_fields(paths.config, run.config, CONFIG_FIELDS)
    _check_fields(paths.config, run.config["data"], {"name": str}, "data")
    optional = {field: kind for field, kind in OPTIONAL_FIELDS.items() if field in run.summary}
    _check_fields(paths.summary, run.summary, {**SUMMARY_FIELDS, **optional})
    for name, network in run.summary["networks"].items():
        _check_fields(paths.summary, network, NETWORK_FIELDS, f"networks.{name}")
    for pair, switch in run.summary["switch"].items():
        _check_fields(paths.summary, switch, {"expert_fraction": float}, f"switch.{pair}")
    return run


def _check_fields(path: Path, values: Any, types: Mapping[str, type], where: str = "") -> None:
    """Checks the fields of a JSON file that others rely on: somebody may have edited it.

    Raises:
      UserError: naming the field that is missing or of another type.
    """
    for field, kind in types.items():
        value = values.get(field) if isinstance(values, Mapping) else None
        is_right = is_number(value) if kind is float else isinstance(value, kind)
        if not is_right:
            name = f"{where}.{field}" if where else field
            raise UserError(f"{path}: {name} is {value!r}; repeat the run's command, which writes the file again")


def is_number(value: Any) -> bool:
    """Returns whether a JSON value is a finite number; true and false count as 1 and 0."""
    return isinstance(value, int | float) and math.isfinite(value)


def columns(rows: Sequence[MetricsRow], *keys: str) -> list[np.ndarray]:
    """Returns some columns of the rows, [rows] float64 each, without the rows in which one of them is no number.

    >>> step, loss = columns([{"step": 1, "loss": None}, {"step": 2, "loss": 0.5}], "step", "loss")
    >>> step, loss
    (array([2.]), array([0.5]))
    """
    complete = [row for row in rows if all(is_number(row.get(key)) for key in keys)]
    return [np.asarray([row[key] for row in complete], float) for key in keys]


def find_runs(folders: Sequence[str | Path]) -> list[Run]:
    """Loads runs. A folder that is not itself a workdir is searched recursively for finished runs.

    Raises:
      UserError: naming a folder in which there is none.
    """
    runs = []
    for folder in map(Path, folders):
        paths = Workdir(folder)
        workdirs = [] if paths.config.exists() else sorted(path.parent for path in folder.rglob(paths.summary.name))
        runs += [read_run(workdir) for workdir in workdirs or [folder]]
    return runs


def group_by_settings(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Groups runs of the same settings, which differ in their seeds, by a label that tells the groups apart.

    The label is the method where that is enough, otherwise the method and the settings that differ, or the folder's
    name where that would be too long.
    """
    groups: list[list[Run]] = []
    for run in runs:
        group = next((group for group in groups if group[0].settings == run.settings), None)
        if group is None:
            groups.append([run])
        else:
            group.append(run)
    labels = [_label(group[0], [other[0] for other in groups]) for group in groups]
    if len({*labels}) < len(labels):
        labels = [str(group[0].folder) for group in groups]
    return dict(zip(labels, groups, strict=True))


def differences(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """Returns the settings that differ between runs, by dotted name: a value for each run, None where it has none."""
    names = sorted({name for run in runs for name in run.settings})
    by_name = {name: [run.settings.get(name) for run in runs] for name in names}
    return {name: values for name, values in by_name.items() if any(value != values[0] for value in values)}


def _label(run: Run, firsts: Sequence[Run]) -> str:
    method = str(run.config["method"])
    if [first.config["method"] for first in firsts].count(method) == 1:
        return method
    differing = differences([first for first in firsts if first.config["method"] == method])
    distinguishing = [
        name for name, values in differing.items() if len({str(value) for value in values}) == len(values)
    ]
    # One setting that has another value in each group is enough; the method's own settings come first.
    names = sorted(distinguishing, key=lambda name: not name.startswith(f"{method}."))[:1] or [*differing]
    label = ", ".join([method, *(f"{name.split('.')[-1]}={run.settings.get(name)}" for name in names)])
    return label if len(label) <= MAX_LABEL_LENGTH else run.folder.name
