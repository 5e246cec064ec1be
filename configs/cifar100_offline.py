"""CIFAR-100, offline distillation with the recipe of the usual benchmarks: a frozen wrn_40_2 teaches wrn_16_2.

Train the teacher first, or name a PyTorch checkpoint of it; --config.method=dkd and dist take the same files.

python -m switokd_jax.main --config=configs/cifar100_offline_teacher.py --workdir=runs/cifar100_teacher
python -m switokd_jax.main --config=configs/cifar100_offline.py --workdir=runs/cifar100_kd
"""

from ml_collections import ConfigDict

from switokd_jax import config


def get_config() -> ConfigDict:
    c = config.default()
    c.method = "kd"
    c.data.name = "cifar100"
    c.epochs, c.batch_size = 240.0, 64
    c.networks.teacher = config.network(model="wrn_40_2", frozen=True, init_from="runs/cifar100_teacher:teacher@best")
    c.networks.student = config.network(model="wrn_16_2", learning_rate=0.05, milestones=(151, 181, 211))
    return c
