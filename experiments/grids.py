"""The grid of a table: settings, arms and seeds, and the jobs of their combinations."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from switokd_jax import config as configs
from switokd_jax.analysis.jobs import Job
from switokd_jax.cli import config_module
from switokd_jax.data.sampling import steps_per_epoch
from switokd_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class DataSize:
    """Size of a data set, for `--plan` and the notes: the data set itself need not be on this machine.

    Attributes:
      train: number of training images.
      shape: of an image, (height, width, channels).
      classes: number of classes.
    """

    train: int
    shape: tuple[int, int, int]
    classes: int


RESULTS = Path(__file__).parents[1] / "results"
NUM_ANCHORS = 4  # teacher checkpoints that RCO learns from in turn, equally spaced

DATA_SIZES = {
    "digits": DataSize(1437, (8, 8, 1), 10),
    "cifar10": DataSize(50_000, (32, 32, 3), 10),
    "cifar100": DataSize(50_000, (32, 32, 3), 100),
    "tiny_imagenet_200": DataSize(100_000, (64, 64, 3), 200),
    "imagenet2012": DataSize(1_281_167, (224, 224, 3), 1000),
}


@dataclasses.dataclass(frozen=True)
class Arm:
    """One way to train the networks of a setting.

    Attributes:
      flags: config fields and their values, 'FIELD=VALUE' without `--config.`.
      config: a config file that replaces the setting's.
      offline: whether the network `teacher` is frozen, with the parameters that it has at the end of the arm 'vanilla'
        with the same seed.
      anchored: whether the student learns from `NUM_ANCHORS` checkpoints of that teacher in turn (RCO).
    """

    flags: tuple[str, ...] = ()
    config: str = ""
    offline: bool = False
    anchored: bool = False


@dataclasses.dataclass(frozen=True)
class Setting:
    """Networks on a data set, trained in several ways.

    Attributes:
      name: in the table and in names of folders.
      config: the config file.
      arms: by name.
      flags: of all arms, as in `Arm`.
      epochs: replaces the config's; milestones are scaled with it.
      published: top-1 of the best test epoch, percent, by arm and network.
      keeps_results: whether `results/NAME` in the repository keeps every result, for other machines and for the docs.
    """

    name: str
    config: str
    arms: Mapping[str, Arm]
    flags: tuple[str, ...] = ()
    epochs: float | None = None
    published: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)
    keeps_results: bool = False


@dataclasses.dataclass(frozen=True)
class GridPoint:
    """The combination that one job of a grid trains."""

    setting: Setting
    arm: str
    seed: int


ONLINE: dict[str, Arm] = {name: Arm((f"method={name}",)) for name in ("vanilla", "dml", "kdcl", "switokd", "uniokd")}
KDCL: dict[str, Arm] = {
    "kdcl_naive": Arm(("method=kdcl", "kdcl.target=naive")),
    "kdcl_linear": Arm(("method=kdcl", "kdcl.target=linear")),
    "kdcl_general": Arm(("method=kdcl", "kdcl.target=general", "data.validation_fraction=0.1")),
}
OFFLINE: dict[str, Arm] = {
    **{name: Arm((f"method={name}",), offline=True) for name in ("kd", "dkd", "dist", "at", "fitnet", "crd", "shake")},
    "rco": Arm(("method=rco",), offline=True, anchored=True),
}


def jobs(
    settings: Iterable[Setting],
    arms: Sequence[str],
    seeds: Iterable[int],
    folder: Path,
    epochs: float | None = None,
    flags: Sequence[str] = (),
) -> dict[Job, GridPoint]:
    """Builds the jobs of a grid, each with its combination; seeds are the outer loop, so that a table fills evenly.

    Args:
      settings: of the grid.
      arms: names of those to run; all if empty. Offline arms add 'vanilla', which trains their teacher.
      seeds: of every arm.
      folder: of all runs.
      epochs: replaces the settings' and the configs'.
      flags: flags of main for all runs, with `--config.`.

    Raises:
      UserError: naming an arm that no setting has, or one that needs more epochs.
    """
    settings = [*settings]
    known = {name for setting in settings for name in setting.arms}
    if unknown := [name for name in arms if name not in known]:
        raise UserError(f"--arms {unknown[0]!r} is none of {', '.join(sorted(known))}")
    points_by_job = {}
    for seed in seeds:
        for setting in settings:
            names = [name for name in setting.arms if not arms or name in arms]
            if any(setting.arms[name].offline for name in names):
                names = ["vanilla", *(name for name in names if name != "vanilla")]
            for name in names:
                point = GridPoint(setting, name, seed)
                points_by_job[_job(point, folder, epochs, flags)] = point
    return points_by_job


def _job(point: GridPoint, folder: Path, epochs: float | None, extra_flags: Sequence[str]) -> Job:
    setting, arm = point.setting, point.setting.arms[point.arm]
    config = arm.config or setting.config
    flags = [f"seed={point.seed}", "log.progress=False", "log.tensorboard=False", *setting.flags, *arm.flags]
    if num_epochs := epochs or setting.epochs:
        flags += _flags_for_epochs(config, flags, num_epochs)
    anchor_epochs = int(load(config, flags).epochs) // NUM_ANCHORS
    if arm.anchored and not anchor_epochs:
        raise UserError(
            f"arm {point.arm!r} learns from {NUM_ANCHORS} checkpoints of its teacher: it needs at least "
            f"--epochs={NUM_ANCHORS}; name other --arms without it"
        )
    if anchor_epochs and any(other.anchored for other in setting.arms.values()) and point.arm == "vanilla":
        flags.append(f"checkpoint.keep_every_epochs={anchor_epochs}")
    depends_on: tuple[str, ...] = ()
    if arm.offline:
        depends_on = (_name(dataclasses.replace(point, arm="vanilla")),)
        teacher = f"{(folder / depends_on[0]).resolve()}:teacher"
        version = "latest"
        if arm.anchored:
            c = load(config, flags)
            steps = steps_per_epoch(DATA_SIZES[c.data.name].train, c.batch_size) * anchor_epochs
            version = str(steps)
            anchors = (*(f"{teacher}@{steps * i}" for i in range(2, NUM_ANCHORS)), f"{teacher}@latest")
            flags += [f"rco.anchors={anchors}", f"rco.every={anchor_epochs}"]
        flags += ["networks.teacher.frozen=True", f"networks.teacher.init_from={teacher}@{version}"]
    name, all_flags = _name(point), (*(f"--config.{flag}" for flag in flags), *extra_flags)
    kept = RESULTS / setting.name / f"{name}.json" if setting.keeps_results and not epochs else None
    return Job(name, config, all_flags, depends_on, kept=kept)


def _name(point: GridPoint) -> str:
    return f"{point.setting.name}_{point.arm}_seed{point.seed}"


def _flags_for_epochs(config: str, flags: Sequence[str], epochs: float) -> list[str]:
    """Returns the flags that change the number of epochs of a recipe, and scale its milestones with it."""
    c = load(config, flags)
    milestones = {
        name: tuple(round(1 + (m - 1) * epochs / c.epochs, 3) for m in network.milestones)
        for name, network in c.networks.items()
    }
    return [
        f"epochs={epochs}",
        *(f"networks.{name}.milestones={values}" for name, values in milestones.items() if values),
    ]


def load(config: str, flags: Sequence[str]) -> ConfigDict:
    """Loads a config file, 'FILE' or 'FILE:ARGUMENT', and applies flags as main takes them."""
    path, _, argument = config.partition(":")
    c: ConfigDict = config_module(Path(path)).get_config(*([argument] if argument else []))
    for flag in flags:
        field, _, value = flag.removeprefix("--config.").partition("=")
        try:
            literal = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            literal = value
        with c.unlocked(), c.ignore_type():
            c.update_from_flattened_dict({field: literal})
    return c


def parse_config(job: Job) -> configs.Config:
    """Returns the checked config of a job.

    Raises:
      UserError: naming the job and the field that cannot be used.
    """
    try:
        return configs.parse(load(job.config, job.flags))
    except UserError as error:
        raise UserError(f"{job.name}: {error}") from None
