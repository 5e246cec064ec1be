"""A trained network of a run, read from its workdir. Predictions from images need no data set."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from switokd_jax import config as configs
from switokd_jax import models
from switokd_jax.data import resident, transforms
from switokd_jax.data.dataset import load_dataset
from switokd_jax.data.loader import make_loader
from switokd_jax.data.normalization import Preprocess
from switokd_jax.data.sampling import ProcessShard
from switokd_jax.errors import UserError, did_you_mean
from switokd_jax.files import read_json
from switokd_jax.interop.stablehlo import ModelInfo
from switokd_jax.models.layers import layers_of
from switokd_jax.precision import module_dtypes
from switokd_jax.workdir import provenance, restore
from switokd_jax.workdir.layout import Workdir


@dataclasses.dataclass(frozen=True, eq=False)
class TrainedNetwork:
    """A trained network with all that it needs to classify images; returned by `read`.

    Attributes:
      model_info: its name, model, classes and image shape.
      module: the network of `models.create`, in the run's dtype (float32 if that was float64).
      variables: {'params', 'batch_stats'} float32.
      preprocess: scale and normalization of pixels.
      uses_centre_crop: True if the run cropped its images to config.data.image_size, so that images of any size are
        resized and cropped in the same way.
    """

    model_info: ModelInfo
    module: Any
    variables: Any
    preprocess: Preprocess
    uses_centre_crop: bool = False

    def logits(self, images: Any) -> jax.Array:
        """Computes logits [batch, classes] float32 of images [batch, height, width, channels] uint8.

        The function can be traced.
        """
        inputs = transforms.normalize(images, self.preprocess, layers_of(self.module).dtype)
        logits: jax.Array = self.module.apply(self.variables, inputs, train=False)
        return logits.astype(jnp.float32)


def read_config(workdir: Path) -> configs.Config:
    """Reads the config of a run.

    Raises:
      UserError: naming the file, if it cannot be read.
    """
    path = Workdir(workdir).config
    try:
        return configs.parse(read_json(path))
    except UserError as error:
        raise UserError(f"--workdir {workdir}: {path.name} cannot be read ({error}); name a run's folder") from None


def read(workdir: str | Path, network: str, version: str = "best") -> TrainedNetwork:
    """Reads a network of a run.

    Args:
      workdir: workdir of the run.
      network: name of the network in the run, or of a branch: 'student_1'.
      version: checkpoint to read: 'best', 'latest', or a saved step.

    Raises:
      UserError: naming the folder, network or file at fault.
    """
    folder = Path(workdir).expanduser()
    config = read_config(folder)
    if network not in config.network_of:
        raise UserError(f"--workdir {folder} has no network {network!r}; {did_you_mean(network, config.network_of)}")
    spec, data = config.networks[config.network_of[network]], provenance.read_dataset_info(Workdir(folder))
    model_info = ModelInfo(network, spec.model, tuple(data["classes"]), tuple(data["image_shape"]))
    dtype = "float32" if config.dtype == "float64" else config.dtype  # float64 has to be enabled in JAX
    try:
        module = models.create(spec.model, len(model_info.classes), **module_dtypes(dtype))
    except ValueError as error:
        raise UserError(
            f"--workdir {folder}: config.networks.{config.network_of[network]}.{error}; for a network of your own "
            "name the run's config file: --config=FILE"
        ) from None
    variables = restore.load_variables(folder, network, version)
    return TrainedNetwork(
        model_info=model_info,
        module=module,
        variables=jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), variables),
        preprocess=Preprocess.from_json(data["preprocess"]),
        uses_centre_crop=config.data.image_size > 0,
    )


def test_images(config: configs.Config, indices: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Loads images of the reported split of a run, preprocessed as for its evaluation.

    Args:
      config: config of the run.
      indices: positions in the split, from 0.

    Returns:
      Images [n, height, width, channels] uint8, and labels [n].

    Raises:
      UserError: if the data set cannot be read, or an index is out of range.
    """
    dataset = load_dataset(config.data, config.seed)
    split = dataset.test if len(dataset.test) else dataset.validation  # as the run reports
    size = len(split)
    if out_of_range := [index for index in indices if not 0 <= index < size]:
        raise UserError(f"test image {out_of_range[0]} does not exist; choose from 0 to {size - 1}")
    spec = dataclasses.replace(config.data, workers=0)
    loader = make_loader(
        split.take(np.asarray(indices)), dataset.image_spec, spec, config.seed, len(indices), ProcessShard()
    )
    with contextlib.closing(loader.eval_batches()) as batches:
        _, batch = next(batches)
    images, labels = resident.gather_batch(loader.device_data, batch)
    return np.asarray(images), np.asarray(labels)
