"""A split as steps read it, through whichever pipeline: what lies on the devices, and what is sent for each batch."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

from switokd_jax.config import Data
from switokd_jax.data import resident, stream
from switokd_jax.data.dataset import Split
from switokd_jax.data.image_records import Encoded, Form
from switokd_jax.data.resident import Resident
from switokd_jax.data.sampling import Reading, Share


@dataclasses.dataclass(frozen=True, eq=False)
class Feed:
    """Made by `feed`.

    Attributes:
      data: what is to be placed on the devices; None for a stream.
      size: number of examples.
      training: (first global step, total steps) to the training batches in between.
      scoring: the batches of an evaluation.
    """

    data: Resident | None
    size: int
    training: Callable[[int, int], Reading]
    scoring: Callable[[], Reading]


def feed(split: Split | Encoded, form: Form, spec: Data, seed: int, batch_size: int, share: Share) -> Feed:
    """The feed of a split.

    Args:
      split: of `sources.load`.
      form: what an encoded image becomes.
      spec: the config's block.
      seed: of the order and the crops.
      batch_size: of the global batch.
      share: the part of this process.
    """
    if isinstance(split, Split):
        return Feed(
            Resident(split.images, split.labels),
            len(split),
            functools.partial(resident.training, len(split), seed, batch_size, share),
            functools.partial(resident.scoring, len(split), batch_size, share),
        )

    def training(first: int, total: int) -> Reading:
        source = stream.Training(split, form, spec.augment and form.resized, seed, batch_size, share, total)
        return stream.batches_of(source, spec.workers, first)

    def scoring() -> Reading:
        return stream.batches_of(stream.Scoring(split, form, batch_size, share), spec.workers)

    return Feed(None, len(split), training, scoring)
