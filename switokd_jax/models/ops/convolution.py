"""Convolutions in the form that the devices like: the one place where models look at them.

XLA:CPU rewrites only the convolutions of the entry computation for its fast library; inside `lax.cond` and `lax.scan`
the exotic dimension numbers of a convolution's gradients fall to a naive loop, a hundred times slower (jax issue
12868). So on CPU gradients are spelt out here: as plain NHWC x HWIO convolutions, as matrix products where the kernel
is 1x1, and for depthwise convolutions as sums of shifted products. Depthwise ones are so on GPUs too, where the
library's have few threads to a channel. All else is `lax`'s own.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from switokd_jax.precision import promote_to_float32

Pads = tuple[tuple[int, int], tuple[int, int]]
PLAIN = ("NHWC", "HWIO", "NHWC")
# Of kernel gradients, by measuring: so many images at a time; with fewer input channels, or fewer numbers in an
# image, one convolution over the whole batch is faster.
IMAGES, NARROW, SMALL = 4, 32, 2**14


def for_devices(platform: str, *, alone: bool) -> Callable[..., jax.Array]:
    """`convolution` for given devices; by itself it asks JAX for the default ones.

    Args:
      platform: 'cpu', 'gpu' or 'tpu'.
      alone: whether the program sees one device's images only, so that loops over them gather nothing.
    """
    return functools.partial(convolution, platform=platform, alone=alone)


def convolution(
    x: jax.Array,
    kernel: jax.Array,
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    *,
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    precision: Any = None,
    platform: str | None = None,
    alone: bool | None = None,
) -> jax.Array:
    """`lax.conv_general_dilated` for [batch, height, width, channels], in the form the devices like."""
    platform = platform or jax.default_backend()
    depthwise = feature_group_count == x.shape[-1] > 1 and kernel.shape[-1] == x.shape[-1]
    dilated = any(d != 1 for d in (*(lhs_dilation or ()), *(rhs_dilation or ())))
    ours = not dilated and (depthwise if platform == "gpu" else platform == "cpu")
    if not ours or (feature_group_count > 1 and not depthwise):
        return lax.conv_general_dilated(
            x,
            kernel,
            strides,
            padding,
            lhs_dilation,
            rhs_dilation,
            dimension_numbers,
            feature_group_count,
            precision=precision,
        )
    stride = (strides[0], strides[1])
    pads = (padding[0], padding[1])
    alone = jax.device_count() == 1 if alone is None else alone
    if depthwise:
        by = _at_once if platform == "gpu" else _image_by_image if alone else _place_by_place
        return _depthwise(x, kernel, stride, pads, by)
    if kernel.shape[:2] == (1, 1) and pads == ((0, 0), (0, 0)):
        return _pointwise(x[:, :: stride[0], :: stride[1]], kernel[0, 0])
    return _plain(x, kernel, stride, pads, alone)


def _pointwise(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A 1x1 convolution as one matrix product, whose gradients are two more.

    As convolutions they read transposed copies (2 cores, batch 128, 32x32x48 to 16: 10 ms forward and 34 backward; so
    0.7 and 2.5).
    """
    flat = x.reshape(-1, x.shape[-1]) @ kernel
    return flat.reshape(*x.shape[:-1], kernel.shape[-1])


def _windows(x: jax.Array, size: tuple[int, int], stride: tuple[int, int], pads: Pads) -> list[jax.Array]:
    """For each place of the kernel, row by row, what the output's places see there: [batch, height, width, c]."""
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    height = (x.shape[1] - size[0]) // stride[0] + 1
    width = (x.shape[2] - size[1]) // stride[1] + 1
    steps = (1, stride[0], stride[1], 1)
    return [
        lax.slice(
            x,
            (0, i, j, 0),
            (x.shape[0], i + (height - 1) * stride[0] + 1, j + (width - 1) * stride[1] + 1, x.shape[3]),
            steps,
        )
        for i in range(size[0])
        for j in range(size[1])
    ]


def _shifted_sum(x: jax.Array, kernel: jax.Array, stride: tuple[int, int], pads: Pads) -> jax.Array:
    seen = _windows(x, (kernel.shape[0], kernel.shape[1]), stride, pads)
    weights = promote_to_float32(kernel.reshape(len(seen), -1))
    total = promote_to_float32(seen[0]) * weights[0]
    for window, weight in zip(seen[1:], weights[1:], strict=True):
        total = total + promote_to_float32(window) * weight
    return total.astype(x.dtype)


# (x, the output's gradient, x to windows) to the kernel's gradient [places, channels].
Sums = Callable[[jax.Array, jax.Array, Callable[[jax.Array], list[jax.Array]]], jax.Array]


def _place_by_place(x: jax.Array, g: jax.Array, windows: Callable[[jax.Array], list[jax.Array]]) -> jax.Array:
    return jnp.stack([jnp.sum(window * g, (0, 1, 2)) for window in windows(x)])


def _image_by_image(x: jax.Array, g: jax.Array, windows: Callable[[jax.Array], list[jax.Array]]) -> jax.Array:
    """Stays in a CPU's cache.

    Sums over the whole batch read it from memory nine times, and XLA's loop for them is not vectorised (2 cores, batch
    128, 32x32x48: 59 ms; so 10 ms).
    """

    def add_image(total: jax.Array, image: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        return total + _place_by_place(image[0][None], image[1][None], windows), None

    nothing = jnp.zeros((len(windows(x[:1])), x.shape[3]), g.dtype)
    return lax.scan(add_image, nothing, (x, g), unroll=2)[0]


def _at_once(x: jax.Array, g: jax.Array, windows: Callable[[jax.Array], list[jax.Array]]) -> jax.Array:
    """One reduction for all places: two kernels on a GPU, which sums of their own make 15."""
    return jnp.sum(promote_to_float32(jnp.stack(windows(x))) * promote_to_float32(g), (1, 2, 3))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _depthwise(x: jax.Array, kernel: jax.Array, stride: tuple[int, int], pads: Pads, by: Sums) -> jax.Array:
    del by
    return _shifted_sum(x, kernel, stride, pads)


def _depthwise_forward(x: jax.Array, kernel: jax.Array, stride: tuple[int, int], pads: Pads, by: Sums) -> Any:
    return _depthwise(x, kernel, stride, pads, by), (x, kernel)


def _depthwise_backward(
    stride: tuple[int, int], pads: Pads, by: Sums, saved: Any, g: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    (dx,) = jax.linear_transpose(lambda x: _shifted_sum(x, kernel, stride, pads), x)(g)
    size = (kernel.shape[0], kernel.shape[1])
    dkernel = by(x, g, lambda x: _windows(x, size, stride, pads))
    return dx, dkernel.reshape(kernel.shape).astype(kernel.dtype)


_depthwise.defvjp(_depthwise_forward, _depthwise_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _plain(x: jax.Array, kernel: jax.Array, stride: tuple[int, int], pads: Pads, alone: bool) -> jax.Array:
    del alone
    return lax.conv_general_dilated(x, kernel, stride, pads, dimension_numbers=PLAIN)


def _forward(x: jax.Array, kernel: jax.Array, stride: tuple[int, int], pads: Pads, alone: bool) -> Any:
    return _plain(x, kernel, stride, pads, alone), (x, kernel)


def _backward(
    stride: tuple[int, int], pads: Pads, alone: bool, saved: Any, g: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    dx = _input_gradient(g, kernel, x.shape, stride, pads)
    if alone and x.shape[3] >= NARROW and math.prod(x.shape[1:]) >= SMALL:
        return dx, _kernel_gradient(x, g, kernel.shape, stride, pads)

    # dkernel: input channels become the batch, the batch becomes the channels that are summed over; what lies behind
    # the last window never took part.
    span = [(g.shape[1 + i] - 1) * stride[i] + 1 for i in (0, 1)]
    high = [kernel.shape[i] - 1 - x.shape[1 + i] - pads[i][0] + span[i] for i in (0, 1)]
    dkernel = lax.conv_general_dilated(
        jnp.transpose(x, (3, 1, 2, 0)),
        jnp.transpose(g, (1, 2, 0, 3)),
        (1, 1),
        tuple((pads[i][0], high[i]) for i in (0, 1)),
        rhs_dilation=stride,
        dimension_numbers=PLAIN,
    )
    return dx, jnp.transpose(dkernel, (1, 2, 0, 3))


def _input_gradient(
    g: jax.Array, kernel: jax.Array, shape: tuple[int, ...], stride: tuple[int, int], pads: Pads
) -> jax.Array:
    """A plain convolution whose channels are those of all the places that an input pixel has between two strides.

    Pixel `stride * q + place` takes part in output q - d through the kernel's element `stride * d + place + pad`. As a
    convolution of the gradient with zeros between its pixels, three quarters of the products are by zero (2 cores,
    batch 128, 32x32x64 to 64 in strides of 2: 57 ms; so 40). Without strides there is one place, and this is the usual
    form.
    """
    size = [-(-shape[1 + i] // stride[i]) for i in (0, 1)]
    least = [-((pads[i][0] + stride[i] - 1) // stride[i]) for i in (0, 1)]  # of d
    most = [(kernel.shape[i] - 1 - pads[i][0]) // stride[i] for i in (0, 1)]
    spans = [most[i] - least[i] + 1 for i in (0, 1)]
    low = [-stride[i] * least[i] - pads[i][0] for i in (0, 1)]
    room = [(low[i], stride[i] * spans[i] - kernel.shape[i] - low[i]) for i in (0, 1)]
    places = jnp.pad(kernel, (*room, (0, 0), (0, 0)))
    places = places.reshape(spans[0], stride[0], spans[1], stride[1], *kernel.shape[2:])[::-1, :, ::-1]
    places = jnp.transpose(places, (0, 2, 5, 1, 3, 4)).reshape(*spans, kernel.shape[3], -1)
    padding = [(most[i], size[i] - g.shape[1 + i] - least[i]) for i in (0, 1)]
    dx = lax.conv_general_dilated(g, places, (1, 1), padding, dimension_numbers=PLAIN)
    dx = dx.reshape(len(g), *size, *stride, shape[3]).transpose(0, 1, 3, 2, 4, 5)
    dx = dx.reshape(len(g), size[0] * stride[0], size[1] * stride[1], shape[3])
    return dx[:, : shape[1], : shape[2]]


def _kernel_gradient(
    x: jax.Array, g: jax.Array, shape: tuple[int, ...], stride: tuple[int, int], pads: Pads
) -> jax.Array:
    """A few images at a time, one matrix product of all that the kernel's places see with the output's gradient.

    As one convolution it reads transposed copies of the whole batch (2 cores, batch 128, 32x32x64 to 64 in strides of
    2: 48 ms; so 17).
    """
    few = math.gcd(len(x), IMAGES)

    def add_images(total: jax.Array, images: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        some, their_g = images
        seen = jnp.concatenate(_windows(some, (shape[0], shape[1]), stride, pads), axis=-1)
        return total + seen.reshape(-1, seen.shape[-1]).T @ their_g.reshape(-1, shape[3]), None

    parts = x.reshape(-1, few, *x.shape[1:]), g.reshape(-1, few, *g.shape[1:])
    total, _ = lax.scan(add_images, jnp.zeros((shape[0] * shape[1] * shape[2], shape[3]), g.dtype), parts)
    return total.reshape(shape)


_plain.defvjp(_forward, _backward)
