"""The decoder of image files: training, evaluation and prediction, in memory or streamed, see the same pixels.

Pixels become 8-bit grey or RGB. 16-bit grey is scaled by 1/257, so that 65535 becomes 255. (Of 16-bit colour, Pillow
keeps the high byte, at most one level away from that.) The orientation in a file's EXIF data is applied. Transparency
is dropped.
"""

from __future__ import annotations

import io
import stat
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from switokd_jax.errors import UserError, one_line

GRAYSCALE_MODES = ("1", "L")  # of Pillow
SIXTEEN_BITS_AS_I = ("PNG", "PPM")  # formats whose 16-bit grey Pillow may open in its 32-bit mode 'I'
BITS_PER_SAMPLE = 258  # tag of TIFF
VERSION = 2  # part of the key of cached pixels: 1 ignored the orientation and clipped 16 bits


class ImageError(UserError):
    """An image that cannot be read or decoded. The message names it."""


def read_file(path: Path) -> bytes:
    """Reads a file's content.

    Raises:
      ImageError: if it cannot be read or is not a regular file: a pipe would hang, a device has no end.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ImageError(f"{path} is no file but a {'folder' if path.is_dir() else 'pipe or device'}; remove it")
        return path.read_bytes()
    except OSError as error:
        raise ImageError(f"{path} cannot be read ({error.strerror}); replace or remove it") from None


def decode(encoded: bytes | np.ndarray, channels: int | None, name: str) -> Image.Image:
    """Decodes an image, upright.

    Args:
      encoded: content of an image file, or pixels [height, width, 1 or 3] uint8.
      channels: 1 for grey, 3 for RGB; None for grey if the file is grayscale, else RGB.
      name: names the image in messages.

    Returns:
      The image in Pillow's mode 'L' or 'RGB'.

    Raises:
      ImageError: if the image is damaged, of an unknown format, or of a bit depth that would lose its meaning.
    """
    try:
        image = _open(encoded)
        if channels is None:
            channels = 1 if image.mode in GRAYSCALE_MODES else 3
        mode = "L" if channels == 1 else "RGB"
        return image if image.mode == mode else image.convert(mode)
    except ImageError as error:
        raise ImageError(f"{name} cannot be decoded ({error}); convert it to 8 bits or remove it") from None
    # Pillow's plugins parse bytes that anybody may have written. A damaged file raises whatever the parser stumbles
    # over: SyntaxError, struct.error, ValueError, KeyError, DecompressionBombError, MemoryError.
    except Exception as error:
        raise ImageError(f"{name} cannot be decoded ({_reason(encoded, error)}); replace or remove it") from None


def to_pixels(image: Image.Image) -> np.ndarray:
    """Returns the pixels [height, width, 1 or 3] uint8 of a decoded image."""
    pixels = np.asarray(image, np.uint8)
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _open(encoded: bytes | np.ndarray) -> Image.Image:
    if isinstance(encoded, np.ndarray):
        return Image.fromarray(encoded[..., 0] if encoded.shape[-1] == 1 else encoded)
    image = Image.open(io.BytesIO(encoded))
    bits = getattr(image, "tag_v2", {}).get(BITS_PER_SAMPLE, (0,))
    image.load()
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode == "F" or (image.mode == "I" and image.format not in SIXTEEN_BITS_AS_I):
        raise ImageError(f"it has 32-bit {'float' if image.mode == 'F' else 'integer'} pixels")
    if 8 < max(bits) < 16:
        raise ImageError(f"it has {max(bits)}-bit pixels")
    if image.mode == "I" or image.mode.startswith("I;16"):
        pixels = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((pixels + 128) // 257).astype(np.uint8))
    return image


def _reason(encoded: bytes | np.ndarray, error: Exception) -> str:
    if isinstance(encoded, bytes) and not encoded:
        return "the file is empty"
    if isinstance(error, UnidentifiedImageError):  # its text shows the address of a buffer
        return "not an image of a known format"
    return one_line(error)
