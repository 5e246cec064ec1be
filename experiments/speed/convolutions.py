"""Implementations of a 3x3 convolution and its gradients on CPU: ours beside those that were tried.

python experiments/speed/convolutions.py --rounds=5             # on one core: taskset -c 0 python ...

Batches of 128 images. Each implementation runs in a compiled loop, as in the train step; all of a layer alternate in
one process. Prints medians in ms.
"""

from __future__ import annotations

import argparse
import functools
import math
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT)]

from experiments.speed.turns import taking_turns
from switokd_jax.files import write_json
from switokd_jax.models.ops import convolution
from switokd_jax.parallel.compile import compiler_options

BATCH, LOOPS = 128, 3
PADS = ((1, 1), (1, 1))
# Height and width, input channels, output channels, stride: layers of resnet8 to resnet32, wrn_16_2 and wider networks.
LAYERS = [
    (32, 16, 16, 1),
    (16, 32, 32, 1),
    (8, 64, 64, 1),
    (32, 32, 32, 1),
    (16, 64, 64, 1),
    (8, 128, 128, 1),
    (4, 256, 256, 1),
    (32, 64, 64, 2),
    (16, 128, 128, 2),
]
Operation = Callable[[jax.Array, jax.Array], jax.Array]  # of the two arrays that a pass reads


def ours(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """Computes the package's convolution on one CPU device."""
    convolve = convolution.for_devices("cpu", single_device=True)
    result: jax.Array = convolve(x, kernel, (stride, stride), PADS)
    return result


def of_groups(gradient_of: Operation, size: int, x: jax.Array, g: jax.Array) -> jax.Array:
    """Sums a kernel gradient over groups of images."""

    def add(total: jax.Array, group: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        return total + gradient_of(*group), None

    zeros = jnp.zeros((3, 3, x.shape[-1], g.shape[-1]))
    x_groups, g_groups = (images.reshape(-1, size, *images.shape[1:]) for images in (x, g))
    return lax.scan(add, zeros, (x_groups, g_groups))[0]


def windows(x: jax.Array, g: jax.Array) -> list[jax.Array]:
    """Returns the nine shifts of the padded x that the kernel's elements meet, each as large as g's images."""
    x = jnp.pad(x, ((0, 0), *PADS, (0, 0)))
    stride = (x.shape[1] - 2) // g.shape[1]
    return [
        x[:, i : i + stride * (g.shape[1] - 1) + 1 : stride, j : j + stride * (g.shape[2] - 1) + 1 : stride]
        for i in range(3)
        for j in range(3)
    ]


def rows(images: jax.Array) -> jax.Array:
    """Flattens [..., channels] to [pixels, channels]."""
    return images.reshape(-1, images.shape[-1])


def one_product(x: jax.Array, g: jax.Array) -> jax.Array:
    """Computes a kernel gradient as a product of g with the concatenated windows."""
    gradient = rows(g).T @ rows(jnp.concatenate(windows(x, g), axis=-1))
    return gradient.T.reshape(3, 3, x.shape[-1], g.shape[-1])


def nine_products(x: jax.Array, g: jax.Array) -> jax.Array:
    """Computes a kernel gradient as a product for each element of the kernel."""
    gradient = jnp.stack([rows(g).T @ rows(window) for window in windows(x, g)])
    return gradient.swapaxes(1, 2).reshape(3, 3, x.shape[-1], g.shape[-1])


def batched_product(x: jax.Array, g: jax.Array) -> jax.Array:
    """Computes a kernel gradient as a batch of products, one for each image."""
    columns = jnp.concatenate(windows(x, g), axis=-1)
    pixels = math.prod(g.shape[1:3])
    products = jnp.einsum("npf,npc->nfc", g.reshape(len(g), pixels, -1), columns.reshape(len(x), pixels, -1))
    return jnp.sum(products, 0).T.reshape(3, 3, x.shape[-1], g.shape[-1])


def kernel_gradient(single_device: bool, stride: int, x: jax.Array, g: jax.Array) -> jax.Array:
    """Computes a kernel gradient as the package does for one device, or in one convolution for several devices."""
    convolve = convolution.for_devices("cpu", single_device=single_device)
    kernel = jnp.zeros((3, 3, x.shape[-1], g.shape[-1]))
    gradient: jax.Array = jax.vjp(lambda kernel: convolve(x, kernel, (stride, stride), PADS), kernel)[1](g)[0]
    return gradient


def winograd(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Computes a convolution by F(2x2, 3x3) of Lavin and Gray (CVPR 2016): 16 products in place of 36.

    Of images with an even height and width, in strides of 1.
    """

    def to_four(a: list[jax.Array]) -> list[jax.Array]:
        return [a[0] - a[2], a[1] + a[2], a[2] - a[1], a[1] - a[3]]

    def to_two(a: list[jax.Array]) -> list[jax.Array]:
        return [a[0] + a[1] + a[2], a[1] - a[2] - a[3]]

    def both_axes(
        fn: Callable[[list[jax.Array]], list[jax.Array]], tiles: list[list[jax.Array]]
    ) -> list[list[jax.Array]]:
        columns = [fn(row) for row in tiles]
        return [
            list(row) for row in zip(*(fn([row[j] for row in columns]) for j in range(len(columns[0]))), strict=True)
        ]

    to_kernel = jnp.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
    kernels = jnp.einsum("ai,bj,ijcf->abcf", to_kernel, to_kernel, kernel)
    batch, height, width, _ = x.shape
    padded = jnp.pad(x, ((0, 0), *PADS, (0, 0)))
    tiles = [[padded[:, i : i + height - 1 : 2, j : j + width - 1 : 2] for j in range(4)] for i in range(4)]
    tiles = both_axes(to_four, tiles)
    products = [[rows(tiles[i][j]) @ kernels[i, j] for j in range(4)] for i in range(4)]
    shape = (batch, height // 2, width // 2, -1)
    phases = [[phase.reshape(shape) for phase in row] for row in both_axes(to_two, products)]
    return jnp.stack([jnp.stack(row, 3) for row in phases], 2).reshape(batch, height, width, -1)


def zeros_in_kernel(g: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """Computes an input gradient as one convolution for all phases, as large for each as the largest needs.

    For kernels of 3x3 padded by 1 in strides of 2, and images with an even height and width.
    """
    phases = jnp.pad(kernel, ((stride - 1, 0), (stride - 1, 0), (0, 0), (0, 0)))
    phases = phases.reshape(2, stride, 2, stride, *kernel.shape[2:])[::-1, :, ::-1]
    phases = jnp.transpose(phases, (0, 2, 5, 1, 3, 4)).reshape(2, 2, kernel.shape[3], -1)
    dx = lax.conv_general_dilated(g, phases, (1, 1), ((0, 1), (0, 1)), dimension_numbers=convolution.NHWC_HWIO)
    dx = dx.reshape(*g.shape[:3], stride, stride, -1).transpose(0, 1, 3, 2, 4, 5)
    return dx.reshape(len(g), g.shape[1] * stride, g.shape[2] * stride, -1)


def passes(side: int, channels: int, stride: int) -> dict[str, dict[str, Operation]]:
    """Returns the implementations of each pass of a layer: (x, kernel), (g, kernel) and (x, g) -> result."""
    shape = (BATCH, side, side, channels)

    def input_gradient(g: jax.Array, kernel: jax.Array) -> jax.Array:
        gradient: jax.Array = jax.vjp(lambda x: ours(x, kernel, stride), jnp.zeros(shape))[1](g)[0]
        return gradient

    forward: dict[str, Operation] = {"ours": functools.partial(ours, stride=stride)}
    inputs: dict[str, Operation] = {"ours": input_gradient}
    if stride == 1:
        forward["Winograd"] = winograd
    else:
        inputs["zeros in kernel"] = functools.partial(zeros_in_kernel, stride=stride)
    kernels: dict[str, Operation] = {
        "ours": functools.partial(kernel_gradient, True, stride),
        "one convolution": functools.partial(kernel_gradient, False, stride),
        "one product": functools.partial(of_groups, one_product, 4),
        "nine products": functools.partial(of_groups, nine_products, 4),
        "batched product": functools.partial(of_groups, batched_product, 4),
    }
    return {"forward": forward, "input gradient": inputs, "kernel gradient": kernels}


def timer(operation: Operation, first: jax.Array, second: jax.Array) -> Callable[[], float]:
    """Compiles an operation in a loop; returns a function that measures the ms of one call."""

    def body(total: jax.Array, _: None) -> tuple[jax.Array, None]:
        # Both arrays depend on the last result, or XLA would move work out of the loop.
        return 1e-30 * jnp.sum(operation(first + total, second + total)), None

    loop = jax.jit(lambda: lax.scan(body, jnp.float32(0), None, length=LOOPS)[0])
    compiled = loop.lower().compile(dict(compiler_options("cpu", deterministic=False)))

    def measure() -> float:
        start = time.perf_counter()
        jax.block_until_ready(compiled())
        return 1000 * (time.perf_counter() - start) / LOOPS

    return measure


def main() -> None:
    """Reads the flags, measures and prints; writes JSON too."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, default=Path("runs/convolutions.json"))
    args = parser.parse_args()
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=shape).astype(np.float32))

    print(f"{len(os.sched_getaffinity(0))} cores")
    results = []
    for side, channels, features, stride in LAYERS:
        out = side // stride
        x, g = normal(BATCH, side, side, channels), normal(BATCH, out, out, features)
        kernel = normal(3, 3, channels, features)
        arguments = {"forward": (x, kernel), "input gradient": (g, kernel), "kernel gradient": (x, g)}
        print(f"{side}x{side}x{channels} to {features}, stride {stride}")
        for name, operations in passes(side, channels, stride).items():
            timers = {key: timer(operation, *arguments[name]) for key, operation in operations.items()}
            times = {key: statistics.median(values) for key, values in taking_turns(timers, args.rounds).items()}
            print(f"  {name:16}", ", ".join(f"{key} {value:.1f}" for key, value in times.items()), flush=True)
            results.append({"layer": [side, channels, features, stride], "pass": name, "ms": times})
    args.json.parent.mkdir(parents=True, exist_ok=True)
    write_json(args.json, {"cores": len(os.sched_getaffinity(0)), "layers": results})


if __name__ == "__main__":
    main()
