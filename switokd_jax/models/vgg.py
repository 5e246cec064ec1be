"""VGG networks with BatchNorm for 32-pixel images.

Source: Simonyan and Zisserman 2014 (arXiv 1409.1556); convolutions have biases. vgg8 and vgg13 are those of the usual
distillation benchmarks (RepDistiller), with one linear layer on the pooled features. vgg16 has two more linear layers
of 512 features with dropout before it, which gives the 15.3M parameters of the UniOKD tables.
"""

from __future__ import annotations

from typing import Any, ClassVar

import jax
from flax import linen as nn

from switokd_jax.models.branches import Part
from switokd_jax.models.layers import Layers, dropout, global_avg_pool, kaiming_normal_fan_out, sow_feature

# Channels of the convolutions in each of the five blocks, by depth.
BLOCKS = {
    8: ((64,), (128,), (256,), (512,), (512,)),
    13: ((64, 64), (128, 128), (256, 256), (512, 512), (512, 512)),
    16: ((64, 64), (128, 128), (256,) * 3, (512,) * 3, (512,) * 3),
}


class VGG(nn.Module):
    """VGG with BatchNorm for 32 pixels.

    Attributes:
      depth: 8, 13 or 16.
      num_classes: number of logits.
      layers: options of its layers; there is nothing to compute again with `remat`.
      part: stages that it consists of; the whole network unless it is the trunk or a branch of one with branches.
    """

    depth: int
    num_classes: int
    layers: Layers = Layers(remat=None)
    part: Part = Part()
    stage_count: ClassVar[int] = 5

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps images [batch, height, width, channels] to logits [batch, num_classes]."""
        layers = self.layers.replace(train=train, conv_init=kaiming_normal_fan_out)
        x = x.astype(layers.dtype)
        for stage in self.part.stages(self.stage_count):
            for i, features in enumerate(BLOCKS[self.depth][stage - 1]):
                # The names are indices of torch's Sequential, which counts convolution, norm and relu.
                x = layers.conv(x, features, 3, name=f"block{stage - 1}_{3 * i}", use_bias=True)
                x = nn.relu(layers.norm(x, name=f"block{stage - 1}_{3 * i + 1}"))
            x = sow_feature(self, f"stage{stage}", x)
            if stage < 4 or (stage == 4 and x.shape[1] >= 8):  # 8 of the 64 pixels of an image are left
                x = nn.max_pool(x, (2, 2), (2, 2))
        if not self.part.has_classifier:
            return x
        init: dict[str, Any] = {"kernel_init": nn.initializers.normal(0.01), "bias_init": nn.initializers.zeros_init()}
        x = global_avg_pool(self, x)
        if self.depth < 16:
            return layers.logits(x, self.num_classes, name="classifier", **init)
        for index in (1, 4):
            x = dropout(self, x, 0.5, train=train)
            x = nn.relu(layers.dense(x, 512, name=f"classifier_{index}", **init))
        return layers.logits(x, self.num_classes, name="classifier_6", **init)
