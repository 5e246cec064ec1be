"""ImageNet-2012, resnet34 teaches resnet18: the paper's pair, with the public code's recipe.

Random resized crops of 224 pixels, decoded on the way; tested on the centre of the 50,000 validation images. TFDS
prepares the set from the archives that its licence asks you to fetch yourself:
https://www.tensorflow.org/datasets/catalog/imagenet2012, then
tfds build imagenet2012 --file_format=array_record --data_dir=FOLDER

python -m switokd_jax.main --config=configs/imagenet_resnet34_resnet18.py --workdir=runs/imagenet
"""

from ml_collections import ConfigDict

from switokd_jax import config


def get_config() -> ConfigDict:
    c = config.default()
    c.data.name, c.data.pipeline, c.data.image_size = "imagenet2012", "stream", 224
    c.data.workers = 16
    c.epochs, c.batch_size = 120.0, 512
    recipe = {"learning_rate": 0.1, "weight_decay": 1e-4, "milestones": (31, 61, 91)}
    c.networks.teacher = config.network(model="resnet34", **recipe)
    c.networks.student = config.network(model="resnet18", **recipe)
    return c
