"""Layout of a workdir: the names of its files and folders."""

from __future__ import annotations

import dataclasses
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Workdir:
    """Paths of one run's files. Does not touch the file system.

    Attributes:
      root: the folder itself; '~' at its beginning is the home folder, as in a shell.

    >>> Workdir(Path("runs/digits")).best_checkpoints("student").as_posix()
    'runs/digits/checkpoints/best/student'
    """

    root: Path

    def __post_init__(self) -> None:
        if self.root.parts[:1] and self.root.parts[0].startswith("~"):
            object.__setattr__(self, "root", self.root.expanduser())

    @property
    def config(self) -> Path:
        """Config of the run (JSON)."""
        return self.root / "config.json"

    @property
    def metrics(self) -> Path:
        """Metrics of all steps and evaluations (one JSON object per line)."""
        return self.root / "metrics.jsonl"

    @property
    def summary(self) -> Path:
        """Results of a finished run (JSON)."""
        return self.root / "summary.json"

    @property
    def record(self) -> Path:
        """Provenance of every start of the run (JSON)."""
        return self.root / "record.json"

    @property
    def lock(self) -> Path:
        """Lock of the training that runs, and who holds it (JSON)."""
        return self.root / "lock.json"

    @property
    def checkpoints(self) -> Path:
        """All checkpoints."""
        return self.root / "checkpoints"

    @property
    def latest_checkpoints(self) -> Path:
        """Train states, a folder per step."""
        return self.checkpoints / "latest"

    def best_checkpoints(self, network: str) -> Path:
        """Variables of one network at its best evaluations, a folder per step."""
        return self.checkpoints / "best" / network

    def skipped_images(self, process: int) -> Path:
        """Images that could not be decoded and were skipped by a process, one per line."""
        return self.root / ("skipped_images.txt" if process == 0 else f"skipped_images_{process}.txt")

    @property
    def figures(self) -> Path:
        """Figures of the run."""
        return self.root / "figures"

    @property
    def profile(self) -> Path:
        """Profiler trace of the first steps."""
        return self.root / "profile"

    @property
    def exports(self) -> Path:
        """Exported networks."""
        return self.root / "exports"

    @property
    def wandb(self) -> Path:
        """Files of Weights & Biases."""
        return self.root / "wandb"
