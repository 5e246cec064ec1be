"""CIFAR-100, wrn_16_10 teaches wrn_16_2 and mobilenet: the paper's 1T2S star, with the public code's recipe.

Published (table 7): mobilenet 64.62 %, wrn_16_2 75.02 %, wrn_16_10 77.33 %.
A teacher that both pairs pause stands still here; in the public script its momentum and weight decay move it on.

python -m switokd_jax.main --config=configs/cifar100_1t2s.py --workdir=runs/cifar100_1t2s
"""

from ml_collections import ConfigDict

from switokd_jax import config


def get_config() -> ConfigDict:
    c = config.default()
    c.data.name = "cifar100"
    c.epochs, c.batch_size = 269.0, 128
    c.topology.kind = "star"
    c.topology.teachers = ("teacher",)
    c.topology.students = ("student_wide", "student_mobile")
    c.networks = ConfigDict()
    c.networks.teacher = config.network(model="wrn_16_10", learning_rate=0.1, milestones=(140, 200, 250))
    c.networks.student_wide = config.network(model="wrn_16_2", learning_rate=0.1, milestones=(140, 200, 250))
    c.networks.student_mobile = config.network(
        model="mobilenet", optimizer="adam", learning_rate=0.01, weight_decay=1e-4, milestones=(140, 200, 250)
    )
    return c
