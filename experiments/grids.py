"""The grid behind a table: settings, arms and seeds, and the jobs that they are."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from switokd_jax import config as configs
from switokd_jax.analysis import job_runner
from switokd_jax.cli import config_module
from switokd_jax.data.sampling import steps_per_epoch
from switokd_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Images:
    """What `--plan` and the notes have to know of a data set that may not be there."""

    train: int
    shape: tuple[int, int, int]
    classes: int


ROUTE = 4  # checkpoints of its teacher that RCO goes through, equally far apart

IMAGES = {
    "digits": Images(1437, (8, 8, 1), 10),
    "cifar10": Images(50_000, (32, 32, 3), 10),
    "cifar100": Images(50_000, (32, 32, 3), 100),
    "tiny_imagenet_200": Images(100_000, (64, 64, 3), 200),
    "imagenet2012": Images(1_281_167, (224, 224, 3), 1000),
}


@dataclasses.dataclass(frozen=True)
class Arm:
    """One way to train the networks of a setting.

    Attributes:
      flags: what it differs in, as fields of the config without `--config.`.
      config: a config file in place of the setting's.
      taught: whether the network `teacher` is frozen at the end of the arm 'vanilla' with the same seed.
      route: whether it goes through `ROUTE` checkpoints of that arm (RCO).
    """

    flags: tuple[str, ...] = ()
    config: str = ""
    taught: bool = False
    route: bool = False


@dataclasses.dataclass(frozen=True)
class Setting:
    """Networks on a data set, trained in several ways.

    Attributes:
      name: in the table and in folders.
      config: the config file.
      arms: by name.
      flags: of all arms, as in `Arm`.
      epochs: of all runs in place of the config's; milestones move along.
      published: top-1 in percent of the best test epoch, by arm and network.
    """

    name: str
    config: str
    arms: Mapping[str, Arm]
    flags: tuple[str, ...] = ()
    epochs: float | None = None
    published: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Place:
    """Where in the grid a job stands."""

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
    **{name: Arm((f"method={name}",), taught=True) for name in ("kd", "dkd", "dist", "at", "fitnet", "crd")},
    "rco": Arm(("method=rco",), taught=True, route=True),
}


def jobs(
    settings: Iterable[Setting],
    arms: Sequence[str],
    seeds: Iterable[int],
    folder: Path,
    epochs: float | None = None,
    flags: Sequence[str] = (),
) -> dict[job_runner.Job, Place]:
    """The jobs of a grid, and where they stand in it; seeds in the outer loop, so that a table fills evenly.

    Raises:
      ConfigError: naming an arm that no setting has, or one that takes more epochs.
    """
    settings = [*settings]
    known = {name for setting in settings for name in setting.arms}
    if unknown := [name for name in arms if name not in known]:
        raise UserError(f"--arms {unknown[0]!r} is none of {', '.join(sorted(known))}")
    made = {}
    for seed in seeds:
        for setting in settings:
            wanted = [name for name in setting.arms if not arms or name in arms]
            if any(setting.arms[name].taught for name in wanted):
                wanted = ["vanilla", *(name for name in wanted if name != "vanilla")]
            for name in wanted:
                place = Place(setting, name, seed)
                made[_job(place, folder, epochs, flags)] = place
    return made


def _job(place: Place, folder: Path, epochs: float | None, more: Sequence[str]) -> job_runner.Job:
    setting, arm = place.setting, place.setting.arms[place.arm]
    config = arm.config or setting.config
    flags = [f"seed={place.seed}", "log.progress=False", "log.tensorboard=False", *setting.flags, *arm.flags]
    if length := epochs or setting.epochs:
        flags += _lasting(config, flags, length)
    stretch = int(load(config, flags).epochs) // ROUTE
    if arm.route and not stretch:
        raise UserError(
            f"arm {place.arm!r} goes through {ROUTE} checkpoints of its teacher: it takes at least --epochs={ROUTE}; "
            "name other --arms without it"
        )
    if stretch and any(other.route for other in setting.arms.values()) and place.arm == "vanilla":
        flags.append(f"checkpoint.keep_every_epochs={stretch}")
    after: tuple[str, ...] = ()
    if arm.taught:
        after = (_name(dataclasses.replace(place, arm="vanilla")),)
        teacher = f"{(folder / after[0]).resolve()}:teacher"
        first = "latest"
        if arm.route:
            c = load(config, flags)
            steps = steps_per_epoch(IMAGES[c.data.name].train, c.batch_size) * stretch
            first = str(steps)
            anchors = (*(f"{teacher}@{steps * i}" for i in range(2, ROUTE)), f"{teacher}@latest")
            flags += [f"rco.anchors={anchors}", f"rco.every={stretch}"]
        flags += ["networks.teacher.frozen=True", f"networks.teacher.init_from={teacher}@{first}"]
    return job_runner.Job(_name(place), config, (*(f"--config.{flag}" for flag in flags), *more), after)


def _name(place: Place) -> str:
    return f"{place.setting.name}_{place.arm}_seed{place.seed}"


def _lasting(config: str, flags: Sequence[str], epochs: float) -> list[str]:
    """Flags that bring a recipe to a number of epochs, its milestones with it."""
    c = load(config, flags)
    moved = {
        name: tuple(round(1 + (m - 1) * epochs / c.epochs, 3) for m in network.milestones)
        for name, network in c.networks.items()
    }
    return [f"epochs={epochs}", *(f"networks.{name}.milestones={each}" for name, each in moved.items() if each)]


def load(config: str, flags: Sequence[str]) -> ConfigDict:
    """A config file, 'FILE' or 'FILE:ARGUMENT', with flags as main takes them."""
    path, _, argument = config.partition(":")
    c: ConfigDict = config_module(Path(path)).get_config(*([argument] if argument else []))
    for flag in flags:
        field, _, value = flag.removeprefix("--config.").partition("=")
        try:
            read = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            read = value
        with c.unlocked(), c.ignore_type():
            c.update_from_flattened_dict({field: read})
    return c


def parsed(job: job_runner.Job) -> configs.Config:
    """The config of a job.

    Raises:
      ConfigError: naming the job and the field that cannot be used.
    """
    try:
        return configs.parse(load(job.config, job.flags))
    except UserError as error:
        raise UserError(f"{job.name}: {error}") from None
