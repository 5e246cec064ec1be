"""CIFAR-100, any pair of the UniOKD paper's convolutional networks, with the recipe of its public code's main.py.

python -m switokd_jax.main --config=configs/cifar100_uniokd.py --workdir=runs/uniokd
python -m switokd_jax.main --config=configs/cifar100_uniokd.py:wrn_40_2_rd,resnet32_rd --workdir=runs/uniokd_resnet32

The argument is TEACHER,STUDENT; without it the pair is that of main.py as it stands, wrn_40_2_rd and wrn_16_2_rd.
main.py imports RepDistiller's networks, so they end with `_rd` here. experiments/table_uniokd.py has the pairs and what
is known of their published accuracy. Published top-1 of wrn_40_2 and resnet32, student / teacher: UniOKD 73.69 / 76.90,
SwitOKD 73.59 / 74.68 (--config.method=switokd), DML 73.20 / 77.85 (dml), KDCL 72.94 / 77.49 (kdcl), each alone
71.28 / 76.60 (vanilla).
"""

import re

from ml_collections import ConfigDict

from switokd_jax import config
from switokd_jax.errors import UserError


def get_config(pair: str = "wrn_40_2_rd,wrn_16_2_rd") -> ConfigDict:
    match = re.fullmatch(r"([\w.]+),([\w.]+)", pair)
    if not match:
        raise UserError(f"--config argument {pair!r} is not TEACHER,STUDENT, as wrn_40_2_rd,resnet32_rd")
    teacher, student = match.groups()
    c = config.default()
    c.method = "uniokd"
    c.data.name = "cifar100"
    c.epochs, c.batch_size = 259.0, 64
    recipe = {"learning_rate": 0.05, "milestones": (140, 200, 240)}
    c.networks.teacher = config.network(model=teacher, **recipe)
    c.networks.student = config.network(model=student, **recipe)
    return c
