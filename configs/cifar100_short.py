"""All of CIFAR-100 in ten epochs, a comparison of methods that CPU cores can carry (experiments/table_cifar.py).

resnet14 teaches resnet8; 50,000 training images in batches of 128, SGD with Nesterov momentum, and one cosine with one
epoch of warmup for both networks. The learning rate comes from runs of three epochs by vanilla alone, on a tenth of the
training images that was held out (top-1 of resnet14 and resnet8 in percent): 31.9 and 27.1 at 0.1, 34.8 and 31.5 at
0.2, 35.9 and 32.3 at 0.4. It is 0.2, after which little is gained: a longer cosine favors lower rates, and losses of
several terms, too. Nothing is tuned for a method.

python -m switokd_jax.main --config=configs/cifar100_short.py --workdir=runs/cifar100_short
"""

from ml_collections import ConfigDict

from switokd_jax import config


def get_config() -> ConfigDict:
    c = config.default()
    c.data.name = "cifar100"
    c.epochs, c.batch_size, c.eval_every = 10.0, 128, 1.0
    recipe = {"learning_rate": 0.2, "nesterov": True, "schedule": "cosine", "warmup_epochs": 1.0}
    c.networks.teacher = config.network(model="resnet14", **recipe)
    c.networks.student = config.network(model="resnet8", **recipe)
    return c
