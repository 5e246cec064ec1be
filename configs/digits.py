"""SwitOKD on scikit-learn's digits, a teacher and a student; no download.

python -m switokd_jax.main --config=configs/digits.py --workdir=runs/digits
"""

from ml_collections import ConfigDict

from switokd_jax import config


def get_config() -> ConfigDict:
    c = config.default()
    c.networks.teacher = config.network(model="wrn_16_2", milestones=(11, 16))
    c.networks.student = config.network(model="wrn_10_1", milestones=(11, 16))
    # 1,000 is published for CIFAR's maps. These have a sixteenth of the pixels, so that of a normalized map the squares
    # are 16 times as large.
    c.at.weight = 62.5
    return c
