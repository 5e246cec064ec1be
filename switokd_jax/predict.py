"""Predicts the classes of image files with the networks of a run:

python -m switokd_jax.predict --workdir=runs/cifar100 cat.png dog.jpg
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from PIL import Image, ImageOps

from switokd_jax import cli
from switokd_jax.analysis import trained_network
from switokd_jax.data.decode import decode, read_file
from switokd_jax.data.transforms import centre_crop
from switokd_jax.train.trained_ensemble import Classifier, read_classifier

MAX_PIXEL = 255  # largest value in an image file


def read_image(path: str | Path, network: Classifier) -> np.ndarray:
    """Reads an image file in the size, channels and pixel range of a network's inputs.

    Runs with config.data.image_size use the same center crop as in their evaluation. For others the image is cropped
    to the aspect ratio of their images and resized.

    Returns:
      [height, width, channels] uint8.

    Raises:
      UserError: naming the file, if it cannot be read as an image.
    """
    height, width, channels = network.model_info.image_shape
    image = decode(read_file(Path(path)), channels, str(path))
    if network.uses_centre_crop:
        image = centre_crop(image, height)
    elif image.size != (width, height):
        image = ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)
    pixels = np.asarray(image, np.float64).reshape(height, width, channels) * network.preprocess.scale / MAX_PIXEL
    return pixels.round().astype(np.uint8)


def predict(networks: Sequence[Classifier], paths: Sequence[str | Path]) -> np.ndarray:
    """Computes class probabilities [networks, images, classes] of image files.

    Raises:
      UserError: naming the first file that cannot be read as an image.
    """
    probabilities = []
    for network in networks:
        images = np.stack([read_image(path, network) for path in paths])
        probabilities.append(np.asarray(jax.nn.softmax(jax.jit(network.logits)(images))))
    return np.stack(probabilities)


def table(
    names: Sequence[str], paths: Sequence[str | Path], classes: Sequence[str], probabilities: np.ndarray, top: int
) -> str:
    """Formats the `top` most likely classes of each image by each network.

    Args:
      names: of the networks.
      paths: of the images.
      classes: names of the classes.
      probabilities: [networks, images, classes].
      top: number of classes to list.

    >>> print(table(["student"], ["a.png"], ["cat", "dog"], np.array([[[0.25, 0.75]]]), top=1))
    a.png
      student       75.00 %  dog
    """
    lines = []
    for i, path in enumerate(paths):
        lines.append(str(path))
        for name, by_image in zip(names, probabilities, strict=True):
            best = np.argsort(-by_image[i], kind="stable")[:top]
            lines += [f"  {name:<12} {100 * by_image[i][k]:6.2f} %  {classes[k]}" for k in best]
    return "\n".join(lines)


def main() -> None:
    """Parses the flags, predicts and prints."""
    parser = cli.make_parser(__doc__)
    parser.add_argument("--workdir", required=True, help="workdir of a run")
    parser.add_argument("--network", nargs="+", default=[], help="names, or ensemble (default: each network)")
    parser.add_argument("--which", default="best", help="checkpoint: best, latest, or a saved step")
    parser.add_argument("--top", type=int, default=3, help="number of classes to print for each image and network")
    parser.add_argument("images", nargs="+", metavar="IMAGE")
    args = parser.parse_args()

    def command() -> str:
        names = args.network or [*trained_network.read_config(Path(args.workdir)).network_of]
        networks = [read_classifier(args.workdir, name, args.which) for name in names]
        probabilities = predict(networks, args.images)
        return table(names, args.images, networks[0].model_info.classes, probabilities, args.top)

    cli.run(command, args.config)


if __name__ == "__main__":
    main()
