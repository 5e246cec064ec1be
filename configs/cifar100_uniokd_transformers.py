"""CIFAR-100, any pair of the UniOKD paper's transformers and ResNet-18, with the recipe of its public code's train.py.

python -m switokd_jax.main --config=configs/cifar100_uniokd_transformers.py --workdir=runs/uniokd_swin
python -m switokd_jax.main --config=configs/cifar100_uniokd_transformers.py:swin_tiny,resnet18_cifar,200 \
    --workdir=runs/uniokd_resnet18

The argument is TEACHER,STUDENT[,EPOCHS]. train.py trains 400 epochs, its copy train_cifar100.py 200, and in both
ResNet-18 teaches Swin; in the paper's table Swin teaches ResNet-18. This script differs from the convolutional one:
temperature 2 in expert mode and 1 in learning mode, Adam, and RandAugment (2 of 14) before the crop.

These are not the conditions of the published numbers to the letter: RandAugment has torchvision's operations, that
script others, and its Swin keeps 4 x 4 places in the last stage.
"""

import re

from ml_collections import ConfigDict

from switokd_jax import config
from switokd_jax.errors import UserError


def get_config(pair: str = "resnet18_cifar,swin_tiny") -> ConfigDict:
    match = re.fullmatch(r"([\w.]+),([\w.]+)(?:,([1-9]\d*))?", pair)
    if not match:
        raise UserError(f"--config argument {pair!r} is not TEACHER,STUDENT[,EPOCHS], as swin_tiny,resnet18_cifar,200")
    teacher, student, epochs = match.groups(default="400")
    c = config.default()
    c.method = "uniokd"
    c.uniokd.expert_temperature, c.uniokd.learning_temperature = 2.0, 1.0
    c.data.name = "cifar100"
    c.data.transforms = ("rand_augment(2, magnitude=14)", "random_crop_and_flip")
    c.epochs, c.batch_size = float(epochs), 512
    recipe = {"optimizer": "adam", "learning_rate": 1e-4, "weight_decay": 0.0, "schedule": "cosine"}
    c.networks.teacher = config.network(model=teacher, **recipe)
    c.networks.student = config.network(model=student, **recipe)
    return c
