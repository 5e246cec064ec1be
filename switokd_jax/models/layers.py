"""Layers that all models share, with PyTorch's defaults: convolutions, norms, linear layers, features, dropout."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.nn import initializers

from switokd_jax.models.ops.batch_norm import BatchNorm
from switokd_jax.models.ops.convolution import convolution
from switokd_jax.precision import promote_to_float32

Initializer = Callable[..., jax.Array]

kaiming_normal = initializers.variance_scaling(2.0, "fan_in", "normal")
kaiming_normal_fan_out = initializers.variance_scaling(2.0, "fan_out", "normal")
xavier_uniform_sqrt2 = initializers.variance_scaling(2.0, "fan_avg", "uniform")  # gain sqrt(2)
torch_default_kernel = initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def torch_default_bias(fan_in: int) -> Initializer:
    """Returns torch.nn.Linear's and Conv2d's initializer of biases: uniform in +- 1 / sqrt(fan_in)."""

    def initialize(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -1.0, 1.0) / fan_in**0.5

    return initialize


def inverse_fan_in(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
    """Draws kernels from a normal with standard deviation 1 / (elements of one filter), as SwitOKD's main.py."""
    return jax.random.normal(key, shape, dtype) / math.prod(shape[:-1])


@dataclasses.dataclass(frozen=True)
class Layers:
    """Options of a model's layers, and methods that build the layers from them.

    Every model has one as its attribute `layers` and passes it to its blocks. The methods create a Flax layer of the
    given name in the calling module and apply it to `x`, so call them in `nn.compact` methods:

        layers = self.layers.replace(train=train, conv_init=kaiming_normal)
        x = nn.relu(layers.norm(layers.conv(x, 16, 3, name="conv1"), name="bn1"))

    Attributes:
      dtype: dtype of the computation. Logits are float32 at least.
      param_dtype: dtype of the parameters.
      axis_name: mapped device axis over which BatchNorm averages its statistics; None for one batch per program.
      convolution: function with the arguments of `lax.conv_general_dilated`, see `ops.convolution`.
      remat: keeps only the inputs of blocks and computes them again in the backward pass: memory of one block at a
        time for about a third more work. None where a model has no blocks, so that asking for it is an error.
      unbiased_variance: whether BatchNorm's running variance averages unbiased variances, as torch's does, or biased
        ones, as Flax's.
      train: BatchNorm uses and updates batch statistics. Set by the model for each forward pass.
      conv_init: initializer of the kernels of `conv`. Set by the model.
    """

    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    axis_name: str | None = None
    convolution: Callable[..., jax.Array] = convolution
    remat: bool | None = False
    unbiased_variance: bool = True
    train: bool = False
    conv_init: Initializer = torch_default_kernel

    @property
    def dtypes(self) -> dict[str, Any]:
        """`dtype` and `param_dtype`, as keyword arguments of Flax's own layers."""
        return {"dtype": self.dtype, "param_dtype": self.param_dtype}

    def replace(self, **options: Any) -> Layers:
        """Returns a copy with other values of these attributes."""
        return dataclasses.replace(self, **options)

    def conv(
        self,
        x: jax.Array,
        features: int,
        size: int,
        stride: int = 1,
        *,
        name: str,
        use_bias: bool = False,
        groups: int = 1,
        kernel_init: Initializer | None = None,
    ) -> jax.Array:
        """Applies a square convolution with torch's symmetric padding, size // 2, and zero initial biases.

        [batch, height, width, channels] to [batch, ceil(height / stride), ceil(width / stride), features].
        """
        layer = nn.Conv(
            features,
            (size, size),
            stride,
            padding=size // 2,
            use_bias=use_bias,
            feature_group_count=groups,
            kernel_init=kernel_init or self.conv_init,
            conv_general_dilated=self.convolution,
            name=name,
            **self.dtypes,
        )
        return layer(x)

    def norm(self, x: jax.Array, *, name: str, momentum: float = 0.9) -> jax.Array:
        """Applies BatchNorm over the last axis, with torch's epsilon.

        Flax's momentum is 1 - torch's: 0.9 is torch's default of 0.1.
        """
        layer = BatchNorm(
            train=self.train,
            momentum=momentum,
            epsilon=1e-5,
            axis_name=self.axis_name,
            unbiased_variance=self.unbiased_variance,
            name=name,
            **self.dtypes,
        )
        return layer(x)

    def layer_norm(self, x: jax.Array, *, name: str, epsilon: float) -> jax.Array:
        """Applies LayerNorm over the last axis."""
        return nn.LayerNorm(epsilon=epsilon, name=name, **self.dtypes)(x)

    def dense(
        self,
        x: jax.Array,
        features: int,
        *,
        name: str,
        use_bias: bool = True,
        kernel_init: Initializer | None = None,
        bias_init: Initializer | None = None,
    ) -> jax.Array:
        """Applies a linear layer, [..., inputs] to [..., features]; initialized as torch.nn.Linear by default."""
        layer = nn.Dense(
            features,
            use_bias=use_bias,
            kernel_init=kernel_init or torch_default_kernel,
            bias_init=bias_init or torch_default_bias(x.shape[-1]),
            name=name,
            **self.dtypes,
        )
        return layer(x)

    def logits(
        self,
        x: jax.Array,
        num_classes: int,
        *,
        name: str,
        kernel_init: Initializer | None = None,
        bias_init: Initializer | None = None,
    ) -> jax.Array:
        """Applies `dense`, [batch, inputs] to [batch, num_classes], and returns float32 at least."""
        return promote_to_float32(self.dense(x, num_classes, name=name, kernel_init=kernel_init, bias_init=bias_init))

    def patch_embed(self, x: jax.Array, features: int, side: int, *, name: str) -> jax.Array:
        """Applies one linear layer to every patch of `side` x `side` pixels, as a convolution whose stride is its size.

        [batch, height, width, channels] to [batch, height / side, width / side, features]; initialized as
        torch.nn.Conv2d.
        """
        layer = nn.Conv(
            features,
            (side, side),
            side,
            padding=0,
            kernel_init=torch_default_kernel,
            bias_init=torch_default_bias(side * side * x.shape[-1]),
            conv_general_dilated=self.convolution,
            name=name,
            **self.dtypes,
        )
        return layer(x)

    def maybe_remat(self, block_cls: Any) -> Any:
        """Returns the block class, wrapped in `nn.remat` if `remat` is set."""
        return nn.remat(block_cls) if self.remat else block_cls


# What callers may set on any network; `train` and `conv_init` are the model's own.
OPTIONS = ("dtype", "param_dtype", "axis_name", "convolution", "remat", "unbiased_variance")


def layers_of(module: Any) -> Layers:
    """Returns the layer options of a network.

    A network without the attribute `layers` may have plain attributes of the same names (`dtype`, `axis_name`, ...);
    options that it lacks have their default, and `remat` is None.
    """
    if _has_layers(module):
        layers: Layers = module.layers
        return layers
    return Layers(**{"remat": None, **{name: getattr(module, name) for name in _plain_options(module)}})


def with_options(module: Any, **options: Any) -> Any:
    """Returns a copy of a network with other layer options.

    >>> from switokd_jax import models
    >>> with_options(models.create("resnet8", num_classes=10), remat=True).layers.remat
    True

    Args:
      module: a network, with an attribute `layers` or with plain attributes as in `layers_of`.
      **options: options of `OPTIONS`. Those that a network without `layers` lacks do not apply to it.

    Raises:
      ValueError: if `remat=True` is asked of a network without blocks.
    """
    layers = layers_of(module)
    if layers.remat is None and options.pop("remat", False):
        raise ValueError(f"{type(module).__name__} has no blocks to compute again; set remat to False")
    if _has_layers(module):
        return module.clone(layers=layers.replace(**options))
    return module.clone(**{name: options[name] for name in _plain_options(module) if name in options})


def _has_layers(module: Any) -> bool:
    return isinstance(getattr(module, "layers", None), Layers)


def _plain_options(module: Any) -> list[str]:
    """Returns the options that are fields of the module itself."""
    return [field.name for field in dataclasses.fields(module) if field.name in OPTIONS]


def sow_feature(module: nn.Module, name: str, x: jax.Array) -> jax.Array:
    """Records x as the intermediate feature `name` (`sow`) and exposes its gradient to Grad-CAM (`perturb`).

    Use the returned value from here on. There is no cost when neither is requested. All models name their stages
    'stage1', 'stage2', ... and the input of their classifier 'pooled'.
    """
    module.sow("intermediates", name, x)
    # The variables that `init` returns go into checkpoints, PyTorch's included: no perturbations among them.
    return x if module.is_initializing() else module.perturb(name, x)


def global_avg_pool(module: nn.Module, x: jax.Array) -> jax.Array:
    """Averages [batch, height, width, channels] to [batch, channels], recorded as the feature 'pooled'."""
    return sow_feature(module, "pooled", jnp.mean(x, axis=(1, 2)))


def dropout(module: nn.Module, x: jax.Array, rate: float, *, train: bool) -> jax.Array:
    """Zeroes the fraction `rate` of [batch, features] in training and scales up the rest.

    Every example draws by its position in the global batch, so the mask is the same on any device count. The train
    step passes the positions in the collection 'batch'.
    """
    if not train:
        return x
    key = module.make_rng("dropout")
    assert module.scope is not None  # A module that computes is bound.
    # The root is another module where this one is a branch.
    positions = module.scope.root.get_variable("batch", "positions", jnp.arange(x.shape[0], dtype=jnp.int32))
    bits = jax.vmap(lambda i: jax.random.bits(jax.random.fold_in(key, i), x.shape[1:], jnp.uint32))(positions)
    # Integers, because uniform draws in float64 are other numbers than in float32.
    keep = bits >= jnp.uint32(round(rate * 2**32))
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros((), x.dtype))
