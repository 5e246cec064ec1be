"""Collectives of a compiled step, read from XLA's text."""

from __future__ import annotations

import dataclasses
import math
import re

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all")
BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective operation.

    Attributes:
      kind: one of KINDS.
      sizes: number of elements of each of its arrays.
      bytes: total size of these arrays.
      op_name: names of the JAX operations behind it, as XLA kept them.
    """

    kind: str
    sizes: tuple[int, ...]
    bytes: int
    op_name: str


def collectives(text: str) -> list[Collective]:
    """Lists the collectives of a compiled program in the order of its text.

    Args:
      text: `compiled.as_text()`; the start and done of an asynchronous one count as one.
    """
    result = []
    for line in text.splitlines():
        match = re.search(rf"= (.*?) ({'|'.join(KINDS)})(-start)?\(", line)
        if not match:
            continue
        arrays = re.findall(r"\b([a-z]+\d*)\[([\d,]*)\]", match[1])
        sizes = tuple(math.prod(int(side) for side in shape.split(",") if side) for _, shape in arrays)
        name = re.search(r'op_name="([^"]*)"', line)
        total = sum(size * BYTES[dtype] for size, (dtype, _) in zip(sizes, arrays, strict=True))
        result.append(Collective(match[2], sizes, total, name[1] if name else ""))
    return result
