"""Tiny-ImageNet, resnet34 (3x3 stem) teaches mobilenetv2 1.4: the paper's pair, with the public code's recipe.

Published (mean of 3 seeds, best test epoch): student 58.71 %, teacher 63.31 %. The test images are the public
validation set.

python -m switokd_jax.main --config=configs/tiny_imagenet_resnet34_mobilenetv2.py --workdir=runs/tiny
"""

from ml_collections import ConfigDict

from switokd_jax import config


def get_config() -> ConfigDict:
    c = config.default()
    c.data.name = "tiny_imagenet_200"
    c.epochs, c.batch_size = 199.0, 128
    c.networks.teacher = config.network(model="resnet34_tiny", learning_rate=0.01, milestones=(100, 140, 180))
    c.networks.student = config.network(model="mobilenetv2_tiny_1.4", learning_rate=0.01, milestones=(100, 140, 180))
    return c
