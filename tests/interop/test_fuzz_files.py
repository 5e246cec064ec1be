"""Thousands of damaged files: each is read or refused in one line, quickly and without using much memory."""

from __future__ import annotations

import dataclasses
import io
import json
import random
import resource
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save

from switokd_jax.errors import UserError
from switokd_jax.interop import pytorch, stablehlo

CASES = 3_000
MAX_SECONDS = 10.0  # for one file of 2 kB: more is a hang, not a busy machine
MAX_MEMORY = 512 * 2**20  # bytes
EXTREMES = (0, 1, 7, 2**15, 2**31 - 1, 2**32, 2**63 - 1, 2**64 - 1)
TENSORS: dict[str, np.ndarray] = {
    "conv.weight": np.arange(108, dtype=np.float32).reshape(4, 3, 3, 3),
    "bn.running_mean": np.zeros(4, np.float32),
    "bn.num_batches_tracked": np.array(3, np.int64),
}

# Returns damaged content.
Damage = Callable[[bytes, random.Random], bytes]


def flip(content: bytes, chance: random.Random) -> bytes:
    """Replaces a few bytes."""
    damaged = bytearray(content)
    for _ in range(chance.randint(1, 8)):
        damaged[chance.randrange(len(damaged))] = chance.randrange(256)
    return bytes(damaged)


def truncate(content: bytes, chance: random.Random) -> bytes:
    """Keeps the beginning only."""
    return content[: chance.randrange(len(content))]


def drop(content: bytes, chance: random.Random) -> bytes:
    """Removes some bytes."""
    begin = chance.randrange(len(content))
    return content[:begin] + content[begin + chance.randint(1, 64) :]


def repeat(content: bytes, chance: random.Random) -> bytes:
    """Repeats some bytes, twice or many times."""
    begin = chance.randrange(len(content))
    piece = content[begin : begin + chance.randint(1, 64)]
    return content[:begin] + piece * chance.choice((2, 2, 50)) + content[begin + len(piece) :]


def write_extreme(content: bytes, chance: random.Random) -> bytes:
    """Writes an extreme integer, as a count or length may be."""
    size = chance.choice((2, 4, 8))
    begin = chance.randrange(max(len(content) - size, 1))
    number = chance.choice(EXTREMES) % 2 ** (8 * size)
    return content[:begin] + number.to_bytes(size, chance.choice(("little", "big"))) + content[begin + size :]


def read_tensors(path: Path) -> None:
    tensors = pytorch.read(path)
    assert all(isinstance(name, str) and isinstance(value, np.ndarray) for name, value in tensors.items())


DAMAGES: tuple[Damage, ...] = (flip, flip, truncate, drop, repeat, write_extreme)


def fuzz(
    path: Path, sources: list[bytes], damages: tuple[Damage, ...], seed: int, read: Callable[[Path], Any] = read_tensors
) -> tuple[int, int]:
    """Reads `CASES` damaged files at this path; returns how many were read, and how many were refused."""
    chance = random.Random(seed)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    errors: list[str] = []
    for case in range(CASES):
        path.write_bytes(chance.choice(damages)(chance.choice(sources), chance))
        begin = time.monotonic()
        try:
            read(path)
        except UserError as error:
            errors.append(str(error))
        assert time.monotonic() - begin < MAX_SECONDS, f"case {case}"
    growth = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * (1 if sys.platform == "darwin" else 1024)
    assert growth < MAX_MEMORY
    assert not [error for error in errors if str(path) not in error or "\n" in error]
    return CASES - len(errors), len(errors)


def change_header(content: bytes, chance: random.Random) -> bytes:
    """Changes the description of one tensor in a safetensors header, in valid JSON."""
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    entry = header[chance.choice([*header])]
    field = chance.choice(("dtype", "shape", "data_offsets"))
    number = chance.choice((-1, 0, 1, 3, 2.5, None, "x", *EXTREMES))
    dtypes = ("F32", "F64", "F16", "BF16", "F8_E4M3", "F8_E5M2", "I8", "U64", "BOOL", "C64", "F4", "", None)
    entry[field] = chance.choice(dtypes) if field == "dtype" else [number] * chance.randint(0, 5)
    if chance.random() < 0.2:
        header[chance.choice(("__metadata__", "", "a" * 10_000))] = entry
    new_header = json.dumps(header).encode()
    return struct.pack("<Q", len(new_header)) + new_header + content[8 + length :]


def change_dtype(content: bytes, chance: random.Random) -> bytes:
    """Returns a valid safetensors file of another dtype, which NumPy may lack."""
    dtype, size = chance.choice((("BF16", 2), ("F8_E4M3", 1), ("F8_E5M2", 1), ("F16", 2), ("BOOL", 1), ("U16", 2)))
    header = json.dumps({"x": {"dtype": dtype, "shape": [3], "data_offsets": [0, 3 * size]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(3 * size)


@pytest.mark.slow
def test_damaged_safetensors_are_read_or_refused(tmp_path: Path) -> None:
    read, refused = fuzz(tmp_path / "net.safetensors", [save(TENSORS)], (*DAMAGES, change_header, change_dtype), seed=0)
    assert read > CASES / 20  # damage to the weights themselves cannot be detected
    assert refused > CASES / 4


MODEL_INFO = stablehlo.ModelInfo("student", "resnet8", ("no", "yes"), (2, 2, 1))


def split_exported(content: bytes) -> tuple[bytes, bytes]:
    """Returns the program and the model info of a StableHLO file."""
    program, model_info = stablehlo.unpack(Path("net.stablehlo"), content)
    info_json = json.dumps(dataclasses.asdict(model_info)).encode()
    assert content.startswith(program + info_json)
    return program, info_json


def with_valid_checksum(damage: Damage) -> Damage:
    """Damages the program only, under a checksum that matches."""

    def repack(content: bytes, chance: random.Random) -> bytes:
        program, info_json = split_exported(content)
        return stablehlo.pack(damage(program, chance), info_json)

    return repack


def change_model_info(content: bytes, chance: random.Random) -> bytes:
    """Changes the model info only, under a checksum that matches."""
    program, info_json = split_exported(content)
    info = json.loads(info_json)
    values: tuple[Any, ...] = (None, -1, 2**70, "", "\0", [], ["a"] * 3, [2, 2], [2, 2, 3], ["x", 2, 1], {}, {"a": []})
    info[chance.choice([*info])] = chance.choice(values)
    deep = b"[" * 100_000
    return stablehlo.pack(program, chance.choice((json.dumps(info).encode(), flip(info_json, chance), deep)))


@pytest.mark.slow
def test_damaged_stablehlo_is_read_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "net.stablehlo"
    stablehlo.write(path, lambda images: images.reshape(images.shape[0], 4)[:, :2].astype(jnp.float32), MODEL_INFO)
    content = path.read_bytes()
    found = stablehlo.read(path).model_info
    assert dataclasses.replace(found, jax_version="", written="") == MODEL_INFO
    resealed = (with_valid_checksum(damage) for damage in (flip, truncate, drop, write_extreme))
    read, refused = fuzz(path, [content], (*DAMAGES, change_model_info, *resealed), seed=2, read=stablehlo.read)
    assert refused > CASES / 2
    assert read > CASES / 100  # some damage turns a program into another valid one


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_damaged_torch_files_are_read_or_refused(tmp_path: Path) -> None:
    """Both of the current format and of the one before it."""
    import torch

    sources = []
    for zip_format in (True, False):
        buffer = io.BytesIO()
        tensors = {name: torch.from_numpy(value) for name, value in TENSORS.items()}
        torch.save({"state_dict": tensors}, buffer, _use_new_zipfile_serialization=zip_format)
        sources.append(buffer.getvalue())
    read, refused = fuzz(tmp_path / "net.pth", sources, DAMAGES, seed=1)
    assert read > CASES / 20
    assert refused > CASES / 4
