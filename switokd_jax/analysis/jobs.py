"""One training run among many: its command line, and where its output and its result go."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from switokd_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Job:
    """One training run.

    Attributes:
      name: its folder inside the folder of all runs.
      config: the config file.
      flags: the flags of `switokd_jax.main` besides --config and --workdir.
      depends_on: names of the jobs whose checkpoints it reads; it starts after them.
      flops: floating-point operations of its training, or None if they have not been counted.
      kept: a second file for its result, which other machines read as well; None for none.
    """

    name: str
    config: str
    flags: tuple[str, ...] = ()
    depends_on: tuple[str, ...] = ()
    flops: float | None = None
    kept: Path | None = None

    def main_flags(self, folder: Path) -> list[str]:
        """Returns all flags of `switokd_jax.main`; the workdir is FOLDER/NAME."""
        return [f"--config={self.config}", f"--workdir={(folder / self.name).resolve()}", *self.flags]

    def command(self, folder: Path) -> list[str]:
        """Returns the command line that a user would type."""
        return [sys.executable, "-m", "switokd_jax.main", *self.main_flags(folder)]

    def log_path(self, folder: Path) -> Path:
        """Returns the file of its output."""
        return folder / "logs" / f"{self.name}.txt"

    def result_path(self, folder: Path) -> Path:
        """Returns the file of its result, which exists once it has finished."""
        return folder / "results" / f"{self.name}.json"


def take_part(jobs: Sequence[Job], part: int, count: int) -> list[Job]:
    """Returns one of several parts of a grid, for as many machines that share a folder.

    Jobs that depend on each other stay together. The parts take them in turn, so that each has some of every seed.

    Args:
      jobs: of the whole grid; all that a job depends on are among them.
      part: counted from 1.
      count: number of parts.

    >>> grid = [Job("a", "c.py"), Job("b", "c.py"), Job("c", "c.py", depends_on=("a",))]
    >>> [[job.name for job in take_part(grid, part, 2)] for part in (1, 2)]
    [['a', 'c'], ['b']]
    """
    group_of = {job.name: i for i, job in enumerate(jobs)}
    for job in jobs:
        together = {group_of[name] for name in (job.name, *job.depends_on) if name in group_of}
        group_of = {name: min(together) if group in together else group for name, group in group_of.items()}
    groups = [*dict.fromkeys(group_of[job.name] for job in jobs)]
    return [job for job in jobs if groups.index(group_of[job.name]) % count == part - 1]


def parse_part(text: str) -> tuple[int, int]:
    """Parses the value of --part.

    Raises:
      UserError: if it is not 'PART/COUNT'.

    >>> parse_part("2/4")
    (2, 4)
    """
    part, slash, count = text.partition("/")
    if not (slash and part.isdigit() and count.isdigit() and 1 <= int(part) <= int(count)):
        raise UserError(f"--part={text} is not PART/COUNT; give 1/4 to 4/4 for four machines")
    return int(part), int(count)
