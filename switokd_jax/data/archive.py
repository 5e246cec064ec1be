"""Archives of data sets, for builders that prepare them."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any


def find_archive(dl_manager: Any, url: str) -> Path:
    """Returns an archive from TFDS's manual folder, or else downloads it.

    Args:
      dl_manager: TFDS's download manager.
      url: where the archive is published; in the manual folder it has the last part of this as its name.
    """
    name = PurePosixPath(url).name
    try:
        manual = Path(dl_manager.manual_dir) / name
    except AssertionError:  # raised by TFDS if the folder is missing or empty
        manual = Path(name)
    return manual if manual.is_file() else Path(dl_manager.download(url))
