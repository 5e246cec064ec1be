"""The paper's ablations of the switch, one by name, on configs/cifar100_wrn16_2_mobilenetv2.py's pair and recipe.

python -m switokd_jax.main --config=configs/cifar100_ablations.py:epsilon_1 --workdir=runs/epsilon_1

Names: epsilon_0 (the threshold's upper bound), epsilon_1 (its lower), threshold_X (a fixed delta),
always_learning, always_expert, gap_alone (a teacher is paused even where it is the worse one), temperature_X, alpha_X,
beta_X; without one it is the full method.
"""

from ml_collections import ConfigDict

from switokd_jax import config
from switokd_jax.errors import did_you_mean

ABLATIONS = {
    "epsilon_0": ("epsilon", 0.0),
    "epsilon_1": ("epsilon", 1.0),
    "threshold_0.2": ("threshold", 0.2),
    "threshold_0.4": ("threshold", 0.4),
    "threshold_0.6": ("threshold", 0.6),
    "threshold_0.8": ("threshold", 0.8),
    "always_learning": ("mode", "learning"),
    "always_expert": ("mode", "expert"),
    "gap_alone": ("require_better_teacher", False),
    "temperature_0.5": ("temperature", 0.5),
    "temperature_2": ("temperature", 2.0),
    "temperature_4": ("temperature", 4.0),
    "alpha_0.5": ("alpha", 0.5),
    "alpha_2": ("alpha", 2.0),
    "beta_0": ("beta", 0.0),
    "beta_0.5": ("beta", 0.5),
    "beta_2": ("beta", 2.0),
}


def get_config(ablation: str = "") -> ConfigDict:
    c = config.default()
    c.data.name = "cifar100"
    c.epochs, c.batch_size = 299.0, 128
    c.networks.teacher = config.network(model="wrn_16_2", learning_rate=0.1, milestones=(140, 200, 250))
    c.networks.student = config.network(model="mobilenetv2_0.5", learning_rate=0.01, milestones=(140, 200, 250))
    if ablation and ablation not in ABLATIONS:
        raise ValueError(f"no ablation {ablation!r}; {did_you_mean(ablation, ABLATIONS)}")
    if ablation:
        field, value = ABLATIONS[ablation]
        c.switokd[field] = value
    return c
