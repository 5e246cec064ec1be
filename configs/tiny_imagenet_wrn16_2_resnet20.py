"""Tiny-ImageNet, wrn_16_2 teaches resnet20: the paper's second pair.

Published (mean of 3 seeds, best test epoch): student 55.03 %, teacher 57.41 %. The recipe of this pair is not
published: this is the CIFAR-100 recipe, with the student at the teacher's rate.

python -m switokd_jax.main --config=configs/tiny_imagenet_wrn16_2_resnet20.py --workdir=runs/tiny_wrn
"""

from ml_collections import ConfigDict

from switokd_jax import config


def get_config() -> ConfigDict:
    c = config.default()
    c.data.name = "tiny_imagenet_200"
    c.epochs, c.batch_size = 299.0, 128
    c.networks.teacher = config.network(model="wrn_16_2", learning_rate=0.1, milestones=(140, 200, 250))
    c.networks.student = config.network(model="resnet20", learning_rate=0.1, milestones=(140, 200, 250))
    return c
