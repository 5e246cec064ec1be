"""A network of a run, read from its workdir and ready for images; the data set need not be there."""

from __future__ import annotations

import dataclasses
import json
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
from switokd_jax.interop.stablehlo import ModelInfo
from switokd_jax.workdir import provenance, restore


@dataclasses.dataclass(frozen=True, eq=False)
class TrainedNetwork:
    """Made by `read`.

    Attributes:
      facts: its name, model, classes and image shape.
      module: of `models.create`, in the run's dtype, or float32 where that was float64.
      variables: {'params', 'batch_stats'} float32.
      preprocess: how pixels become its inputs.
      resized: whether its images were cropped to their size (config.data.image_size), not that size by themselves.
    """

    facts: ModelInfo
    module: Any
    variables: Any
    preprocess: Preprocess
    resized: bool = False

    def logits(self, images: Any) -> jax.Array:
        """Images [batch, height, width, channels] uint8 -> [batch, classes] float32; traceable."""
        inputs = transforms.normalize(images, self.preprocess, self.module.dtype)
        made: jax.Array = self.module.apply(self.variables, inputs, train=False)
        return made.astype(jnp.float32)


def read_config(workdir: Path) -> configs.Config:
    """The config of a run.

    Raises:
      ConfigError: if there is none that can be read.
    """
    path = workdir / "config.json"
    try:
        return configs.parse(json.loads(path.read_text()))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"--workdir {workdir}: {path.name} cannot be read ({reason}); name a run's folder") from None


def read(workdir: str | Path, network: str, which: str = "best") -> TrainedNetwork:
    """Reads a network of a run.

    Args:
      workdir: of the run.
      network: its name there.
      which: 'best', 'latest', or a saved step.

    Raises:
      ConfigError: naming the folder, network or file at fault.
    """
    folder = Path(workdir).expanduser()
    config = read_config(folder)
    if network not in config.networks:
        raise UserError(f"--workdir {folder} has no network {network!r}; {did_you_mean(network, config.networks)}")
    spec, data = config.networks[network], provenance.read_dataset_info(folder)
    facts = ModelInfo(network, spec.model, tuple(data["classes"]), tuple(data["image_shape"]))
    dtype = jnp.bfloat16 if config.dtype == "bfloat16" else jnp.float32
    variables = restore.load_variables(f"{folder}:{network}@{which}")
    return TrainedNetwork(
        facts=facts,
        module=models.create(spec.model, len(facts.classes), dtype=dtype, param_dtype=jnp.float32),
        variables=jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), variables),
        preprocess=Preprocess.from_json(data["preprocess"]),
        resized=config.data.image_size > 0,
    )


def test_images(config: configs.Config, places: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Images of the test split of a run as its evaluation sees them.

    Args:
      config: of the run.
      places: from 0, in the order of the split.

    Returns:
      [n, height, width, channels] uint8 and labels [n].

    Raises:
      ConfigError: if the data set cannot be read, or has no such place.
    """
    dataset = load_dataset(config.data, config.seed)
    size = len(dataset.test)
    if beyond := [place for place in places if not 0 <= place < size]:
        raise UserError(f"test image {beyond[0]} is none of 0 to {size - 1}")
    spec = dataclasses.replace(config.data, workers=0)
    fed = make_loader(
        dataset.test.take(np.asarray(places)), dataset.image_spec, spec, config.seed, len(places), ProcessShard()
    )
    _, batch = next(fed.eval_batches())
    images, labels = resident.gather_batch(fed.device_data, batch)
    return np.asarray(images), np.asarray(labels)
