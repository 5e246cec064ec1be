"""Eight simulated devices and a persistent compilation cache for all tests."""

from __future__ import annotations

import os

# Before JAX is imported: the flag is read once.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax

import runs

# Tests leave the user's own cache folder alone.
os.environ["XDG_CACHE_HOME"] = str(runs.CACHE.parent / "user")

jax.config.update("jax_compilation_cache_dir", str(runs.CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
