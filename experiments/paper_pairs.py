"""Trains one real step of every pair of both papers, with its own config, on random images.

python experiments/paper_pairs.py                  # all settings of docs/papers.md: about ten minutes on two cores
python experiments/paper_pairs.py resnet32x4       # those whose name or config contains a word

Each run goes the whole way: networks, step, evaluation of all images, checkpoint, summary. Exit status 1 if one fails.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1])]

import numpy as np

from experiments.grids import DATA_SIZES, DataSize, Setting, load
from experiments.papers_page import SECTIONS
from switokd_jax.data.dataset import SOURCES, SourceData, Split, in_memory
from switokd_jax.train import train_and_evaluate

BATCH = 8


def random_images(size: DataSize) -> SourceData:
    """As many random images as one batch has for training, and as many for testing."""
    rng = np.random.default_rng(0)

    def split() -> Split:
        images = rng.integers(0, 256, (BATCH, *size.shape), dtype=np.uint8)
        return Split(images, (np.arange(BATCH) % size.classes).astype(np.int32))

    return in_memory(split(), split(), [str(i) for i in range(size.classes)])


def train_step(setting: Setting) -> dict[str, int]:
    """Trains a setting for one step; returns the updates of each network."""
    config = load(setting.config, setting.flags)
    SOURCES[config.data.name] = lambda spec: random_images(DATA_SIZES[spec.name])
    config.data.pipeline, config.data.image_size, config.data.dir = "resident", 0, ""
    config.batch_size, config.steps, config.log.tensorboard, config.log.progress = BATCH, 1, False, False
    with tempfile.TemporaryDirectory() as folder:
        summary = train_and_evaluate(config, Path(folder) / "run")
    return {name: network["updates"] for name, network in summary["networks"].items()}


def main() -> None:
    """Trains all settings, or those that the arguments name."""
    settings = {
        f"{section.script} {setting.name}": setting
        for section in SECTIONS
        for setting in section.study.full
        if not section.settings or setting.name in section.settings
    }
    words, failed = sys.argv[1:], 0
    for name, setting in settings.items():
        if words and not any(word in f"{name} {setting.config}" for word in words):
            continue
        begin = time.monotonic()
        try:
            result = ", ".join(f"{network}: {count}" for network, count in train_step(setting).items())
        except Exception as error:  # the others have their turn
            result, failed = f"FAILED: {error!r}", failed + 1
        print(f"{name:55} {time.monotonic() - begin:4.0f} s  updates {result}", flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
