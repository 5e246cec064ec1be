"""Tiny networks and runs that tests share."""

from __future__ import annotations

import functools
import io
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np
from flax import linen as nn
from ml_collections import ConfigDict
from PIL import Image

import compile_flags
from switokd_jax import config, models
from switokd_jax.cli import config_module
from switokd_jax.data import dataset, normalization, resident, sampling
from switokd_jax.models.branches import Part
from switokd_jax.models.layers import Layers, dropout, global_avg_pool, kaiming_normal, sow_feature
from switokd_jax.parallel import mesh
from switokd_jax.state import TrainState
from switokd_jax.train import init_state, run_spec

CONFIGS = Path(__file__).parents[1] / "configs"
CACHE = Path(__file__).parents[1] / ".pytest_cache" / "xla"
SHAPE = (8, 8, 1)
PREPROCESS = normalization.PUBLISHED["digits"]


class Few(nn.Module):
    """A few convolutions, each with its norm and a tap, and a classifier: what the step has to do with, and compiles
    in a third of a resnet8's time.
    """

    features: tuple[int, ...]
    num_classes: int
    dropout: float = 0.0
    layers: Layers = Layers()
    part: Part = Part()
    stage_count: ClassVar[int] = 3

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        layers = self.layers.replace(train=train, conv_init=kaiming_normal)
        x = x.astype(layers.dtype)
        for i in self.part.stages(self.stage_count):
            if i <= len(self.features):
                x = layers.conv(x, self.features[i - 1], 3, stride=min(i, 2), name=f"conv{i}")
                x = nn.relu(layers.norm(x, name=f"bn{i}"))
            x = sow_feature(self, f"stage{i}", x)
        if not self.part.has_classifier:
            return x
        x = dropout(self, global_avg_pool(self, x), self.dropout, train=train and self.dropout > 0)
        return layers.logits(x, self.num_classes, name="linear")


# By name, as users add theirs.
models.MODELS["one_layer"] = functools.partial(Few, (4,))
models.MODELS["two_layers"] = functools.partial(Few, (16, 32))
models.MODELS["wide_layers"] = functools.partial(Few, (64, 64))
models.MODELS["dropout"] = functools.partial(Few, (4,), dropout=0.5)


def environment(devices: int = 1) -> dict[str, str]:
    """Environment of a process with so many devices, which shares the tests' flags and their compilation cache."""
    flags = f"{compile_flags.COMPILE_FLAGS} --xla_force_host_platform_device_count={devices}"
    return {**os.environ, "XLA_FLAGS": flags, "JAX_COMPILATION_CACHE_DIR": str(CACHE)}


WITHOUT_TENSORFLOW = """
import importlib.machinery, sys
class Refuse:
    def create_module(self, spec): return None
    def exec_module(self, module): raise ImportError("TensorFlow was imported")
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "tensorflow": return importlib.machinery.ModuleSpec(name, Refuse())
sys.meta_path.insert(0, Finder())
"""


def run_without_tensorflow(script: str, *arguments: str) -> str:
    """Runs Python code in a process that cannot import TensorFlow; returns the last word that it prints."""
    process = subprocess.run(
        [sys.executable, "-c", WITHOUT_TENSORFLOW + script, *arguments],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout.split()[-1]


def add_to_tar(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """Adds a file to an archive."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def tiny_config(model: str = "two_layers", student: str = "two_layers", **changes: Any) -> ConfigDict:
    """Two small networks on digits, nothing on the console, no TensorBoard."""
    c = config.default()
    c.networks.teacher = config.network(model=model, schedule="constant")
    c.networks.student = config.network(model=student, schedule="constant")
    c.log.tensorboard = c.log.progress = False
    c.update_from_flattened_dict(changes)
    return c


def alone_config(model: str = "two_layers", **changes: Any) -> ConfigDict:
    """One network, 'student', that learns from nobody: it compiles in half the time."""
    c = tiny_config(student=model, method="vanilla", **changes)
    del c.networks.teacher
    c.topology.kind = "complete"
    return c


def tiny_plan(c: ConfigDict, examples: int, devices: int = 1) -> run_spec.RunSpec:
    """The plan of a config for so many 8x8 images, on the first devices."""
    return run_spec.make(config.parse(c), dataset.DatasetInfo(10, SHAPE, examples, PREPROCESS), jax.devices()[:devices])


def resident_splits(spec: config.DataConfig, seed: int = 0) -> tuple[dataset.Split, dataset.Split, dataset.Split]:
    """Train, validation and test of a data set in memory."""
    data = dataset.load_dataset(spec, seed)
    assert isinstance(data.train, dataset.Split)
    assert isinstance(data.validation, dataset.Split)
    assert isinstance(data.test, dataset.Split)
    return data.train, data.validation, data.test


def random_split(examples: int, seed: int = 0) -> dataset.Split:
    """Images and labels that mean nothing."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 17, (examples, *SHAPE)).astype(np.uint8)
    return dataset.Split(images, rng.integers(0, 10, examples).astype(np.int32))


def start(run: run_spec.RunSpec, split: dataset.Split) -> tuple[TrainState, resident.DeviceDataset]:
    """The initial state and the data, placed."""
    return run.distribution.device_put(init_state.init_state(run)), place(run, split)


def place(run: run_spec.RunSpec, split: dataset.Split) -> resident.DeviceDataset:
    """The split on the devices."""
    placed: resident.DeviceDataset = run.distribution.device_put(resident.DeviceDataset(split.images, split.labels))
    return placed


def batch(run: run_spec.RunSpec, indices: np.ndarray) -> mesh.DeviceBatches:
    """One batch of these examples of a resident split."""
    return run.distribution.put_batches(
        sampling.StackedBatches(len(indices), 1, sampling.Batch(np.asarray(indices, np.int32)[None]))
    )


def call(step: mesh.CompiledStep, state: Any, data: Any, coming: mesh.DeviceBatches) -> tuple[Any, Any]:
    """The state after the steps, and the last one's metrics."""
    state, metrics = step.call(state, data, coming)
    return state, jax.tree.map(lambda x: x[..., coming.count - 1], metrics)


def through(
    run: run_spec.RunSpec, step: mesh.CompiledStep, state: Any, data: Any, stacks: Iterable[sampling.StackedBatches]
) -> tuple[Any, list[dict[str, Any]]]:
    """The state after all stacks, and the metrics of every step."""
    metrics: list[dict[str, Any]] = []
    for coming in run.distribution.prefetch_to_device(stacks):
        state, seen = step.call(state, data, coming)
        host = jax.device_get(run.distribution.unreplicate(seen))
        metrics += [{name: values[i] for name, values in host.items()} for i in range(coming.count)]
    return state, metrics


def photograph(height: int, width: int, seed: int = 0) -> Image.Image:
    """Noise in colour."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8))


def photographs(root: Path, count: int) -> None:
    """A data set 'folder': images of many sizes in two classes; an eighth of them to test on."""
    for number in range(count):
        path = root / ("test" if number % 8 == 7 else "train") / "ab"[number % 2] / f"{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        photograph(20 + number % 7, 30 - number % 5, number).save(path)
    (root / "test" / "a").mkdir(exist_ok=True)


def assert_same_bits(a: Any, b: Any) -> None:
    """Every array of two trees is equal to the last bit."""
    left, right = jax.tree_util.tree_leaves_with_path(a), jax.tree_util.tree_leaves_with_path(b)
    assert len(left) == len(right)
    for (path, x), (_, y) in zip(left, right, strict=True):
        x, y = np.asarray(x), np.asarray(y)
        assert x.dtype == y.dtype, path
        assert x.tobytes() == y.tobytes(), jax.tree_util.keystr(path)


def config_file(name: str) -> Any:
    """The module configs/NAME.py."""
    return config_module(CONFIGS / f"{name}.py")
