"""Two teachers, one student on digits (the paper's 2T1S star); no download.

python -m switokd_jax.main --config=configs/digits_2t1s.py --workdir=runs/digits_2t1s
"""

from ml_collections import ConfigDict

from switokd_jax import config


def get_config() -> ConfigDict:
    c = config.default()
    c.topology.kind = "star"
    c.topology.teachers = ("large", "middle")
    c.topology.students = ("small",)
    c.networks = ConfigDict()
    c.networks.large = config.network(model="wrn_16_2", milestones=(11, 16))
    c.networks.middle = config.network(model="wrn_16_1", milestones=(11, 16))
    c.networks.small = config.network(model="wrn_10_1", milestones=(11, 16))
    return c
