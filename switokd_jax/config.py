"""Configs: `default()` creates a ConfigDict for users to change, `parse()` the frozen `Config` for the code."""

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
from switokd_jax.optim import OPTIMIZERS, SCHEDULES, OptimizerSettings, ScheduleSettings
from switokd_jax.topology import TOPOLOGIES

__all__ = ["Config", "default", "network", "parse"]


class AdaptiveOrNumber(abc.ABC):
    """Type of the fields that hold 'adaptive' or a number.

    ml_collections selects a flag's parser by the type of the field's current value. Without this type, a config file
    that sets a number would make the flag refuse 'adaptive', and a flag's '0.5' would stay text in config.json.
    """

    @abc.abstractmethod
    def __str__(self) -> str: ...


for _type in (str, int, float):
    AdaptiveOrNumber.register(_type)


class _AdaptiveOrNumberParser(flags.ArgumentParser[Any]):
    """Converts text of the command line to a number if possible, so that config files and flags compare equal."""

    def parse(self, argument: Any) -> Any:
        """Returns a float, or the argument unchanged; `config.parse` validates it."""
        try:
            return float(argument)
        except ValueError:
            return argument


config_flags.register_flag_parser_for_type(AdaptiveOrNumber, _AdaptiveOrNumberParser())


def branch_nodes(network: str, count: int) -> tuple[str, ...]:
    """Names of the nodes that the branches of a network are."""
    return tuple(f"{network}_{i}" for i in range(1, count + 1))


@dataclasses.dataclass(frozen=True)
class NetworkConfig:
    """One network: its model, its optimization and its initial weights.

    Attributes:
      model: key of `models.MODELS`.
      optimizer: key of `optim.OPTIMIZERS`: 'sgd', 'adam' (L2 in the gradient) and 'adamw' as in torch; 'lars', 'lamb',
        'lion' and 'muon' (Adam on all but kernels) as in optax. The learning rate scales the final updates of all.
      learning_rate: highest learning rate, reached after the warm-up.
      momentum: momentum of 'sgd', 'lars' and 'muon'.
      nesterov: whether 'sgd' and 'lars' use Nesterov momentum; 'muon' always does.
      betas: decay rates of both moments for 'adam', 'adamw', 'lamb', 'lion' and 'muon' (its Adam part); () for the
        optimizer's own: (0.9, 0.999), for 'lion' (0.9, 0.99).
      weight_decay: coefficient of L2 regularization ('adamw', 'lamb', 'lion', 'muon': decoupled weight decay).
      schedule: key of `optim.SCHEDULES`, on the global step: 'multistep', 'constant'; 'cosine' and 'linear' from
        `learning_rate` to `final_learning_rate`; 'onecycle' (cosine) from a 25th of `learning_rate` up to it, and down.
      milestones: epochs, counted from 1, from whose first step on 'multistep' multiplies the learning rate by `decay`.
      decay: factor at each milestone.
      warmup_epochs: epochs in which the learning rate grows linearly from 0; for 'onecycle' the epochs of the rising
        phase, 0 for 30 % of the run.
      final_learning_rate: learning rate at the end of 'cosine', 'linear' and 'onecycle', at most `learning_rate`;
        0 for 'onecycle' means learning_rate / 250000.
      label_smoothing: 0 <= s < 1.
      clip_norm: largest global norm of the gradient; 0 for no clipping.
      ema: decay of an exponential moving average of the weights, which is then evaluated; 0 for none.
      ema_warmup: whether update t (from 1) has a decay of at most 1 - 1 / t, so that the first weights are forgotten at
        once, as in the public code of mean teachers (Tarvainen and Valpola 2017).
      decay_bn_bias: whether BatchNorm's scale and bias and all other biases decay, too, as in the public code.
      init_from: 'WORKDIR:NAME@best', 'WORKDIR:NAME@latest', a .pth, .pth.tar, .pt or .safetensors file, or weights of a
        library: 'timm:resnet18.a1_in1k', 'torchvision:ResNet18_Weights.IMAGENET1K_V1', 'hf:timm/resnet18.a1_in1k'.
      head: 'load' the classifier of `init_from`, or start with a 'new' one, for another number of classes.
      branches: number of branches, copies of the last stages and the classifier behind one shared trunk. Each is a node
        of the topology, NAME_1, NAME_2, ..., and is evaluated and saved as the network of trunk and branch.
      branch_from: first stage that each branch has for itself, such as 'stage2'; '' for the last one.
      trunk_gradient: the trunk of branches learns from the 'sum' of their gradients, or from the 'mean' (CL-ILR).
      frozen: whether the network runs in evaluation mode and is never updated.
      remat: whether only the inputs of blocks are stored and the rest is recomputed in the backward pass, which saves
        memory and costs time.
    """

    model: str = config_fields.text("resnet20")
    optimizer: str = config_fields.key("sgd", OPTIMIZERS)
    learning_rate: float = config_fields.number(0.1, low=0.0)
    momentum: float = config_fields.number(0.9, low=0.0, high=1.0)
    nesterov: bool = config_fields.boolean(False)
    betas: tuple[Any, ...] = config_fields.sequence()
    weight_decay: float = config_fields.number(5e-4, low=0.0)
    schedule: str = config_fields.key("multistep", SCHEDULES)
    milestones: tuple[Any, ...] = config_fields.sequence()
    decay: float = config_fields.number(0.1, above=0.0)
    warmup_epochs: float = config_fields.number(0.0, low=0.0, high=1e6)
    final_learning_rate: float = config_fields.number(0.0, low=0.0)
    label_smoothing: float = config_fields.number(0.0, low=0.0, high=0.999)
    clip_norm: float = config_fields.number(0.0, low=0.0)
    ema: float = config_fields.number(0.0, low=0.0, high=0.999999)
    ema_warmup: bool = config_fields.boolean(False)
    decay_bn_bias: bool = config_fields.boolean(True)
    init_from: str = config_fields.text()
    head: str = config_fields.choice("load", "load", "new")
    branches: int = config_fields.integer(1, low=1, high=64)
    branch_from: str = config_fields.text()
    trunk_gradient: str = config_fields.choice("sum", "sum", "mean")
    frozen: bool = config_fields.boolean(False)
    remat: bool = config_fields.boolean(False)

    def nodes(self, name: str) -> tuple[str, ...]:
        """Nodes of the topology that a network of this name computes: itself, or its branches.

        >>> NetworkConfig().nodes("student"), NetworkConfig(branches=2).nodes("student")
        (('student',), ('student_1', 'student_2'))
        """
        return (name,) if self.branches == 1 else branch_nodes(name, self.branches)

    @property
    def optimizer_settings(self) -> OptimizerSettings:
        """Arguments of the builder in `optim.OPTIMIZERS`."""
        return OptimizerSettings(
            momentum=self.momentum,
            nesterov=self.nesterov,
            betas=(self.betas[0], self.betas[1]) if self.betas else None,
            weight_decay=self.weight_decay,
            decay_all=self.decay_bn_bias,
        )

    def schedule_settings(self, steps_per_epoch: int, total_steps: int) -> ScheduleSettings:
        """Returns the arguments of the builder in `optim.SCHEDULES`, with epochs converted to steps."""
        return ScheduleSettings(
            learning_rate=self.learning_rate,
            total_steps=total_steps,
            warmup_steps=round(self.warmup_epochs * steps_per_epoch),
            # The step counter is int32; no run reaches a later milestone.
            milestones=tuple(
                min(round((milestone - 1) * steps_per_epoch), config_fields.MAX_INT32) for milestone in self.milestones
            ),
            decay=self.decay,
            final_learning_rate=self.final_learning_rate,
        )


@dataclasses.dataclass(frozen=True)
class TopologyConfig:
    """Topology of the networks; see `switokd_jax.topology`. Each kind uses some of the fields.

    Attributes:
      kind: key of `topology.TOPOLOGIES`: 'pair', 'star', 'chain', 'complete' or 'custom'.
      teachers: names of the teachers ('pair', 'star').
      students: names of the students ('pair', 'star').
      names: names of the networks, strongest first ('chain'); () for all networks ('complete', 'custom').
      edges: tuples (learner, source, gate or None, weight) ('custom').
      relay: 'pause' or 'learn': whether a middle network that is paused for its student is still updated with its
        other terms ('chain', 'custom').
    """

    kind: str = config_fields.key("pair", TOPOLOGIES)
    teachers: tuple[Any, ...] = config_fields.sequence(("teacher",))
    students: tuple[Any, ...] = config_fields.sequence(("student",))
    names: tuple[Any, ...] = config_fields.sequence()
    edges: tuple[Any, ...] = config_fields.sequence()
    relay: str = config_fields.choice("pause", "pause", "learn")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Data set and input pipeline.

    Attributes:
      name: key of `data.dataset.SOURCES`, such as 'digits' or 'folder', or the name of a TFDS image-classification set.
      dir: TFDS's data_dir, '' for its default; for 'folder' the folder of train/CLASS/*.png and test/CLASS/*.png.
      augment: augmentation in training; False switches off the transforms and random resized crops.
      transforms: names of `data.transforms.TRANSFORMS`, applied in this order in every training step.
      flip: whether training mirrors half of the images: 'on', 'off', or 'auto' for all but data sets of digits and
        letters, where a mirrored image is of another class.
      mix: names of `data.mixing.MIXINGS`, such as 'mixup(alpha=0.4)' and 'cutmix'; () for none. Each training image
        draws one of them, and is mixed with another image of its batch; their labels likewise. Only if `augment`.
      views: 'shared', or 'per_network': each network sees its own crops and transforms of the same images, keyed by
        (seed, epoch, index, network), as KDCL was published; or 'per_branch': each branch of a network as well, as PCL
        was; the trunk then runs on all of them.
      sampler: order of an epoch, 'shuffled', or 'class_pairs': two images of one class follow each other, so that a
        batch of even size holds whole pairs, as MCL was published. Only for 'resident'.
      image_size: side in pixels of the squares into which images of any size are cropped: random resized crops in
        training, the center in evaluation; 0 for data sets whose images have one size. Only for 'stream'.
      mean: of pixels between 0 and 1, one number for each channel; () for the data set's own constant.
      std: standard deviation, likewise; both or none.
      train_examples: size of a stratified subset of the training images, the same in every run; 0 for all.
      validation_fraction: stratified fraction of the training split that is held out, chosen by the seed.
      pipeline: 'resident' (the data set is kept as uint8 in device memory) or 'stream' (Grain reads and decodes the
        images during training).
      workers: number of processes that read a stream; 0 for a thread.
      test_split: name of the split that is reported, or of its folder; '' for 'test', of TFDS sets also 'validation'
        where there is no labeled 'test'. A data set without one reports the held-out part (`validation_fraction`).
      on_bad_image: what to do with an image that cannot be decoded: 'stop' the run, or 'skip' the image and list it in
        WORKDIR/skipped_images.txt. A skipped training image is replaced by the next one that can be decoded.
    """

    name: str = config_fields.text("digits")
    dir: str = config_fields.text()
    augment: bool = config_fields.boolean(True)
    transforms: tuple[str, ...] = config_fields.sequence(("random_crop_and_flip",))
    flip: str = config_fields.choice("auto", "auto", "on", "off")
    mix: tuple[str, ...] = config_fields.sequence(())
    views: str = config_fields.choice("shared", "shared", "per_network", "per_branch")
    sampler: str = config_fields.choice("shuffled", "shuffled", "class_pairs")
    mean: tuple[Any, ...] = config_fields.sequence()
    std: tuple[Any, ...] = config_fields.sequence()
    train_examples: int = config_fields.integer(0, low=0)
    validation_fraction: float = config_fields.number(0.0, low=0.0, high=0.9)
    image_size: int = config_fields.integer(0, low=0, high=8192)
    pipeline: str = config_fields.choice("resident", "resident", "stream")
    workers: int = config_fields.integer(4, low=0, high=1024)
    test_split: str = config_fields.text()
    on_bad_image: str = config_fields.choice("stop", "stop", "skip")


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """Checkpoints of the train state.

    Attributes:
      every: epochs between two checkpoints; 0 for one at the end only.
      keep: number of checkpoints to keep.
      keep_every_epochs: epochs between checkpoints that are kept forever in addition; 0 for none.
      on_corrupt: if the latest checkpoint is damaged, 'fallback' to the latest intact one, or 'stop'.
    """

    every: float = config_fields.number(1.0, low=0.0)
    keep: int = config_fields.integer(2, low=1)
    keep_every_epochs: int = config_fields.integer(0, low=0)
    on_corrupt: str = config_fields.choice("fallback", "fallback", "stop")


@dataclasses.dataclass(frozen=True)
class LogConfig:
    """Logging.

    Attributes:
      every: steps between two transfers of the metrics from the device.
      tensorboard: whether to write TensorBoard events.
      wandb: Weights & Biases project to log to (pip install wandb); '' for none.
      progress: whether to print progress.
      profile: whether to write a trace of the fourth to sixth step to WORKDIR/profile; see docs/performance.md.
    """

    every: int = config_fields.integer(50, low=1)
    tensorboard: bool = config_fields.boolean(True)
    wandb: str = config_fields.text()
    progress: bool = config_fields.boolean(True)
    profile: bool = config_fields.boolean(False)


@dataclasses.dataclass(frozen=True)
class Config:
    """One run. `parse` fills in `networks` and `hyperparameters`.

    Attributes:
      seed: seed of all random numbers.
      epochs: length of the run; fractions are allowed.
      steps: length of the run in steps; 0 to use `epochs`.
      batch_size: global batch size.
      steps_per_call: largest number of train steps per call of the devices; with a stream every call is one step.
      gradient_accumulation: number of microbatches that are computed one after another. It needs memory for one
        microbatch and one more forward pass. Decisions, losses and updates are those of the full batch; BatchNorm's
        statistics are those of a microbatch.
      eval_every: epochs between two evaluations.
      dtype: computation dtype; parameters are float32 at least.
      precision: precision of float32 matrix products on accelerators; 'default' is the backend's (TF32 on GPUs,
        bfloat16 on TPUs).
      deterministic: whether a GPU repeats a run bit for bit, at some cost in speed; CPUs and TPUs always do.
      on_nonfinite: what to do if a loss or gradient is not finite: 'stop' the run, or 'skip' the step for all networks.
      method: key of `methods.METHODS`.
      parallelism: 'jit', one program over all devices, or 'pmap', one for each device: the same numbers.
      sharding: 'replicated', or 'fsdp' to shard parameters, their averages and optimizer states over the devices.
      batch_norm: statistics over the 'global' batch, or 'local' to each device.
      running_variance: BatchNorm's running variance, which evaluation uses, averages the 'unbiased' variances of the
        batches, as torch's does, or the 'biased' ones, as Flax's.
      topology: see `TopologyConfig`.
      data: see `DataConfig`.
      checkpoint: see `CheckpointConfig`.
      log: see `LogConfig`.
      networks: `NetworkConfig` by name.
      hyperparameters: the hyperparameters of the method.
    """

    seed: int = config_fields.integer(0, low=0, high=2**32 - 1)
    epochs: float = config_fields.number(20.0, above=0.0, high=1e6)
    steps: int = config_fields.integer(0, low=0)
    batch_size: int = config_fields.integer(64, low=1, high=2**20)
    steps_per_call: int = config_fields.integer(10, low=1, high=10_000)
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
    running_variance: str = config_fields.choice("unbiased", "unbiased", "biased")
    topology: TopologyConfig = dataclasses.field(default_factory=TopologyConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
    log: LogConfig = dataclasses.field(default_factory=LogConfig)
    networks: Mapping[str, NetworkConfig] = dataclasses.field(default_factory=dict)
    hyperparameters: Any = None

    @property
    def network_of(self) -> dict[str, str]:
        """The network that computes each node of the topology: NAME itself, or its branches NAME_1, NAME_2, ..."""
        return {node: name for name, network in self.networks.items() for node in network.nodes(name)}


def network(**changes: Any) -> ConfigDict:
    """Returns the fields of one network with their defaults, except for `changes`.

    Raises:
      UserError: if a name in `changes` is not a field.
    """
    config = ConfigDict(config_fields.defaults(NetworkConfig))
    for name, value in changes.items():
        if name not in config:
            raise UserError(f"network field {name!r} is not a field; {did_you_mean(name, config)}")
        config[name] = value
    return config


def default() -> ConfigDict:
    """Returns the default config: SwitOKD with a teacher and a student on digits. Every config file starts from it."""
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
      UserError: one line that names the first field that cannot be used.
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
    network_configs = {
        name: config_fields.from_mapping(NetworkConfig, block, f"config.networks.{name}")
        for name, block in networks.items()
    }
    for name, block in network_configs.items():
        _check_network(f"config.networks.{name}", block)
        if duplicates := [node for node in block.nodes(name) if node != name and node in network_configs]:
            raise UserError(f"config.networks.{duplicates[0]} has the name of a branch of {name!r}; take another one")
    if parsed.batch_norm == "local" and parsed.parallelism != "pmap":
        raise UserError("config.batch_norm is 'local', which needs config.parallelism = 'pmap'")
    if parsed.sharding == "fsdp" and parsed.parallelism != "jit":
        raise UserError("config.sharding is 'fsdp', which needs config.parallelism = 'jit'")
    return dataclasses.replace(parsed, networks=network_configs, hyperparameters=hyperparameters[parsed.method])


def _check_network(path: str, network: NetworkConfig) -> None:
    """Checks fields whose values depend on each other or are tuples.

    Raises:
      UserError: naming the first field that cannot be used.
    """
    if bad := [m for m in network.milestones if not _is_number(m) or not 1 <= m < float("inf")]:
        raise UserError(f"{path}.milestones holds {bad[0]!r}; epochs are numbers from 1 on")
    if network.betas and (len(network.betas) != 2 or not all(_is_number(b) and 0 <= b < 1 for b in network.betas)):
        raise UserError(f"{path}.betas is {network.betas!r}; it must be () or two numbers of at least 0 and below 1")
    if network.branches > 1 and network.init_from:
        raise UserError(
            f"{path} has {network.branches} branches and init_from, and branches that start equal stay equal; set one "
            "of the two back to its default"
        )
    if network.branches == 1 and (network.branch_from or network.trunk_gradient != "sum"):
        raise UserError(
            f"{path} has one branch, so branch_from and trunk_gradient change nothing; set branches to 2, say"
        )
    if network.final_learning_rate > network.learning_rate:
        raise UserError(
            f"{path}.final_learning_rate is {network.final_learning_rate}, above its learning_rate "
            f"{network.learning_rate}; lower it"
        )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
