"""Platform-specific convolution implementations. Models depend on the platform only here.

XLA:CPU rewrites only the convolutions of the entry computation for its fast library. Inside `lax.cond` and `lax.scan`
the exotic dimension numbers of a convolution's gradients run in a naive loop, a hundred times slower (jax issue 12868).
So on CPU the gradients are written out here: as plain NHWC x HWIO convolutions, as matrix products for 1x1 kernels, and
as sums of shifted products for depthwise convolutions. Depthwise convolutions are sums of shifted products on GPUs too,
because the library's use few threads per channel. Everything else is `lax.conv_general_dilated`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.export import is_symbolic_dim

from switokd_jax.precision import promote_to_float32

Pads = tuple[tuple[int, int], tuple[int, int]]
NHWC_HWIO = ("NHWC", "HWIO", "NHWC")
# On CPU, as measured. Kernel gradients: the images whose transposed copies stay in a core's cache. Few features: the
# number that keeps Eigen's products busy, and the most pixels that are joined for it. Both: the numbers of a batch that
# are too few for a gain.
GROUP = 16
MIN_FEATURES, MAX_PIXELS = 32, 4
MIN_ELEMENTS = 2**18


def for_devices(platform: str, *, single_device: bool) -> Callable[..., jax.Array]:
    """Returns `convolution` for given devices; without arguments it asks JAX for the default ones.

    Args:
      platform: 'cpu', 'gpu' or 'tpu'.
      single_device: True if the program sees the images of one device only, so that loops over images need no
        collective.
    """
    return functools.partial(convolution, platform=platform, single_device=single_device)


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
    single_device: bool | None = None,
) -> jax.Array:
    """Computes `lax.conv_general_dilated` of NHWC images by the fastest implementation for the platform.

    Args:
      x: [batch, height, width, channels].
      kernel: [height, width, channels / groups, features].
      strides: of height and width.
      padding: (before, after) of height and width.
      lhs_dilation: as `lax.conv_general_dilated`, like all arguments before `platform`.
      rhs_dilation: as there.
      dimension_numbers: as there.
      feature_group_count: as there.
      precision: as there; the implementations of our own use JAX's default precision.
      platform: 'cpu', 'gpu' or 'tpu'; JAX's default backend if None.
      single_device: as in `for_devices`; if None, True if JAX sees one device.
    """
    platform = platform or jax.default_backend()
    depthwise = feature_group_count == x.shape[-1] > 1 and kernel.shape[-1] == x.shape[-1]
    dilated = any(d != 1 for d in (*(lhs_dilation or ()), *(rhs_dilation or ())))
    use_custom = not dilated and (depthwise if platform == "gpu" else platform == "cpu")
    if not use_custom or (feature_group_count > 1 and not depthwise):
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
    single_device = jax.device_count() == 1 if single_device is None else single_device
    if depthwise:
        kernel_grad_fn = _sum_stacked if platform == "gpu" else _sum_scanned if single_device else _sum_per_offset
        return _depthwise(x, kernel, stride, pads, kernel_grad_fn)
    if kernel.shape[:2] == (1, 1) and pads == ((0, 0), (0, 0)):
        return _pointwise(x[:, :: stride[0], :: stride[1]], kernel[0, 0])
    return _plain(x, kernel, stride, pads, single_device)


def _pointwise(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Computes a 1x1 convolution as one matrix product; its gradients are two more.

    As convolutions the gradients read transposed copies (2 cores, batch 128, 32x32x48 to 16: 10 ms forward and 34
    backward; as products 0.7 and 2.5).
    """
    flat = x.reshape(-1, x.shape[-1]) @ kernel
    return flat.reshape(*x.shape[:-1], kernel.shape[-1])


def _im2col_slices(x: jax.Array, size: tuple[int, int], stride: tuple[int, int], pads: Pads) -> list[jax.Array]:
    """Returns the inputs that each kernel offset meets, one [batch, out height, out width, channels] per offset.

    Offsets run row by row over the kernel.
    """
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
    """Computes a depthwise convolution as a sum over the kernel's offsets, in float32 at least."""
    slices = _im2col_slices(x, (kernel.shape[0], kernel.shape[1]), stride, pads)
    weights = promote_to_float32(kernel.reshape(len(slices), -1))
    total = promote_to_float32(slices[0]) * weights[0]
    for window, weight in zip(slices[1:], weights[1:], strict=True):
        total = total + promote_to_float32(window) * weight
    return total.astype(x.dtype)


# Computes the gradient of a depthwise kernel, [offsets, channels], from x, the output's gradient, and a function from
# images to `_im2col_slices`.
KernelGradFn = Callable[[jax.Array, jax.Array, Callable[[jax.Array], list[jax.Array]]], jax.Array]


def _sum_per_offset(x: jax.Array, g: jax.Array, slices: Callable[[jax.Array], list[jax.Array]]) -> jax.Array:
    """Sums over the batch, one offset after another."""
    return jnp.stack([jnp.sum(window * g, (0, 1, 2)) for window in slices(x)])


def _sum_scanned(x: jax.Array, g: jax.Array, slices: Callable[[jax.Array], list[jax.Array]]) -> jax.Array:
    """Sums over the batch, one image after another, which stays in a CPU's cache.

    Sums over the full batch read it from memory nine times, and XLA's loop for them is not vectorized (2 cores, batch
    128, 32x32x48: 59 ms; by images 10 ms).
    """

    def add_image(total: jax.Array, image: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        return total + _sum_per_offset(image[0][None], image[1][None], slices), None

    zeros = jnp.zeros((len(slices(x[:1])), x.shape[3]), g.dtype)
    return lax.scan(add_image, zeros, (x, g), unroll=2)[0]


def _sum_stacked(x: jax.Array, g: jax.Array, slices: Callable[[jax.Array], list[jax.Array]]) -> jax.Array:
    """Sums for all offsets in one reduction: two kernels on a GPU, in place of 15 for separate sums."""
    return jnp.sum(promote_to_float32(jnp.stack(slices(x))) * promote_to_float32(g), (1, 2, 3))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _depthwise(
    x: jax.Array, kernel: jax.Array, stride: tuple[int, int], pads: Pads, kernel_grad_fn: KernelGradFn
) -> jax.Array:
    del kernel_grad_fn
    return _shifted_sum(x, kernel, stride, pads)


def _depthwise_forward(
    x: jax.Array, kernel: jax.Array, stride: tuple[int, int], pads: Pads, kernel_grad_fn: KernelGradFn
) -> Any:
    return _depthwise(x, kernel, stride, pads, kernel_grad_fn), (x, kernel)


def _depthwise_backward(
    stride: tuple[int, int], pads: Pads, kernel_grad_fn: KernelGradFn, residuals: Any, g: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = residuals
    (dx,) = jax.linear_transpose(lambda x: _shifted_sum(x, kernel, stride, pads), x)(g)
    size = (kernel.shape[0], kernel.shape[1])
    dkernel = kernel_grad_fn(x, g, lambda x: _im2col_slices(x, size, stride, pads))
    return dx, dkernel.reshape(kernel.shape).astype(kernel.dtype)


_depthwise.defvjp(_depthwise_forward, _depthwise_backward)


def _is_large(x: jax.Array) -> bool:
    """Returns if a batch is large enough to gain; an exported function's batch has no number, so it is not."""
    return not is_symbolic_dim(x.size) and x.size >= MIN_ELEMENTS


def _convolve(x: jax.Array, kernel: jax.Array, stride: tuple[int, int], pads: Pads) -> jax.Array:
    """Computes a convolution; for few features as one of several pixels of a row at a time.

    The kernel is repeated once for each pixel, one stride further to the right between zeros. The pixels become
    features of a convolution with longer strides (one core, batch 128, 32x32x16 to 16: 19 ms, two pixels at a time 14;
    32x32x3 to 16: 11 and 5).
    """
    width, features = kernel.shape[1], kernel.shape[3]
    out_width = (x.shape[2] + sum(pads[1]) - width) // stride[1] + 1
    pixels = 1
    if _is_large(x):
        while pixels < MAX_PIXELS and 2 * pixels * features <= MIN_FEATURES and out_width % (2 * pixels) == 0:
            pixels *= 2
    if pixels > 1:
        shifts = [(i * stride[1], (pixels - 1 - i) * stride[1]) for i in range(pixels)]
        kernel = jnp.concatenate([jnp.pad(kernel, ((0, 0), shift, (0, 0), (0, 0))) for shift in shifts], axis=-1)
        stride = (stride[0], pixels * stride[1])
    y = lax.conv_general_dilated(x, kernel, stride, pads, dimension_numbers=NHWC_HWIO)
    return y.reshape(*y.shape[:2], out_width, features)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _plain(x: jax.Array, kernel: jax.Array, stride: tuple[int, int], pads: Pads, single_device: bool) -> jax.Array:
    del single_device
    return _convolve(x, kernel, stride, pads)


def _plain_forward(x: jax.Array, kernel: jax.Array, stride: tuple[int, int], pads: Pads, single_device: bool) -> Any:
    return _plain(x, kernel, stride, pads, single_device), (x, kernel)


def _plain_backward(
    stride: tuple[int, int], pads: Pads, single_device: bool, residuals: Any, g: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = residuals
    dx = _input_gradient(g, kernel, x.shape, stride, pads)
    kernel_gradient = _kernel_gradient_by_groups if single_device and _is_large(x) else _kernel_gradient
    return dx, kernel_gradient(x, g, kernel.shape, stride, pads)


def _kernel_gradient(
    x: jax.Array, g: jax.Array, shape: tuple[int, ...], stride: tuple[int, int], pads: Pads
) -> jax.Array:
    """Computes the kernel's gradient as one convolution of x with g.

    The input channels become the batch, and the batch becomes the channels that are summed over.
    """
    # Inputs behind the last window met no kernel, hence the negative padding there.
    span = [(g.shape[1 + i] - 1) * stride[i] + 1 for i in (0, 1)]
    high = [shape[i] - 1 - x.shape[1 + i] - pads[i][0] + span[i] for i in (0, 1)]
    dkernel = lax.conv_general_dilated(
        jnp.transpose(x, (3, 1, 2, 0)),
        jnp.transpose(g, (1, 2, 0, 3)),
        (1, 1),
        tuple((pads[i][0], high[i]) for i in (0, 1)),
        rhs_dilation=stride,
        dimension_numbers=NHWC_HWIO,
    )
    return jnp.transpose(dkernel, (1, 2, 0, 3))


def _kernel_gradient_by_groups(
    x: jax.Array, g: jax.Array, shape: tuple[int, ...], stride: tuple[int, int], pads: Pads
) -> jax.Array:
    """Computes the kernel's gradient for a few images at a time and adds these up, in float32 at least.

    Transposed copies of the full batch do not fit into a cache: their numbers are written and read with strides through
    memory (one core, batch 128, to and from 32x32x32: 480 ms; by groups 57. 32x32x16: 24 and 16. 4x4x256: 51 and 36).
    """

    def add_group(total: jax.Array, group: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        return total + promote_to_float32(_kernel_gradient(*group, shape, stride, pads)), None

    complete = len(x) - len(x) % GROUP
    groups = [images[:complete].reshape(-1, GROUP, *images.shape[1:]) for images in (x, g)]
    total = promote_to_float32(jnp.zeros(shape, g.dtype))
    total, _ = lax.scan(add_group, total, (groups[0], groups[1]))
    if complete < len(x):
        total, _ = add_group(total, (x[complete:], g[complete:]))
    return total.astype(g.dtype)


def _input_gradient(
    g: jax.Array, kernel: jax.Array, shape: tuple[int, ...], stride: tuple[int, int], pads: Pads
) -> jax.Array:
    """Computes the gradient at the input as plain convolutions of g, without products by zero.

    Input pixel `stride * q + phase` contributes to output q - d through the kernel's element
    `stride * d + phase + pad`. So each phase, 0 <= phase < stride, is a convolution with its own elements of the
    kernel, and the phases are then interleaved. The usual form puts zeros between g's pixels, so that for strides of 2
    three quarters of the products are by zero. One convolution for all phases, whose kernels zeros make equally large,
    takes longer too (2 cores, batch 128, in strides of 2: 32x32x64 to 64 32 ms, 16x16x128 to 128 44 ms; here 20 and
    24).
    """
    size = [-(-shape[1 + i] // stride[i]) for i in (0, 1)]

    def phase_gradient(*phase: int) -> jax.Array:
        first = [(phase[i] + pads[i][0]) % stride[i] for i in (0, 1)]
        elements = kernel[first[0] :: stride[0], first[1] :: stride[1]]
        if 0 in elements.shape:  # a stride longer than the kernel skips pixels
            return jnp.zeros((len(g), *size, shape[3]), g.dtype)
        min_d = [(first[i] - phase[i] - pads[i][0]) // stride[i] for i in (0, 1)]
        max_d = [min_d[i] + elements.shape[i] - 1 for i in (0, 1)]
        low, high = max_d, [size[i] - g.shape[1 + i] - min_d[i] for i in (0, 1)]
        padding = (low[0], high[0]), (low[1], high[1])
        if elements.shape[:2] == (1, 1) and padding == ((0, 0), (0, 0)):
            return _pointwise(g, elements[0, 0].T)
        return _convolve(g, elements[::-1, ::-1].swapaxes(2, 3), (1, 1), padding)

    rows = [jnp.stack([phase_gradient(i, j) for j in range(stride[1])], 3) for i in range(stride[0])]
    dx = jnp.stack(rows, 2).reshape(len(g), size[0] * stride[0], size[1] * stride[1], shape[3])
    return dx[:, : shape[1], : shape[2]]


_plain.defvjp(_plain_forward, _plain_backward)
