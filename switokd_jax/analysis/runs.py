"""Runs that have ended, read from their workdirs, and those of them that are seeds of the same experiment."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from switokd_jax.errors import UserError
from switokd_jax.methods import METHODS
from switokd_jax.workdir.layout import Workdir
from switokd_jax.workdir.metric_writers import MetricsRow, read_metrics
from switokd_jax.workdir.resume import flatten, is_overridable, settings

LONGEST = 40  # characters of a label


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """Made by `read`.

    Attributes:
      folder: the workdir.
      config: the content of its config.json.
      summary: of its summary.json.
    """

    folder: Path
    config: Mapping[str, Any]
    summary: Mapping[str, Any]

    @functools.cached_property
    def lines(self) -> list[MetricsRow]:
        """The lines of its metrics.jsonl."""
        return read_metrics(Workdir(self.folder).metrics)

    def of_split(self, split: str) -> list[MetricsRow]:
        """Those of 'train', 'validation' or 'test'."""
        return [line for line in self.lines if line["split"] == split]

    @property
    def networks(self) -> list[str]:
        """Names, in the topology's order."""
        return [*self.summary["networks"]]

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


def read(folder: str | Path) -> Run:
    """Reads a run.

    Raises:
      ConfigError: if the folder holds none, or one that has not ended.
    """
    where = Path(folder)
    paths = Workdir(where)
    values = []
    for path in (paths.config, paths.summary):
        try:
            values.append(json.loads(path.read_text()))
        except OSError as error:
            what = "no run" if path == paths.config else "a run that has not ended; start its command again"
            raise UserError(f"{where} holds {what} ({path.name}: {error.strerror})") from None
        except ValueError:
            raise UserError(f"{path} is not JSON; name a run's folder") from None
    config, summary = values
    return Run(where, config, summary)


def find_runs(folders: Sequence[str | Path]) -> list[Run]:
    """Reads runs; a folder without one stands for all runs that have ended in the folders inside it.

    Raises:
      ConfigError: naming a folder in which there is none.
    """
    found = []
    for folder in map(Path, folders):
        paths = Workdir(folder)
        inside = [] if paths.config.exists() else sorted(p.parent for p in folder.rglob(paths.summary.name))
        found += [read(each) for each in inside or [folder]]
    return found


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
    apart = differences([first for first in firsts if first.config["method"] == method])
    enough = [name for name, values in apart.items() if len({str(value) for value in values}) == len(values)]
    # One setting is enough where each has a value of its own; of several the method's own.
    chosen = sorted(enough, key=lambda name: not name.startswith(f"{method}."))[:1] or [*apart]
    label = ", ".join([method, *(f"{name.split('.')[-1]}={run.settings.get(name)}" for name in chosen)])
    return label if len(label) <= LONGEST else run.folder.name
