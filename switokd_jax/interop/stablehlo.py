"""A trained network as one StableHLO file: uint8 images in, logits out, for any batch size, on CPU, GPU and TPU.

A file consists of, in this order:

    the program as `jax.export` serializes it, so that `jax.export.deserialize` opens the file without this package
    the model info as JSON
    the length of that JSON: 8 bytes, little-endian
    a SHA-256 of everything before it
    `MAGIC`

New releases of JAX promise to read a program for six months. The model info therefore has the day of writing and the
version of JAX, and the command `export` prints until when that is. Keep the run, or its safetensors, for longer.

`read` checks the checksum first, because XLA's own reader ends the process at some kinds of damage. The checksum
detects damage, not malice.
"""

from __future__ import annotations

import dataclasses
import datetime
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
# https://docs.jax.dev/en/latest/export/export.html: programs can be read by releases of the six months that follow.
READABLE_FOR = datetime.timedelta(days=180)
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
_LENGTH = struct.Struct("<Q")
_TAIL = _LENGTH.size + hashlib.sha256().digest_size + len(MAGIC)


@dataclasses.dataclass(frozen=True)
class ModelInfo:
    """Description of a trained network.

    Attributes:
      network: name of the network in its run.
      model: a name of `models.MODELS`.
      classes: class names, in the order of the logits.
      image_shape: (height, width, channels) of its images.
      jax_version: of the JAX that wrote the file; '' in files of version 0.1.
      written: day of writing, YYYY-MM-DD; likewise.
    """

    network: str
    model: str
    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]
    jax_version: str = ""
    written: str = ""

    @property
    def readable_until(self) -> str:
        """Day up to which new releases of JAX promise to read the file, YYYY-MM-DD; '' if `written` is unknown.

        >>> ModelInfo("student", "resnet8", ("cat",), (8, 8, 1), "0.10.2", "2026-11-29").readable_until
        '2027-05-28'
        """
        day = datetime.date.fromisoformat(self.written) + READABLE_FOR if self.written else None
        return day.isoformat() if day else ""


@dataclasses.dataclass(frozen=True, eq=False)
class ExportedModel:
    """A network read from a file.

    Attributes:
      model_info: description of the network.
      logits: function from images [batch, height, width, channels] uint8 to logits [batch, classes] float32.
    """

    model_info: ModelInfo
    logits: Callable[[Any], jax.Array]


def write(path: Path, logits: Callable[[jax.Array], jax.Array], model_info: ModelInfo) -> None:
    """Writes a file that `read` opens.

    Args:
      path: where to write it.
      logits: function as in `ExportedModel`; it is traced for a batch of any size.
      model_info: description of the network.
    """
    (batch,) = export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, *model_info.image_shape), jnp.uint8)
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    model_info = dataclasses.replace(model_info, jax_version=jax.__version__, written=today)
    program = bytes(export.export(jax.jit(logits), platforms=PLATFORMS)(images).serialize())
    info_json = json.dumps(dataclasses.asdict(model_info)).encode()
    atomic_write(path, lambda p: p.write_bytes(pack(program, info_json)))


def pack(program: bytes, info_json: bytes) -> bytes:
    """Returns the content of a file with this program and model info."""
    content = program + info_json + _LENGTH.pack(len(info_json))
    return content + hashlib.sha256(content).digest() + MAGIC


def read(path: str | Path) -> ExportedModel:
    """Reads a file of `write`.

    Raises:
      UserError: naming the file, if it cannot be read, is damaged, or is of another kind.
    """
    path = Path(path).expanduser()
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from None
    program, model_info = unpack(path, content)
    try:
        exported = export.deserialize(bytearray(program))
    except Exception as error:  # flatbuffers and JAX raise exceptions of many types
        raise UserError(
            f"{path} contains no program for this JAX {jax.__version__}{_origin(model_info)} ({one_line(error)}); "
            "export it again"
        ) from None
    input_specs = [(x.shape[1:], x.dtype) for x in exported.in_avals]
    output_specs = [(x.shape[1:], x.dtype) for x in exported.out_avals]
    expected_outputs = [((len(model_info.classes),), jnp.float32)]
    if input_specs != [(model_info.image_shape, jnp.uint8)] or output_specs != expected_outputs:
        raise UserError(f"{path}: the shapes of its program do not match its model info; export it again")
    return ExportedModel(model_info, exported.call)


def _origin(model_info: ModelInfo) -> str:
    """Says which JAX wrote a file and until when others read it; '' if the file does not tell."""
    if not model_info.written:
        return ""
    return (
        f": JAX {model_info.jax_version} wrote it on {model_info.written}, and new releases promise to read it until "
        f"{model_info.readable_until}"
    )


def unpack(path: Path, content: bytes) -> tuple[bytes, ModelInfo]:
    """Splits the content of a file into the program and the model info; inverts `pack`.

    Raises:
      UserError: naming the file, if the content is incomplete or damaged.
    """
    end = len(content) - _TAIL
    if end < 0 or not content.endswith(MAGIC):
        raise UserError(
            f"{path} is not a complete file of `python -m switokd_jax.export --format=stablehlo`; export it again"
        )
    body, digest = content[: end + _LENGTH.size], content[end + _LENGTH.size : -len(MAGIC)]
    (length,) = _LENGTH.unpack(body[end:])
    if hashlib.sha256(body).digest() != digest or length > end:
        raise UserError(f"{path} is damaged: its checksum does not match; copy or export it again")
    try:
        info = json.loads(content[end - length : end])
        model_info = ModelInfo(
            network=str(info["network"]),
            model=str(info["model"]),
            classes=tuple(map(str, info["classes"])),
            image_shape=tuple(map(int, info["image_shape"])),  # type: ignore[arg-type]
            jax_version=str(info.get("jax_version", "")),
            written=datetime.date.fromisoformat(info["written"]).isoformat() if info.get("written") else "",
        )
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: its model info cannot be read ({one_line(error)}); export it again") from None
    return content[: end - length], model_info
