"""Images per second of the streaming pipeline beside a PyTorch DataLoader: same files, same crops, same workers.

python experiments/speed/stream.py --workers=2 --rounds=5

Makes JPEG files of ImageNet's usual size (500x375, about 110 kB) in a temporary folder, reads them through
`data.loader.make_loader` as a run does (folder,
random resized crop to 224 pixels, mirror image, batches of 64, uint8), and
through a `torch.utils.data.DataLoader` over the same files with the same boxes from the same draws, in two forms:
uint8 batches, and the customary float32 tensors normalised on the workers. The rounds take turns; each reads
`--images` images after the first batches, which start the workers. Prints a Markdown table of medians.
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
from switokd_jax.data import dataset, loader, sampling
from switokd_jax.data.image_records import random_box

SIZE, BATCH, WARM = 224, 64, 6
MEAN, STD = (torch.tensor(x).view(3, 1, 1) for x in (dataset.IMAGENET.mean, dataset.IMAGENET.std))


def write_images(folder: Path, count: int) -> None:
    """Noise of several sizes, as photographs have it, in JPEG of quality 90."""
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


def ours(spec: config.DataConfig) -> Callable[[], Iterator[int]]:
    """Batch sizes, as the batches of a run come."""
    data = dataset.load_dataset(spec, 0)

    def read() -> Iterator[int]:
        make_loader = loader.make_loader(data.train, data.image_spec, spec, 0, BATCH, sampling.ProcessShard())
        reading = make_loader.train_batches(0, 10**6)
        try:
            for _, examples in reading:
                yield len(examples.images)
        finally:
            reading.close()

    return read


class Files(torch.utils.data.Dataset[Any]):
    """The same crops as ours of the same files; an index counts on over the epochs."""

    def __init__(self, paths: list[Path], labels: list[int], *, normalised: bool) -> None:
        self.paths, self.labels, self.normalised = paths, labels, normalised

    def __len__(self) -> int:
        return 10**6 * BATCH

    def __getitem__(self, place: int) -> tuple[torch.Tensor, int]:
        epoch, index = divmod(place, len(self.paths))
        rng = np.random.default_rng((0, epoch, index))
        with Image.open(self.paths[index]) as image:
            colour = image.convert("RGB")
        crop = colour.crop(random_box(colour.width, colour.height, rng))
        crop = crop.resize((SIZE, SIZE), Image.Resampling.BILINEAR)
        if rng.random() < 0.5:
            crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels = torch.from_numpy(np.array(crop))
        if self.normalised:  # what ToTensor and Normalize do
            return (pixels.permute(2, 0, 1).contiguous().float().div_(255) - MEAN) / STD, self.labels[index]
        return pixels, self.labels[index]


def torch_loader(spec: config.DataConfig, *, normalised: bool) -> Callable[[], Iterator[int]]:
    """Batch sizes of a DataLoader; it reads in order, which costs the same as an order drawn before."""
    paths = sorted((Path(spec.dir) / "train").glob("*/*.jpg"))
    files = Files(paths, [int(path.parent.name) for path in paths], normalised=normalised)

    def read() -> Iterator[int]:
        for images, _ in torch.utils.data.DataLoader(files, BATCH, num_workers=spec.workers):
            yield len(images)

    return read


def rate(read: Callable[[], Iterator[int]], images: int) -> float:
    """Images per second after the first batches."""
    coming = read()
    for _ in range(WARM):
        next(coming)
    begin, seen = time.perf_counter(), 0
    while seen < images:
        seen += next(coming)
    taken = time.perf_counter() - begin
    coming.close()  # type: ignore[attr-defined]
    return seen / taken


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=2048, help="read in each round")
    parser.add_argument("--files", type=int, default=1024)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        write_images(Path(name), options.files)
        size = statistics.mean(path.stat().st_size for path in Path(name).glob("train/*/*.jpg"))
        spec = config.DataConfig(
            name="folder", dir=name, pipeline="stream", image_size=SIZE, workers=options.workers, augment=True
        )
        ways = {
            "switokd_jax, uint8": ours(spec),
            "DataLoader, uint8": torch_loader(spec, normalised=False),
            "DataLoader, float32 normalised": torch_loader(spec, normalised=True),
        }
        rates: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(options.rounds):
            for way, read in ways.items():
                rates[way].append(rate(read, options.images))
    first = statistics.median(rates["switokd_jax, uint8"])
    print(f"{options.files} files of {size / 1000:.0f} kB, {options.workers} workers, {options.rounds} rounds\n")
    print("| pipeline | images/s, median | lowest to highest | ours / this |\n|---|---|---|---|")
    for way, seen in rates.items():
        middle = statistics.median(seen)
        print(f"| {way} | {middle:.0f} | {min(seen):.0f} to {max(seen):.0f} | {first / middle:.2f} |")


if __name__ == "__main__":
    main()
