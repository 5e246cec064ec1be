"""CIFAR-100, offline distillation with the recipe of the usual benchmarks: a frozen teacher and a student.

Train the teacher first, or name a PyTorch checkpoint of it; --config.method=dkd and the other offline methods take the
same files.

python -m switokd_jax.main --config=configs/cifar100_offline_teacher.py --workdir=runs/cifar100_teacher
python -m switokd_jax.main --config=configs/cifar100_offline.py --workdir=runs/cifar100_kd
python -m switokd_jax.main --config=configs/cifar100_offline.py:resnet32x4,resnet8x4 --workdir=runs/cifar100_dkd \
    --config.method=dkd --config.networks.teacher.init_from=resnet32x4_vanilla.pth

The argument is TEACHER,STUDENT; without it a wrn_40_2 teaches wrn_16_2. As in the public code of DKD
(megvii-research/mdistiller) the weight b of DKD depends on the pair, and MobileNetV2 learns at a fifth of the rate.
"""

import re

from ml_collections import ConfigDict

from switokd_jax import config
from switokd_jax.errors import UserError

# b of DKD by teacher and student, in either form of a network; 8 for all others.
DKD_OTHERS = {
    ("resnet56", "resnet20"): 2.0,
    ("resnet110", "resnet32"): 2.0,
    ("wrn_40_2", "wrn_16_2"): 6.0,
    ("wrn_40_2", "wrn_40_1"): 6.0,
    ("vgg13", "vgg8"): 6.0,
    ("vgg13", "mobilenetv2_0.5"): 6.0,
}


def get_config(pair: str = "wrn_40_2,wrn_16_2") -> ConfigDict:
    match = re.fullmatch(r"([\w.]+),([\w.]+)", pair)
    if not match:
        raise UserError(f"--config argument {pair!r} is not TEACHER,STUDENT, as resnet32x4,resnet8x4")
    teacher, student = match.groups()
    c = config.default()
    c.method = "kd"
    c.dkd.others = DKD_OTHERS.get((teacher.removesuffix("_rd"), student.removesuffix("_rd")), 8.0)
    c.data.name = "cifar100"
    c.epochs, c.batch_size = 240.0, 64
    rate = 0.01 if student.startswith("mobilenetv2") else 0.05
    c.networks.teacher = config.network(model=teacher, frozen=True, init_from="runs/cifar100_teacher:teacher@best")
    c.networks.student = config.network(model=student, learning_rate=rate, milestones=(151, 181, 211))
    return c
