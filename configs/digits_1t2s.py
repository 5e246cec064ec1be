"""One teacher, two students on digits (the paper's 1T2S star); no download.

python -m switokd_jax.main --config=configs/digits_1t2s.py --workdir=runs/digits_1t2s
"""

from ml_collections import ConfigDict

from switokd_jax import config


def get_config() -> ConfigDict:
    c = config.default()
    c.topology.kind = "star"
    c.topology.teachers = ("large",)
    c.topology.students = ("middle", "small")
    c.networks = ConfigDict()
    c.networks.large = config.network(model="wrn_16_2", milestones=(11, 16))
    c.networks.middle = config.network(model="wrn_16_1", milestones=(11, 16))
    c.networks.small = config.network(model="wrn_10_1", milestones=(11, 16))
    return c
