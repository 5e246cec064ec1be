"""A chain of three networks on digits, strongest first; no download.

The middle network is the student of the one above and the teacher of the one below.

python -m switokd_jax.main --config=configs/digits_chain3.py --workdir=runs/digits_chain3
"""

from ml_collections import ConfigDict

from switokd_jax import config


def get_config() -> ConfigDict:
    c = config.default()
    c.topology.kind = "chain"
    c.topology.names = ("large", "middle", "small")
    c.networks = ConfigDict()
    c.networks.large = config.network(model="wrn_16_2", milestones=(11, 16))
    c.networks.middle = config.network(model="wrn_16_1", milestones=(11, 16))
    c.networks.small = config.network(model="wrn_10_1", milestones=(11, 16))
    return c
