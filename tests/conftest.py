"""Eight simulated devices and a persistent compilation cache for all tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import compile_flags

# Before JAX is imported: flags are read once.
FLAGS = f"--xla_force_host_platform_device_count=8 {compile_flags.COMPILE_FLAGS}"
os.environ["XLA_FLAGS"] = f"{FLAGS} {os.environ.get('XLA_FLAGS', '')}"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import pytest
from jaxtyping import install_import_hook

# Before they are imported: the annotated shapes and dtypes of these modules are checked at every call.
TYPED = ["switching", "losses", "metrics", "methods"]
hook = install_import_hook([f"switokd_jax.{name}" for name in TYPED], "beartype.beartype")

import tiny_runs
from switokd_jax import methods, models, optim, topology
from switokd_jax.data import dataset, mixing, transforms

# Tests leave the user's own cache folder alone.
os.environ["XDG_CACHE_HOME"] = str(tiny_runs.CACHE.parent / "user")

jax.config.update("jax_compilation_cache_dir", str(tiny_runs.CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


@pytest.fixture
def own_additions() -> Iterator[None]:
    """Undoes what a test adds to the package's registries."""
    dicts: list[dict[str, Any]] = [
        methods.METHODS,
        models.MODELS,
        dataset.SOURCES,
        transforms.TRANSFORMS,
        mixing.MIXINGS,
        topology.TOPOLOGIES,
        optim.OPTIMIZERS,
        optim.SCHEDULES,
    ]
    before = [dict(each) for each in dicts]
    yield
    for each, old in zip(dicts, before, strict=True):
        each.clear()
        each.update(old)
