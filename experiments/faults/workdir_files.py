"""Damages or replaces a file of a finished run, and then resumes, draws, reports, evaluates, predicts and exports it.

python experiments/faults/workdir_files.py --workdirs=2000

Each time a copy of one workdir gets one fault: another JSON type, brackets by the thousand, bytes that are no text, an
empty file, a folder or nothing in its place, a line of metrics changed, a field removed or changed, bytes of a
checkpoint changed. One command then reads it. Exit status 1 if a command raises anything but one line, or changes a
file that it should only read.
"""

from __future__ import annotations

import collections
import json
import random
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from PIL import Image

sys.path[:0] = [str(Path(__file__).parents[2])]

from experiments.faults import storm
from switokd_jax import compilation_cache, config, evaluate, export, predict, report
from switokd_jax.analysis import trained_network
from switokd_jax.analysis.runs import check_run, find_runs
from switokd_jax.errors import SaveError, UserError
from switokd_jax.figures import draw_all
from switokd_jax.train import train_and_evaluate

VALUES: tuple[Any, ...] = (None, 7, -1, 1.5, "text", [], [1], {}, {"a": 1}, True, float("nan"))
FILES = ("config.json", "metrics.jsonl", "summary.json", "record.json", "checkpoints", "checkpoints/latest")


def make_config() -> Any:
    """A run of two steps that all commands can read in seconds."""
    c = config.default()
    c.networks.teacher, c.networks.student = (config.network(model="resnet8") for _ in range(2))
    c.steps, c.batch_size = 4, 512
    c.checkpoint.every = 0.3
    c.log.tensorboard = c.log.progress = False
    return c


def change_value(value: Any, rng: random.Random) -> Any:
    """Changes, removes or adds something somewhere in a JSON value."""
    if isinstance(value, dict) and value and rng.random() < 0.8:
        key = rng.choice([*value])
        changed = dict(value)
        if rng.random() < 0.3:
            del changed[key]
        else:
            changed[key] = change_value(value[key], rng)
        return changed
    if isinstance(value, list) and value and rng.random() < 0.6:
        index = rng.randrange(len(value))
        return [*value[:index], change_value(value[index], rng), *value[index + 1 :]]
    return rng.choice(VALUES)


def spoil(workdir: Path, rng: random.Random) -> str:
    """Makes one fault; returns what was done."""
    way = rng.choice(("json", "json", "json", "line", "line", "replace", "replace", "checkpoint", "file for folder"))
    if way == "json":
        path = workdir / rng.choice(("config.json", "summary.json", "record.json"))
        value = change_value(json.loads(path.read_text()), rng)
        path.write_text(json.dumps(value))
        return f"{path.name} changed"
    if way == "line":
        path = workdir / "metrics.jsonl"
        lines = path.read_bytes().splitlines(keepends=True)
        index = rng.randrange(len(lines))
        kind = rng.randrange(6)
        if kind < 2:
            lines[index] = json.dumps(change_value(json.loads(lines[index]), rng)).encode() + b"\n"
        else:
            lines[index] = (b"\n", b"\0" * 40 + b"\n", b"garbage\n", lines[index][: rng.randrange(20)] + b"\n")[
                kind - 2
            ]
        path.write_bytes(b"".join(lines))
        return f"line {index + 1} of {path.name} changed"
    if way == "replace":
        path = workdir / rng.choice(FILES[:4])
        content = rng.choice((b"", b"\xff\xfe\x00", b"[" * 2000, b"[1, 2]", b"3", b'"text"', b"null", None))
        path.unlink()
        if content is not None:
            path.write_bytes(content)
        elif rng.random() < 0.5:
            path.mkdir()
        return f"{path.name} replaced by {content!r}"[:80]
    if way == "checkpoint":
        paths = [path for path in (workdir / "checkpoints").rglob("*") if path.is_file()]
        path = rng.choice(paths)
        data = bytearray(path.read_bytes())
        if data and rng.random() < 0.7:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            path.write_bytes(data)
        else:
            path.unlink()
        return f"{path.relative_to(workdir)} damaged"
    path = workdir / rng.choice(FILES[4:])
    shutil.rmtree(path)
    path.write_text("")
    return f"{path.relative_to(workdir)} is a file"


def commands(workdir: Path, image: Path) -> dict[str, Callable[[], Any]]:
    """Returns what is done with a damaged workdir, by name."""
    return {
        "resume": lambda: train_and_evaluate(make_config(), workdir),
        "figures": lambda: draw_all.draw([*map(check_run, find_runs([workdir]))], workdir.parent / "figures"),
        "report": lambda: report.report([workdir], workdir.parent / "report.html", [0]),
        "evaluate": lambda: evaluate.evaluate(workdir),
        "predict": lambda: predict.predict([trained_network.read(workdir, "student")], [image]),
        "export": lambda: export.export(
            workdir, "student", "safetensors", output=workdir.parent / "student.safetensors", overwrite=True
        ),
    }


def content_of(workdir: Path) -> dict[str, bytes]:
    """Returns the content of every file, by relative path."""
    return {str(path.relative_to(workdir)): path.read_bytes() for path in workdir.rglob("*") if path.is_file()}


def run_experiment(folder: Path, count: int, rng: random.Random) -> list[str]:
    """Damages so many workdirs; returns the faults, one line each."""
    warnings.simplefilter("ignore")
    logging.set_verbosity(logging.ERROR)
    compilation_cache.enable()  # every command compiles what the one before it has compiled
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    train_and_evaluate(make_config(), folder / "whole")
    image = folder / "image.png"
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(image)
    outcomes: collections.Counter[str] = collections.Counter()
    faults = []
    for i in range(count):
        workdir = folder / "copy" / "run"
        shutil.rmtree(folder / "copy", ignore_errors=True)
        shutil.copytree(folder / "whole", workdir)
        done = spoil(workdir, rng)
        before = content_of(workdir)
        name, command = rng.choice([*commands(workdir, image).items()])
        try:
            command()
            outcome = "worked"
        except (UserError, SaveError) as error:
            outcome = "one line"
            if "\n" in str(error) or not str(error):
                faults.append(f"{i}: {name} after {done}: not one line: {error}")
        except Exception as error:
            outcome = "traceback"
            faults.append(f"{i}: {name} after {done}: {type(error).__name__}: {str(error)[:200]}")
        if name != "resume" and content_of(workdir) != before:
            faults.append(f"{i}: {name} after {done}: a file was changed")
        outcomes[f"{name}: {outcome}"] += 1
    for outcome, number in sorted(outcomes.items()):
        print(f"{number:5} {outcome}")
    return faults


if __name__ == "__main__":
    storm.prove(__doc__ or "", "workdirs", run_experiment)
