"""A chain of four networks on digits, strongest first; no download.

Two middle networks: with relay 'learn' each goes on learning from above while it waits for the one below
(the default, 'pause', lets it take no step).

python -m switokd_jax.main --config=configs/digits_chain4.py --workdir=runs/digits_chain4
"""

from ml_collections import ConfigDict

from switokd_jax import config


def get_config() -> ConfigDict:
    c = config.default()
    c.topology.kind = "chain"
    c.topology.names = ("large", "upper", "lower", "small")
    c.topology.relay = "learn"
    c.networks = ConfigDict()
    c.networks.large = config.network(model="wrn_16_2", milestones=(11, 16))
    c.networks.upper = config.network(model="wrn_16_1", milestones=(11, 16))
    c.networks.lower = config.network(model="resnet8", milestones=(11, 16))
    c.networks.small = config.network(model="wrn_10_1", milestones=(11, 16))
    return c
