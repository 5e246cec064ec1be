"""Configs: `default()` as users change it, `parse()` as the code uses it. ConfigDict stops here."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_dict, config_flags

from switokd_jax import config_fields
from switokd_jax.errors import UserError, did_you_mean
from switokd_jax.methods import METHODS

__all__ = ["Config", "default", "network", "parse"]


class AdaptiveOrNumber(abc.ABC):
    """Type of the fields that hold 'adaptive' or a number."""

    @abc.abstractmethod
    def __str__(self) -> str: ...


for _kind in (str, int, float):
    AdaptiveOrNumber.register(_kind)


class _AdaptiveOrNumberParser(flags.ArgumentParser[Any]):
    """Text of the command line to a number where it is one, so that config files and flags compare equal."""

    def parse(self, argument: Any) -> Any:
        """A float, or the argument as it is; `parse` below judges it."""
        try:
            return float(argument)
        except ValueError:
            return argument


config_flags.register_flag_parser_for_type(AdaptiveOrNumber, _AdaptiveOrNumberParser())


@dataclasses.dataclass(frozen=True)
class NetworkConfig:
    """One network and how it is optimised.

    Attributes:
      model: a name of `models.MODELS`.
      optimizer: 'sgd' (torch semantics), 'adam' (decay is L2 in the gradient, as torch's), 'adamw'.
      learning_rate: at the start, or after the warm-up.
      momentum: of SGD.
      weight_decay: L2 coefficient (adamw: decoupled).
      schedule: 'multistep', 'cosine' (to 0 at the end of the run) or 'constant', on the global step.
      milestones: epochs, from 1: from the first step of each on, the rate is multiplied by `decay`.
      decay: see milestones.
      warmup_epochs: the rate rises linearly from 0 over these epochs.
      label_smoothing: 0 <= s < 1.
      clip_norm: largest global norm of the gradient; 0 clips nothing.
      ema: decay of the averaged weights that are evaluated in place of the last ones; 0 keeps none.
      decay_bn_bias: whether BatchNorm's scale and bias and all other biases decay too, as in the public code.
      init_from: 'WORKDIR:NAME@best', 'WORKDIR:NAME@latest', or a .pth, .pth.tar, .pt or .safetensors file.
      frozen: evaluation mode, no updates.
      remat: keep the inputs of blocks only and compute them again in the backward pass: less memory, more work.
    """

    model: str = config_fields.text("resnet20")
    optimizer: str = config_fields.choice("sgd", "sgd", "adam", "adamw")
    learning_rate: float = config_fields.number(0.1, low=0.0)
    momentum: float = config_fields.number(0.9, low=0.0, high=1.0)
    weight_decay: float = config_fields.number(5e-4, low=0.0)
    schedule: str = config_fields.choice("multistep", "multistep", "cosine", "constant")
    milestones: tuple[Any, ...] = config_fields.sequence()
    decay: float = config_fields.number(0.1, above=0.0)
    warmup_epochs: float = config_fields.number(0.0, low=0.0)
    label_smoothing: float = config_fields.number(0.0, low=0.0, high=0.999)
    clip_norm: float = config_fields.number(0.0, low=0.0)
    ema: float = config_fields.number(0.0, low=0.0, high=0.999999)
    decay_bn_bias: bool = config_fields.boolean(True)
    init_from: str = config_fields.text()
    frozen: bool = config_fields.boolean(False)
    remat: bool = config_fields.boolean(False)


@dataclasses.dataclass(frozen=True)
class TopologyConfig:
    """See `switokd_jax.topology`; each kind reads its own fields."""

    kind: str = config_fields.choice("pair", "pair", "star", "chain", "complete", "custom")
    teachers: tuple[Any, ...] = config_fields.sequence(("teacher",))
    students: tuple[Any, ...] = config_fields.sequence(("student",))
    names: tuple[Any, ...] = config_fields.sequence()
    edges: tuple[Any, ...] = config_fields.sequence()
    relay: str = config_fields.choice("pause", "pause", "learn")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where the images come from.

    Attributes:
      name: 'digits', 'tiny_imagenet_200', any other TFDS image-classification set, or 'folder'.
      dir: TFDS's data_dir, '' for its default; for 'folder' the one with train/CLASS/*.png and test/CLASS/*.png.
      augment: augmentation in training; False switches off the transforms and random resized crops.
      transforms: names of `data.transforms.TRANSFORMS`, applied in this order in every training step.
      image_size: images of any size become squares of so many pixels a side: random resized crops in training, the
        centre otherwise; 0 for sets whose images have one size. Streams only.
      train_examples: a stratified choice of so many training images, the same in every run; 0 for all.
      validation_fraction: stratified share of the training split that is held out, fixed by the seed.
      pipeline: 'resident' (the whole set as uint8 on the device), or 'stream' (read and decoded on the way, by Grain).
      workers: processes that read a stream; 0 for a thread.
    """

    name: str = config_fields.text("digits")
    dir: str = config_fields.text()
    augment: bool = config_fields.boolean(True)
    transforms: tuple[str, ...] = config_fields.sequence(("random_crop_and_flip",))
    train_examples: int = config_fields.integer(0, low=0)
    validation_fraction: float = config_fields.number(0.0, low=0.0, high=0.9)
    image_size: int = config_fields.integer(0, low=0)
    pipeline: str = config_fields.choice("resident", "resident", "stream")
    workers: int = config_fields.integer(4, low=0)


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """Attributes:

    every: epochs between two saves of the whole state; 0 saves at the end only.
    keep: how many of them stay.
    keep_every_epochs: besides, one each so many epochs stays for good; 0 for none.
    on_corrupt: what to do where the newest one is damaged: 'fallback' to the newest intact one, or 'stop'.
    """

    every: float = config_fields.number(1.0, low=0.0)
    keep: int = config_fields.integer(2, low=1)
    keep_every_epochs: int = config_fields.integer(0, low=0)
    on_corrupt: str = config_fields.choice("fallback", "fallback", "stop")


@dataclasses.dataclass(frozen=True)
class LogConfig:
    """Attributes:

    every: steps between two fetches of the metrics from the device.
    tensorboard: write TensorBoard events (imports TensorFlow).
    wandb: log to this Weights & Biases project (pip install wandb); '' for none.
    progress: print progress.
    profile: write a trace of the first three steps into WORKDIR/profile; see docs/performance.md.
    """

    every: int = config_fields.integer(50, low=1)
    tensorboard: bool = config_fields.boolean(True)
    wandb: str = config_fields.text()
    progress: bool = config_fields.boolean(True)
    profile: bool = config_fields.boolean(False)


@dataclasses.dataclass(frozen=True)
class Config:
    """A whole run. `networks` and `hyperparameters` are filled by `parse`.

    steps_per_call: largest number of steps that the devices take without the host; a stream is sent step by step.
    gradient_accumulation: parts of a batch that are computed one after another: memory for one part, a forward pass
      more. Decisions, losses and the optimizer's step are those of the whole batch, BatchNorm's statistics a part's.
    sharding: 'fsdp' splits parameters, their averages and optimizer states over the devices; 'replicated' does not.
    on_nonfinite: once a loss or gradient is not finite, 'stop' the run, or 'skip': all networks stay as they were.
    precision: of float32 products on accelerators; 'default' is the backend's (TF32 on GPUs, bfloat16 on TPUs).
    deterministic: on a GPU, the same bits from every start, at some cost in speed; a CPU or TPU gives them anyway.
    """

    seed: int = config_fields.integer(0, low=0)
    epochs: float = config_fields.number(20.0, above=0.0)
    steps: int = config_fields.integer(0, low=0)
    batch_size: int = config_fields.integer(64, low=1)
    steps_per_call: int = config_fields.integer(10, low=1)
    gradient_accumulation: int = config_fields.integer(1, low=1)
    eval_every: float = config_fields.number(1.0, above=0.0)
    dtype: str = config_fields.choice("float32", "float32", "bfloat16", "float64")
    precision: str = config_fields.choice("default", "default", "tensorfloat32", "float32")
    deterministic: bool = config_fields.boolean(False)
    on_nonfinite: str = config_fields.choice("stop", "stop", "skip")
    method: str = config_fields.key("switokd", METHODS)
    parallelism: str = config_fields.choice("jit", "jit", "pmap")
    sharding: str = config_fields.choice("replicated", "replicated", "fsdp")
    batch_norm: str = config_fields.choice("global", "global", "local")
    topology: TopologyConfig = dataclasses.field(default_factory=TopologyConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
    log: LogConfig = dataclasses.field(default_factory=LogConfig)
    networks: Mapping[str, NetworkConfig] = dataclasses.field(default_factory=dict)
    hyperparameters: Any = None


def network(**changes: Any) -> ConfigDict:
    """The fields of one network with their defaults, changed as given."""
    config = ConfigDict(config_fields.defaults(NetworkConfig))
    for name, value in changes.items():
        if name not in config:
            raise UserError(f"network field {name!r} is not a field; {did_you_mean(name, config)}")
        config[name] = value
    return config


def default() -> ConfigDict:
    """A teacher and a student on digits by SwitOKD; every config starts here and changes a few lines."""
    config = ConfigDict(config_fields.defaults(Config))
    for name, method in METHODS.items():
        config[name] = ConfigDict(
            {
                key: config_dict.FieldReference(value, field_type=AdaptiveOrNumber)
                if value == config_fields.ADAPTIVE
                else value
                for key, value in config_fields.defaults(method.hyperparameters).items()
            }
        )
    config.networks = ConfigDict()
    config.networks.teacher = network(model="wrn_16_2")
    config.networks.student = network(model="wrn_10_1")
    return config


def parse(config: ConfigDict | Mapping[str, Any]) -> Config:
    """Validates a config once and freezes it.

    Raises:
      ConfigError: one line that names the first field that cannot be used.
    """
    raw = config.to_dict() if isinstance(config, ConfigDict) else dict(config)
    networks, blocks = raw.pop("networks", {}), {name: raw.pop(name, {}) for name in METHODS}
    known = [*config_fields.config_fields(Config), "networks", *METHODS]
    for name in raw:
        if name not in known:
            raise UserError(f"config.{name} is not a field; {did_you_mean(name, known)}")
    parsed = config_fields.from_mapping(Config, raw, "config")
    hyperparameters = {
        name: config_fields.from_mapping(METHODS[name].hyperparameters, block, f"config.{name}")
        for name, block in blocks.items()
    }
    if not isinstance(networks, Mapping):
        raise UserError(f"config.networks is {networks!r}; it has a block of fields for each network")
    if not networks:
        raise UserError("config.networks is empty; add config.networks.<name> = config.network(model=...)")
    made = {
        name: config_fields.from_mapping(NetworkConfig, block, f"config.networks.{name}")
        for name, block in networks.items()
    }
    for name, block in made.items():
        if bad := [m for m in block.milestones if isinstance(m, bool) or not isinstance(m, int | float) or m < 1]:
            raise UserError(f"config.networks.{name}.milestones holds {bad[0]!r}; epochs are numbers from 1 on")
    if parsed.batch_norm == "local" and parsed.parallelism != "pmap":
        raise UserError("config.batch_norm is 'local', which needs config.parallelism = 'pmap'")
    if parsed.sharding == "fsdp" and parsed.parallelism != "jit":
        raise UserError("config.sharding is 'fsdp', which needs config.parallelism = 'jit'")
    return dataclasses.replace(parsed, networks=made, hyperparameters=hyperparameters[parsed.method])
