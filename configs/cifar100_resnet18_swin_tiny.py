"""CIFAR-100, resnet18 teaches a Swin transformer by UniOKD: a pair of the UniOKD paper, after its public code's script.

That script differs from UniOKD's others: temperature 2 in expert mode and 1 in learning mode. It also draws
RandAugment (2 of 14) before the crop, which is not here, and its Swin keeps 4 x 4 places in the last stage; so these
are not its published numbers' conditions to the letter.

python -m switokd_jax.main --config=configs/cifar100_resnet18_swin_tiny.py --workdir=runs/cifar100_swin
"""

from ml_collections import ConfigDict

from switokd_jax import config


def get_config() -> ConfigDict:
    c = config.default()
    c.method = "uniokd"
    c.uniokd.expert_temperature, c.uniokd.learning_temperature = 2.0, 1.0
    c.data.name = "cifar100"
    c.epochs, c.batch_size = 200.0, 512
    adam = {"optimizer": "adam", "learning_rate": 1e-4, "weight_decay": 0.0, "schedule": "cosine"}
    c.networks.teacher = config.network(model="resnet18_cifar", **adam)
    c.networks.student = config.network(model="swin_tiny", **adam)
    return c
