"""CIFAR-100, wrn_40_2 alone: the teacher of configs/cifar100_offline.py.

python -m switokd_jax.main --config=configs/cifar100_offline_teacher.py --workdir=runs/cifar100_teacher
"""

from ml_collections import ConfigDict

from switokd_jax import config


def get_config() -> ConfigDict:
    c = config.default()
    c.method = "vanilla"
    c.data.name = "cifar100"
    c.epochs, c.batch_size = 240.0, 64
    c.topology.kind = "complete"
    c.networks = ConfigDict()
    c.networks.teacher = config.network(model="wrn_40_2", learning_rate=0.05, milestones=(151, 181, 211))
    return c
