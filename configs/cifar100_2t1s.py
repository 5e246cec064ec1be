"""CIFAR-100, wrn_16_10 and wrn_16_2 teach mobilenet: the paper's 2T1S star, with the public code's recipe.

Published (table 7): mobilenet 65.03 %, wrn_16_2 71.73 %, wrn_16_10 77.07 %.

python -m switokd_jax.main --config=configs/cifar100_2t1s.py --workdir=runs/cifar100_2t1s
"""

from ml_collections import ConfigDict

from switokd_jax import config


def get_config() -> ConfigDict:
    c = config.default()
    c.data.name = "cifar100"
    c.epochs, c.batch_size = 269.0, 128
    c.topology.kind = "star"
    c.topology.teachers = ("teacher_wide", "teacher_thin")
    c.topology.students = ("student",)
    c.networks = ConfigDict()
    c.networks.teacher_wide = config.network(model="wrn_16_10", learning_rate=0.1, milestones=(140, 200, 250))
    c.networks.teacher_thin = config.network(model="wrn_16_2", learning_rate=0.1, milestones=(140, 200, 250))
    c.networks.student = config.network(
        model="mobilenet", optimizer="adam", learning_rate=0.01, weight_decay=1e-4, milestones=(140, 200, 250)
    )
    return c
