"""Says what is in an image, by the networks of a run:

python -m switokd_jax.predict --workdir=runs/cifar100 cat.png dog.jpg
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from switokd_jax import cli
from switokd_jax.analysis import trained_network
from switokd_jax.data.transforms import centre_crop
from switokd_jax.errors import UserError

BYTE = 255  # the brightest pixel of an image file


def read_image(path: str | Path, network: trained_network.TrainedNetwork) -> np.ndarray:
    """An image file as a network of a run takes it: its size, its channels and its range of pixels.

    Runs with config.data.image_size see the same centre crop as in their evaluation; others the whole image, cut to the
    ratio of theirs and resized.

    Returns:
      [height, width, channels] uint8.

    Raises:
      ConfigError: naming the file, if it cannot be read as an image.
    """
    height, width, channels = network.facts.image_shape
    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened).convert("L" if channels == 1 else "RGB")
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} cannot be read as an image ({error})") from None
    if network.resized:
        image = centre_crop(image, height)
    elif image.size != (width, height):
        image = ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)
    pixels = np.asarray(image, np.float64).reshape(height, width, channels) * network.preprocess.scale / BYTE
    return pixels.round().astype(np.uint8)


def predict(networks: Sequence[trained_network.TrainedNetwork], paths: Sequence[str | Path]) -> np.ndarray:
    """Probabilities [networks, images, classes] of image files.

    Raises:
      ConfigError: naming the first file that cannot be read as an image.
    """
    made = []
    for network in networks:
        images = np.stack([read_image(path, network) for path in paths])
        made.append(np.asarray(jax.nn.softmax(jax.jit(network.logits)(images))))
    return np.stack(made)


def table(names: Sequence[str], paths: Sequence[str | Path], classes: Sequence[str], seen: np.ndarray, top: int) -> str:
    """The likeliest classes of each image by each network."""
    lines = []
    for i, path in enumerate(paths):
        lines.append(str(path))
        for name, of_network in zip(names, seen, strict=True):
            best = np.argsort(-of_network[i], kind="stable")[:top]
            lines += [f"  {name:<12} {100 * of_network[i][k]:6.2f} %  {classes[k]}" for k in best]
    return "\n".join(lines)


def main() -> None:
    """Reads flags and images, prints."""
    parser = cli.make_parser(__doc__)
    parser.add_argument("--workdir", required=True, help="of a run")
    parser.add_argument("--network", nargs="+", default=[], help="names in the run (all)")
    parser.add_argument("--which", default="best", help="best, latest, or a saved step")
    parser.add_argument("--top", type=int, default=3, help="classes to print of each image and network")
    parser.add_argument("images", nargs="+", metavar="IMAGE")
    given = parser.parse_args()

    def command() -> str:
        names = given.network or [*trained_network.read_config(Path(given.workdir)).networks]
        networks = [trained_network.read(given.workdir, name, given.which) for name in names]
        seen = predict(networks, given.images)
        return table(names, given.images, networks[0].facts.classes, seen, given.top)

    cli.run(command, given.config)


if __name__ == "__main__":
    main()
