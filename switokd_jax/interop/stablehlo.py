"""A trained network as one file of StableHLO: uint8 images in, logits out, for any batch size, on CPU, GPU and TPU.

The file begins as `jax.export` wrote it, so `jax.export.deserialize` opens it without this package. Behind that stand
the facts as JSON, the length of that JSON (8 bytes, little-endian), a SHA-256 of all before it, and `MAGIC`. The
checksum comes first in reading: XLA's own reader ends the process at some kinds of damage. It tells damage, not malice.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import export

from switokd_jax.errors import UserError, one_line
from switokd_jax.files import atomic_write

MAGIC = b"SwitOKD1"
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
_LENGTH = struct.Struct("<Q")
_TAIL = _LENGTH.size + hashlib.sha256().digest_size + len(MAGIC)


@dataclasses.dataclass(frozen=True)
class ModelInfo:
    """What a file says of its network.

    Attributes:
      network: its name in the run.
      model: a name of `models.MODELS`.
      classes: the names of its logits.
      image_shape: (height, width, channels) of the images that it takes.
    """

    network: str
    model: str
    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]


@dataclasses.dataclass(frozen=True, eq=False)
class ExportedModel:
    """What a file holds.

    Attributes:
      facts: of its network.
      logits: images [batch, height, width, channels] uint8 -> [batch, classes] float32.
    """

    facts: ModelInfo
    logits: Callable[[Any], jax.Array]


def write(path: Path, logits: Callable[[jax.Array], jax.Array], facts: ModelInfo) -> None:
    """Writes a file that `read` opens.

    Args:
      path: of the file.
      logits: as of an `ExportedModel`; traced for a batch of any size.
      facts: of its network.
    """
    (batch,) = export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, *facts.image_shape), jnp.uint8)
    program = bytes(export.export(jax.jit(logits), platforms=PLATFORMS)(images).serialize())
    atomic_write(path, lambda p: p.write_bytes(sealed(program, json.dumps(dataclasses.asdict(facts)).encode())))


def sealed(program: bytes, facts: bytes) -> bytes:
    """The content of a file."""
    content = program + facts + _LENGTH.pack(len(facts))
    return content + hashlib.sha256(content).digest() + MAGIC


def read(path: str | Path) -> ExportedModel:
    """Opens a file of `write`.

    Raises:
      ConfigError: naming the file, if it cannot be read, is damaged, or holds something else.
    """
    path = Path(path).expanduser()
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from None
    program, facts = _opened(path, content)
    try:
        exported = export.deserialize(bytearray(program))
    except Exception as error:  # flatbuffers and JAX raise of all kinds for what is no such program
        raise UserError(f"{path} holds no program of this JAX ({one_line(error)}); export it again") from None
    taken, given = ([(x.shape[1:], x.dtype) for x in avals] for avals in (exported.in_avals, exported.out_avals))
    if taken != [(facts.image_shape, jnp.uint8)] or given != [((len(facts.classes),), jnp.float32)]:
        raise UserError(f"{path}: its program takes or gives something else than its facts say; export it again")
    return ExportedModel(facts, exported.call)


def _opened(path: Path, content: bytes) -> tuple[bytes, ModelInfo]:
    """The program, and the facts behind it."""
    end = len(content) - _TAIL
    if end < 0 or not content.endswith(MAGIC):
        raise UserError(
            f"{path} is no whole file of `python -m switokd_jax.export --format=stablehlo`; export it again"
        )
    body, digest = content[: end + _LENGTH.size], content[end + _LENGTH.size : -len(MAGIC)]
    (length,) = _LENGTH.unpack(body[end:])
    if hashlib.sha256(body).digest() != digest or length > end:
        raise UserError(f"{path} is damaged: its checksum is another; copy or export it again")
    try:
        known = json.loads(content[end - length : end])
        facts = ModelInfo(
            network=str(known["network"]),
            model=str(known["model"]),
            classes=tuple(map(str, known["classes"])),
            image_shape=tuple(map(int, known["image_shape"])),  # type: ignore[arg-type]
        )
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: what it says of its network cannot be read ({one_line(error)})") from None
    return content[: end - length], facts
