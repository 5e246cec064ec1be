"""A tenth of CIFAR-100 with small networks, to compare methods on two CPU cores (experiments/table_cifar.py).

5,000 of the 50,000 training images (50 a class), resnet14 teaches resnet8, 8 epochs; tested on all 10,000 test
images. The recipe is the public CIFAR-100 one cut to that length; nothing was tuned on these networks.

python -m switokd_jax.main --config=configs/cifar100_small.py --workdir=runs/cifar100_small
"""

from ml_collections import ConfigDict

from switokd_jax import config


def get_config() -> ConfigDict:
    c = config.default()
    c.data.name = "cifar100"
    c.data.train_examples = 5000
    c.epochs, c.batch_size, c.eval_every = 8.0, 64, 4.0
    c.networks.teacher = config.network(model="resnet14", learning_rate=0.05, milestones=(5, 7))
    c.networks.student = config.network(model="resnet8", learning_rate=0.05, milestones=(5, 7))
    return c
