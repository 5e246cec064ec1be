"""List of the images that a run skipped because they could not be decoded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from absl import logging

from switokd_jax.errors import one_line


class SkippedImages:
    """Images that a process skipped, listed in a file, each once.

    Args:
      path: the file; lines that earlier starts of the run wrote are kept.
    """

    def __init__(self, path: Path):
        self._path = path
        self._known = {*path.read_text(errors="replace").splitlines()} if path.is_file() else set[str]()

    def __len__(self) -> int:
        return len(self._known)

    def add(self, messages: Sequence[str]) -> None:
        """Lists images by their messages. If the file cannot be written, that is a warning."""
        new = [line for line in dict.fromkeys(map(one_line, messages)) if line not in self._known]
        if new and not self._known:
            logging.warning("%s; it is skipped, and listed in %s as all others are", new[0], self._path)
        self._known.update(new)
        try:
            if new:
                with self._path.open("a", encoding="utf-8", errors="backslashreplace") as file:
                    file.writelines(f"{line}\n" for line in new)
        except OSError as error:
            logging.warning("%s cannot be written (%s); training continues", self._path, error.strerror)
