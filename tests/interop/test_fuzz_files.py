"""Thousands of damaged files: each gives arrays or one clear error, at once and without swallowing the memory."""

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
SLOWEST = 10.0  # seconds for one file of 2 kB: a hang, not a busy machine
MOST_MEMORY = 512 * 2**20  # bytes
EXTREMES = (0, 1, 7, 2**15, 2**31 - 1, 2**32, 2**63 - 1, 2**64 - 1)
TENSORS: dict[str, np.ndarray] = {
    "conv.weight": np.arange(108, dtype=np.float32).reshape(4, 3, 3, 3),
    "bn.running_mean": np.zeros(4, np.float32),
    "bn.num_batches_tracked": np.array(3, np.int64),
}

# (bytes, chance) -> bytes
Damage = Callable[[bytes, random.Random], bytes]


def flip(content: bytes, chance: random.Random) -> bytes:
    """Other bytes in a few places."""
    made = bytearray(content)
    for _ in range(chance.randint(1, 8)):
        made[chance.randrange(len(made))] = chance.randrange(256)
    return bytes(made)


def cut(content: bytes, chance: random.Random) -> bytes:
    """Its beginning only."""
    return content[: chance.randrange(len(content))]


def drop(content: bytes, chance: random.Random) -> bytes:
    """A part is missing."""
    begin = chance.randrange(len(content))
    return content[:begin] + content[begin + chance.randint(1, 64) :]


def repeat(content: bytes, chance: random.Random) -> bytes:
    """A part comes twice, or many times."""
    begin = chance.randrange(len(content))
    part = content[begin : begin + chance.randint(1, 64)]
    return content[:begin] + part * chance.choice((2, 2, 50)) + content[begin + len(part) :]


def count(content: bytes, chance: random.Random) -> bytes:
    """Some bytes as a count or length that is out of all proportion."""
    size = chance.choice((2, 4, 8))
    begin = chance.randrange(max(len(content) - size, 1))
    number = chance.choice(EXTREMES) % 2 ** (8 * size)
    return content[:begin] + number.to_bytes(size, chance.choice(("little", "big"))) + content[begin + size :]


def tensors(path: Path) -> None:
    """Reads weights."""
    found = pytorch.read(path)
    assert all(isinstance(name, str) and isinstance(value, np.ndarray) for name, value in found.items())


DAMAGES: tuple[Damage, ...] = (flip, flip, cut, drop, repeat, count)


def fuzz(
    path: Path, sources: list[bytes], damages: tuple[Damage, ...], seed: int, read: Callable[[Path], Any] = tensors
) -> tuple[int, int]:
    """Reads `CASES` damaged files at this path; how many were read, and refused."""
    chance = random.Random(seed)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    answers: list[str] = []
    for case in range(CASES):
        path.write_bytes(chance.choice(damages)(chance.choice(sources), chance))
        begin = time.monotonic()
        try:
            read(path)
        except UserError as error:
            answers.append(str(error))
        assert time.monotonic() - begin < SLOWEST, f"case {case}"
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * (1 if sys.platform == "darwin" else 1024)
    assert grown < MOST_MEMORY
    assert not [answer for answer in answers if str(path) not in answer or "\n" in answer]
    return CASES - len(answers), len(answers)


def other_header(content: bytes, chance: random.Random) -> bytes:
    """A safetensors file whose header says something else of one tensor, in sound JSON."""
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    entry = header[chance.choice([*header])]
    field = chance.choice(("dtype", "shape", "data_offsets"))
    number = chance.choice((-1, 0, 1, 3, 2.5, None, "x", *EXTREMES))
    kinds = ("F32", "F64", "F16", "BF16", "F8_E4M3", "F8_E5M2", "I8", "U64", "BOOL", "C64", "F4", "", None)
    entry[field] = chance.choice(kinds) if field == "dtype" else [number] * chance.randint(0, 5)
    if chance.random() < 0.2:
        header[chance.choice(("__metadata__", "", "a" * 10_000))] = entry
    made = json.dumps(header).encode()
    return struct.pack("<Q", len(made)) + made + content[8 + length :]


def retyped(content: bytes, chance: random.Random) -> bytes:
    """A sound safetensors file of another dtype, which NumPy may not have."""
    kind, size = chance.choice((("BF16", 2), ("F8_E4M3", 1), ("F8_E5M2", 1), ("F16", 2), ("BOOL", 1), ("U16", 2)))
    header = json.dumps({"x": {"dtype": kind, "shape": [3], "data_offsets": [0, 3 * size]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(3 * size)


def test_safetensors(tmp_path: Path) -> None:
    read, refused = fuzz(tmp_path / "net.safetensors", [save(TENSORS)], (*DAMAGES, other_header, retyped), seed=0)
    assert read > CASES / 20  # the weights' own bytes may be any
    assert refused > CASES / 4


FACTS = stablehlo.ModelInfo("student", "resnet8", ("no", "yes"), (2, 2, 1))


def program_and_facts(content: bytes) -> tuple[bytes, bytes]:
    """Of an artefact."""
    facts = json.dumps(dataclasses.asdict(FACTS)).encode()
    end = content.index(facts)
    return content[:end], facts


def resealed(damage: Damage) -> Damage:
    """A sound checksum over a damaged program."""

    def seal(content: bytes, chance: random.Random) -> bytes:
        program, facts = program_and_facts(content)
        return stablehlo.sealed(damage(program, chance), facts)

    return seal


def other_facts(content: bytes, chance: random.Random) -> bytes:
    """A sound checksum over facts that are not what they should be."""
    program, facts = program_and_facts(content)
    known = json.loads(facts)
    values: tuple[Any, ...] = (None, -1, 2**70, "", "\0", [], ["a"] * 3, [2, 2], [2, 2, 3], ["x", 2, 1], {}, {"a": []})
    known[chance.choice([*known])] = chance.choice(values)
    deep = b"[" * 100_000
    return stablehlo.sealed(program, chance.choice((json.dumps(known).encode(), flip(facts, chance), deep)))


def test_stablehlo(tmp_path: Path) -> None:
    path = tmp_path / "net.stablehlo"
    stablehlo.write(path, lambda images: images.reshape(images.shape[0], 4)[:, :2].astype(jnp.float32), FACTS)
    sound = path.read_bytes()
    assert stablehlo.read(path).facts == FACTS
    damages = (*DAMAGES, other_facts, resealed(flip), resealed(cut), resealed(drop), resealed(count))
    read, refused = fuzz(path, [sound], damages, seed=2, read=stablehlo.read)
    assert refused > CASES / 2
    assert read > CASES / 100  # some damage within a program says something else that is sound


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_torch_files(tmp_path: Path) -> None:
    """Of today's format and of the one before it."""
    import torch

    sources = []
    for new in (True, False):
        buffer = io.BytesIO()
        tensors = {name: torch.from_numpy(value) for name, value in TENSORS.items()}
        torch.save({"state_dict": tensors}, buffer, _use_new_zipfile_serialization=new)
        sources.append(buffer.getvalue())
    read, refused = fuzz(tmp_path / "net.pth", sources, DAMAGES, seed=1)
    assert read > CASES / 20
    assert refused > CASES / 4
