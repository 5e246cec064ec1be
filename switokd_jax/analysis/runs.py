"""Finished runs, read from their workdirs, and groups of runs that differ in their seed only."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from switokd_jax.errors import UserError
from switokd_jax.methods import METHODS
from switokd_jax.workdir.metric_writers import MetricsRow, read_metrics
from switokd_jax.workdir.resume import OVERRIDABLE_ON_RESUME, flatten

MAX_LABEL_LENGTH = 40  # characters


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
        return read_metrics(self.folder / "metrics.jsonl")

    def rows(self, split: str) -> list[MetricsRow]:
        """Returns the rows of one split: 'train', 'validation', 'test' or 'skipped'."""
        return [row for row in self.all_rows if row["split"] == split]

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
        """What makes it this experiment: the config by dotted names, without the seed, what may change between two
        starts, the blocks of other methods, and the files that networks begin with."""
        others = tuple(f"{name}." for name in METHODS if name != self.config["method"])
        free = ("seed", *OVERRIDABLE_ON_RESUME)
        return {
            name: value
            for name, value in flatten(self.config).items()
            if not name.startswith(others)
            and not name.endswith((".init_from", ".anchors"))
            and not any(name == each or name.startswith(f"{each}.") for each in free)
        }


def read_run(folder: str | Path) -> Run:
    """Reads one finished run.

    Raises:
      UserError: if the folder is no workdir, or the run in it has not finished.
    """
    folder = Path(folder)
    content = {}
    for name in ("config.json", "summary.json"):
        try:
            content[name] = json.loads((folder / name).read_text())
        except OSError as error:
            problem = "no run" if name == "config.json" else "an unfinished run; repeat its command to resume it"
            raise UserError(f"{folder} holds {problem} ({name}: {error.strerror})") from None
        except ValueError:
            raise UserError(f"{folder / name} is not JSON; name a run's folder") from None
    return Run(folder, content["config.json"], content["summary.json"])


def find_runs(folders: Sequence[str | Path]) -> list[Run]:
    """Loads runs. A folder that is not itself a workdir is searched recursively for finished runs.

    Raises:
      UserError: naming a folder in which there is none.
    """
    runs = []
    for folder in map(Path, folders):
        is_workdir = (folder / "config.json").exists()
        workdirs = [] if is_workdir else sorted(path.parent for path in folder.rglob("summary.json"))
        runs += [read_run(workdir) for workdir in workdirs or [folder]]
    return runs


def group_by_settings(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Runs of the same settings, which differ in their seeds, under a label that says what sets them apart: the method
    where that is enough, otherwise the settings that are not alike, or, were that too long, the folder's name."""
    alike: list[list[Run]] = []
    for run in runs:
        place = next((group for group in alike if group[0].settings == run.settings), None)
        if place is None:
            alike.append([run])
        else:
            place.append(run)
    labels = [_label(group[0], [other[0] for other in alike]) for group in alike]
    if len({*labels}) < len(labels):
        labels = [str(group[0].folder) for group in alike]
    return dict(zip(labels, alike, strict=True))


def differences(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """The settings that are not alike in all runs, by dotted name: a value for each run, None where it has none."""
    names = sorted({name for run in runs for name in run.settings})
    values = {name: [run.settings.get(name) for run in runs] for name in names}
    return {name: each for name, each in values.items() if any(value != each[0] for value in each)}


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
