"""Traced programs in the user's cache folder: a start that repeats an earlier one does not trace them again.

JAX's compilation cache spares a second start the compilation, but its keys are made of the traced programs. Tracing
takes twice as long as reading them. So programs are kept as `jax.export` serializes them, by all that a trace depends
on. A new program goes through the same form, so that every start compiles the same one.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import logging
import sys
import sysconfig
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
from jax import export

from switokd_jax.files import atomic_write


@dataclasses.dataclass(frozen=True)
class Program:
    """A function, and how it is compiled.

    Attributes:
      fn: of trees of arrays.
      jit: `jax.jit` with the options of this function.
      has_state: whether the results are (the first argument's successor, outputs). Outputs, or all results without a
        state, are dictionaries of arrays.
    """

    fn: Callable[..., Any]
    jit: Callable[[Callable[..., Any]], Any] = jax.jit
    has_state: bool = False

    def lower(self, *args: Any) -> Any:
        """Traces the function for arguments of these shapes."""
        return self.jit(self.fn).lower(*args)


# Traces a program for arguments of these shapes, or finds it traced: (program, *arguments) -> lowered, as
# `Program.lower`. The name of a `LowerByName` tells the program from the run's others.
Lower = Callable[..., Any]
LowerByName = Callable[[str], Lower]


def trace(name: str) -> Lower:
    """A `LowerByName` that keeps nothing."""
    del name
    return Program.lower


@dataclasses.dataclass(frozen=True)
class ProgramCache:
    """A folder of exported programs, for the code as it was when this process imported it.

    Attributes:
      folder: of the files; each can be removed at any time.
      imported_after: a time before the first import of what is traced [s since 1970].
    """

    folder: Path
    imported_after: float

    def of_run(self, facts: Mapping[str, Any], code: Iterable[Path]) -> LowerByName:
        """Returns the `LowerByName` of one run.

        It is `trace`, which keeps nothing, where a key might miss something: for code that has changed since it was
        imported, for several processes, and where JAX is told to keep no programs or to look for NaN in each operation.

        Args:
          facts: all but code, JAX's options and the arguments that the run's traces depend on, as JSON values.
          code: the files whose code is traced, except for those of `imported_files`.
        """
        files, options = sorted({*code} | imported_files()), jax.config.values
        if (
            not all(path.is_file() and path.stat().st_mtime < self.imported_after for path in files)
            or jax.process_count() > 1
            or not options["jax_enable_compilation_cache"]
            or options["jax_debug_nans"]
        ):
            return trace
        code_digests = [(str(path), hashlib.sha256(path.read_bytes()).hexdigest()) for path in files]
        key = json.dumps([facts, code_digests, {name: str(value) for name, value in sorted(options.items())}])
        return lambda name: functools.partial(self._load_or_export, key, name)

    def _load_or_export(self, key: str, name: str, program: Program, *args: Any) -> Any:
        leaves, structure = jax.tree.flatten(args)
        arrays = [(type(x).__name__, str(jax.typeof(x)), str(getattr(x, "sharding", None))) for x in leaves]
        full_key = json.dumps([key, name, program.has_state, str(structure), arrays])
        path = self.folder / f"{hashlib.sha256(full_key.encode()).hexdigest()[:32]}.exported"
        exported = _read(path, full_key)
        if exported is None:
            try:
                exported = export.export(jax.jit(_on_leaves(program, structure)))(*leaves)
                content = bytes(exported.serialize())
            except (ValueError, NotImplementedError) as error:  # an operation without a serialized form
                logging.getLogger(__name__).info("%s is not kept for the next start: %s", name, error)
                return program.lower(*args)
            _write(path, full_key, content)
            exported = export.deserialize(bytearray(content))
        return program.jit(_on_trees(exported, program)).lower(*args)


def imported_files() -> set[Path]:
    """Returns the files of all imported modules that are neither Python's nor installed: a user's own, configs too."""
    installed = tuple(sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib"))
    files = (getattr(module, "__file__", None) for module in [*sys.modules.values()])
    return {Path(file) for file in files if file and not file.startswith(installed)}


def _on_leaves(program: Program, structure: Any) -> Callable[..., Any]:
    """Returns the program as a function of arrays. Its results are lists and dictionaries, which `export` knows."""

    def call(*leaves: jax.Array) -> Any:
        result = program.fn(*jax.tree.unflatten(structure, leaves))
        return (jax.tree.leaves(result[0]), result[1]) if program.has_state else result

    return call


def _on_trees(exported: export.Exported, program: Program) -> Callable[..., Any]:
    """Inverts `_on_leaves`."""

    def call(*args: Any) -> Any:
        result = exported.call(*jax.tree.leaves(args))
        return (jax.tree.unflatten(jax.tree.structure(args[0]), result[0]), result[1]) if program.has_state else result

    return call


def _digest(key: str, content: bytes) -> bytes:
    return hashlib.sha256(key.encode() + b"\0" + content).digest()


def _read(path: Path, key: str) -> export.Exported | None:
    """Reads a program; None if there is none, or another one than the file's name says, or a part of one."""
    try:
        entry = path.read_bytes()
    except OSError:
        return None
    digest, content = entry[:32], entry[32:]
    return export.deserialize(bytearray(content)) if digest == _digest(key, content) else None


def _write(path: Path, key: str, content: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, lambda temporary: temporary.write_bytes(_digest(key, content) + content))
    except OSError as error:  # no warning: JAX's cache beside it gives one
        logging.getLogger(__name__).info("%s cannot be written, so the next start traces again: %s", path, error)
