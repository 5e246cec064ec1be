"""CIFAR-10, wrn_16_8 teaches wrn_16_1: the paper's CIFAR-10 pair, with the public code's recipe.

Published (mean of 3 seeds, best test epoch): student 92.50 %, teacher 94.76 %.

python -m switokd_jax.main --config=configs/cifar10_wrn16_8_wrn16_1.py --workdir=runs/cifar10
"""

from ml_collections import ConfigDict

from switokd_jax import config


def get_config() -> ConfigDict:
    c = config.default()
    c.data.name = "cifar10"
    c.epochs, c.batch_size = 299.0, 128
    c.networks.teacher = config.network(model="wrn_16_8", learning_rate=0.1, milestones=(100, 150, 200))
    c.networks.student = config.network(model="wrn_16_1", learning_rate=0.1, milestones=(100, 150, 200))
    return c
