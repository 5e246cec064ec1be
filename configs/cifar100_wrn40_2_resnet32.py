"""CIFAR-100, wrn_40_2 teaches resnet32: a pair of the UniOKD paper, with the public UniOKD code's recipe.

Published top-1: UniOKD 73.69 / 76.90 (resnet32 / wrn_40_2), SwitOKD 73.59 / 74.68 (--config.method=switokd), DML
73.20 / 77.85 (dml), KDCL 72.94 / 77.49 (kdcl), each alone 71.28 / 76.60 (vanilla).

python -m switokd_jax.main --config=configs/cifar100_wrn40_2_resnet32.py --workdir=runs/cifar100_uniokd
"""

from ml_collections import ConfigDict

from switokd_jax import config


def get_config() -> ConfigDict:
    c = config.default()
    c.method = "uniokd"
    c.data.name = "cifar100"
    c.epochs, c.batch_size = 259.0, 64
    c.networks.teacher = config.network(model="wrn_40_2", learning_rate=0.05, milestones=(140, 200, 240))
    c.networks.student = config.network(model="resnet32", learning_rate=0.05, milestones=(140, 200, 240))
    return c
