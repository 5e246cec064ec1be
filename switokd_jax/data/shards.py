"""The files of a prepared split, so that a message can name the one that cannot be read."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from switokd_jax.errors import UserError, one_line


@dataclasses.dataclass(frozen=True)
class Shards:
    """Attributes:

    paths: of the files, in order.
    lengths: the examples in each.
    command: what prepares them again.
    """

    paths: tuple[str, ...]
    lengths: tuple[int, ...]
    command: str

    def check(self) -> None:
        """Opens each file.

        Raises:
          ConfigError: naming the first that is not there or may not be read.
        """
        for path in self.paths:
            try:
                Path(path).open("rb").close()
            except OSError as error:
                self._refuse(path, error.strerror)

    @contextlib.contextmanager
    def reading(self, place: int) -> Iterator[None]:
        """Reads the example of this place in the split.

        Raises:
          ConfigError: naming its file, if that fails.
        """
        try:
            yield
        except (RuntimeError, OSError, ValueError, IndexError) as error:  # what array_record and its decoders raise
            self._refuse(self.of(place), error)

    def of(self, place: int) -> str:
        """The file of an example."""
        for path, length in zip(self.paths, self.lengths, strict=True):
            if place < length:
                return path
            place -= length
        return self.paths[-1]

    def _refuse(self, path: str, reason: object) -> NoReturn:
        raise UserError(
            f"data shard {path} cannot be read ({one_line(reason)}); copy it again, or remove {Path(path).parent} and "
            f"run: {self.command}"
        )


def shards_of(split: Any, command: str) -> Shards:
    """Of a TFDS `SplitInfo`."""
    return Shards(tuple(map(str, split.filepaths)), tuple(split.shard_lengths), command)
