"""Measures the streaming pipeline and a PyTorch DataLoader in images per second: same files, crops and workers.

python experiments/speed/stream.py --workers=2 --rounds=5

Makes JPEG files of ImageNet's usual size (500x375, about 110 kB) in a temporary folder. Reads them through
`data.loader.make_loader` as a run does (folder, random resized crop to 224 pixels, flip, batches of 64, uint8), and
through a `torch.utils.data.DataLoader` over the same files with the same boxes from the same draws, in two variants:
uint8 batches, and the customary float32 tensors normalized on the workers. The rounds alternate between the
pipelines; each reads `--images` images after the first batches, which start the workers. Prints a Markdown table of
medians.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from switokd_jax import config
from switokd_jax.data import dataset, loader, normalization, sampling
from switokd_jax.data.transforms import random_box

SIZE, BATCH, WARM_UP_BATCHES = 224, 64, 6
MEAN, STD = (torch.tensor(x).view(3, 1, 1) for x in (normalization.IMAGENET.mean, normalization.IMAGENET.std))


def write_images(folder: Path, count: int) -> None:
    """Writes noise on several scales, as photographs have it, in JPEG of quality 90."""
    rng = np.random.default_rng(0)
    for number in range(count):
        pixels = np.zeros((375, 500, 3), np.float32)
        for scale, strength in ((4, 60), (16, 40), (64, 20), (375, 14)):
            noise = rng.normal(size=(scale, scale * 4 // 3, 3)) * strength
            for channel in range(3):
                coarse = Image.fromarray(noise[..., channel].astype(np.float32))
                pixels[..., channel] += np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC))
        image = Image.fromarray(np.clip(pixels + 120, 0, 255).astype(np.uint8))
        for split in ("train", "test") if number < 2 else ("train",):
            path = folder / split / str(number % 2) / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path, quality=90)


def our_loader(spec: config.DataConfig) -> Callable[[], Iterator[int]]:
    """Makes a function that reads training batches as a run does and yields their sizes."""
    data = dataset.load_dataset(spec, 0)

    def read() -> Iterator[int]:
        train = loader.make_loader(data.train, data.image_spec, spec, 0, BATCH, sampling.ProcessShard())
        batches = train.train_batches(0, 10**6)
        try:
            for _, batch in batches:
                yield len(batch.images)
        finally:
            batches.close()

    return read


class CroppedFiles(torch.utils.data.Dataset[Any]):
    """Crops of the same files as ours; indices beyond the number of files belong to later epochs."""

    def __init__(self, paths: list[Path], labels: list[int], *, normalized: bool) -> None:
        self.paths, self.labels, self.normalized = paths, labels, normalized

    def __len__(self) -> int:
        return 10**6 * BATCH

    def __getitem__(self, position: int) -> tuple[torch.Tensor, int]:
        epoch, index = divmod(position, len(self.paths))
        rng = np.random.default_rng((0, epoch, index))
        with Image.open(self.paths[index]) as image:
            rgb = image.convert("RGB")
        crop = rgb.crop(random_box(rgb.width, rgb.height, rng))
        crop = crop.resize((SIZE, SIZE), Image.Resampling.BILINEAR)
        if rng.random() < 0.5:
            crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels = torch.from_numpy(np.array(crop))
        if self.normalized:  # as torchvision's ToTensor and Normalize do
            return (pixels.permute(2, 0, 1).contiguous().float().div_(255) - MEAN) / STD, self.labels[index]
        return pixels, self.labels[index]


def torch_loader(spec: config.DataConfig, *, normalized: bool) -> Callable[[], Iterator[int]]:
    """Makes a function that reads batches of a DataLoader, in the order of the files, and yields their sizes."""
    paths = sorted((Path(spec.dir) / "train").glob("*/*.jpg"))
    files = CroppedFiles(paths, [int(path.parent.name) for path in paths], normalized=normalized)

    def read() -> Iterator[int]:
        for images, _ in torch.utils.data.DataLoader(files, BATCH, num_workers=spec.workers):
            yield len(images)

    return read


def images_per_second(read: Callable[[], Iterator[int]], num_images: int) -> float:
    """Times the reading of at least so many images, after the first batches."""
    batch_sizes = read()
    for _ in range(WARM_UP_BATCHES):
        next(batch_sizes)
    begin, count = time.perf_counter(), 0
    while count < num_images:
        count += next(batch_sizes)
    seconds = time.perf_counter() - begin
    batch_sizes.close()  # type: ignore[attr-defined]
    return count / seconds


def main() -> None:
    """Measures all pipelines and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=2048, help="read in each round")
    parser.add_argument("--files", type=int, default=1024)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder), options.files)
        mean_bytes = statistics.mean(path.stat().st_size for path in Path(folder).glob("train/*/*.jpg"))
        spec = config.DataConfig(
            name="folder", dir=folder, pipeline="stream", image_size=SIZE, workers=options.workers, augment=True
        )
        pipelines = {
            "switokd_jax, uint8": our_loader(spec),
            "DataLoader, uint8": torch_loader(spec, normalized=False),
            "DataLoader, float32 normalized": torch_loader(spec, normalized=True),
        }
        rates: dict[str, list[float]] = {name: [] for name in pipelines}
        for _ in range(options.rounds):
            for name, read in pipelines.items():
                rates[name].append(images_per_second(read, options.images))
    our_median = statistics.median(rates["switokd_jax, uint8"])
    print(f"{options.files} files of {mean_bytes / 1000:.0f} kB, {options.workers} workers, {options.rounds} rounds\n")
    print("| pipeline | images/s, median | lowest to highest | ours / this |\n|---|---|---|---|")
    for name, values in rates.items():
        median = statistics.median(values)
        print(f"| {name} | {median:.0f} | {min(values):.0f} to {max(values):.0f} | {our_median / median:.2f} |")


if __name__ == "__main__":
    main()
