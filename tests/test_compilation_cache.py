"""The persistent compilation cache with entries that are not what their names say."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from switokd_jax import compilation_cache

SCRIPT = """
import jax, jax.numpy as jnp
from switokd_jax import compilation_cache

def first(x): return x.sum()
def second(x): return (3 * x).sum()
def third(x, y): return x + y

compilation_cache.enable()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
with compilation_cache.restart_after_wrong_program():
    print(jax.jit(first)(jnp.arange(4)), jax.jit(second)(jnp.arange(7)), jax.jit(third)(1, 2))
"""


def run(folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(folder)}
    return subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.slow
@pytest.mark.parametrize("others", [("first", "second"), ("first", "third")])
def test_swapped_entries_are_dropped_and_compiled_anew(others: tuple[str, str], tmp_path: Path) -> None:
    """Programs for arguments of other shapes, and for more arguments."""
    assert run(tmp_path).stdout == "6 63 3\n"
    one, other = (next(tmp_path.glob(f"jit_{name}-*-cache")) for name in others)
    before = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(before)
    process = run(tmp_path)
    assert process.returncode == 0, process.stderr
    assert process.stdout == "6 63 3\n"
    lines = [line for line in process.stderr.splitlines() if line.startswith("switokd_jax: ")]
    expected = "held another function's program; it is empty now, and the command starts again"
    assert lines == [f"switokd_jax: the compilation cache {tmp_path} {expected}"]
    assert "Traceback" not in process.stderr


@pytest.mark.parametrize("error", [AssertionError("of our own"), jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED")])
def test_other_errors_pass(error: Exception) -> None:
    with pytest.raises(type(error)), compilation_cache.restart_after_wrong_program():
        raise error
