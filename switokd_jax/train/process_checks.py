"""Checks that the processes of a run train the same run in the same workdir. A process on its own passes at once."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import jax

from switokd_jax.data.dataset import SOURCES
from switokd_jax.data.mixing import MIXINGS, get_mixings
from switokd_jax.data.transforms import TRANSFORMS, get_transforms
from switokd_jax.parallel.agreement import check_agreement, gather
from switokd_jax.topology import TOPOLOGIES
from switokd_jax.train.run_spec import RunSpec
from switokd_jax.workdir.layout import Workdir
from switokd_jax.workdir.resume import settings

SHARED_WORKDIR_TIMEOUT_S = 10.0  # network file systems show new files late
# Fields of the config that may differ between the processes of a run.
PER_PROCESS = ("data.dir", "data.workers", "log.progress", "log.tensorboard", "log.wandb")


def own_code(run: RunSpec) -> list[Any]:
    """What the run uses of registries to which users add."""
    config = run.config
    return [
        run.method.apply,
        TOPOLOGIES[config.topology.kind],
        *(type(module) for module in run.node_modules.values()),
        *(TRANSFORMS[name] for name in get_transforms(config.data.transforms)),
        *(MIXINGS[name] for name in get_mixings(config.data.mix)),
        *(SOURCES[name] for name in [config.data.name] if name in SOURCES),
    ]


def run_facts(config: Mapping[str, Any], record: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what is the same in all processes of a run, by its name in messages.

    Args:
      config: of the run, as JSON values.
      record: the provenance of this start.
    """
    facts = {f"config.{name}": value for name, value in settings(config).items() if name not in PER_PROCESS}
    facts |= {f"version of {name}": value for name, value in record["versions"].items()}
    facts |= {"version of Python": record["python"], "fingerprint of the data": record["data"]["fingerprint"]}
    return facts | {"fingerprint of the code": record["code"]}


def check_processes(config: Mapping[str, Any], record: Mapping[str, Any]) -> None:
    """Checks that all processes train the same run.

    Raises:
      UserError: naming the setting, version, data or code that differs.
    """
    check_agreement(run_facts(config, record), "start all processes with the same command, data and code")


def check_workdir_is_shared(workdir: Workdir) -> None:
    """Checks that all processes see the workdir that the first one has opened.

    Raises:
      UserError: naming the process that does not.
    """
    if jax.process_count() == 1:
        return
    gather("opened")  # the first process has
    limit = time.monotonic() + SHARED_WORKDIR_TIMEOUT_S
    while not workdir.lock.exists() and time.monotonic() < limit:
        time.sleep(0.5)
    holder = workdir.lock.read_text() if workdir.lock.exists() else None
    check_agreement({f"{workdir.lock}": holder}, "--workdir has to be one folder that all processes share")
