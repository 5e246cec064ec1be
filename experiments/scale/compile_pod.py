"""Compiles the train step of a config for a TPU slice, without a TPU, and reports the cost of a step there.

pip install -e '.[tpu]'
python experiments/scale/compile_pod.py --topology=v5e:4x4 --batch_per_chip=128 --set networks.teacher.remat=True

Prints memory and operations of one chip, the collectives of one step, and the time of each at published rates. The
teacher's backward pass, which is skipped in expert mode, is included.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # there is no TPU whose metadata could be queried
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import ConfigDict

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT)]

from experiments.scale.hlo import KINDS, Collective, collectives
from switokd_jax import config as configs
from switokd_jax.cli import config_module
from switokd_jax.data import dataset, normalization, resident, sampling
from switokd_jax.files import write_json
from switokd_jax.parallel.sharding import AXIS
from switokd_jax.train import init_state, run_spec

# Classes, image shape and training examples: the data sets themselves need not be installed.
DATASET_SHAPES = {
    "cifar100": (100, (32, 32, 3), 50_000),
    "cifar10": (10, (32, 32, 3), 50_000),
    "imagenet2012": (1000, (224, 224, 3), 1_281_167),
}


# Rates of one chip: operations/s in bfloat16 (a float32 product takes several), bytes/s of memory, and bytes/s between
# chips. Source: Google's table of the TPU v5e, https://cloud.google.com/tpu/docs/v5e (1600 Gbit/s of interconnect).
RATES = {"TPU v5 lite": {"arithmetic": 197e12, "memory": 819e9, "communication": 200e9}}


def at_least_ms(kind: str, flops: float, accessed: float, ops: list[Collective]) -> dict[str, float]:
    """Computes lower bounds for the time of a step [ms], one for each rate; none for chips without known rates.

    Each chip sends and receives nearly every byte of an all-reduce twice, and of the other collectives once.
    """
    communicated = sum(op.bytes * (2 if op.kind == "all-reduce" else 1) for op in ops)
    work = {"arithmetic": flops, "memory": accessed, "communication": communicated}
    return {name: 1e3 * work[name] / rate for name, rate in RATES.get(kind, {}).items()}


def assignment(text: str) -> tuple[str, Any]:
    """Parses FIELD=VALUE, where VALUE is a Python literal or else text.

    >>> assignment("networks.teacher.remat=True")
    ('networks.teacher.remat', True)
    """
    field, _, value = text.partition("=")
    try:
        return field, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return field, value


def shapes(run: run_spec.RunSpec) -> tuple[Any, sampling.Batch]:
    """Returns the resident data (None for a stream) and the batches of a call, as shapes with their shardings."""
    examples, config = run.dataset_info.train_examples, run.config
    rows = NamedSharding(run.distribution.mesh, PartitionSpec(None, AXIS))

    def stacked(max_steps: int, shape: tuple[int, ...], dtype: Any) -> Any:
        return jax.ShapeDtypeStruct((max_steps, config.batch_size, *shape), dtype, sharding=rows)

    if config.data.pipeline == "stream":
        batch_images = stacked(1, run.dataset_info.image_shape, jnp.uint8)
        return None, sampling.Batch(stacked(1, (), jnp.int32), images=batch_images, labels=stacked(1, (), jnp.int32))
    images: Any = jax.ShapeDtypeStruct((examples, *run.dataset_info.image_shape), jnp.uint8)
    labels: Any = jax.ShapeDtypeStruct((examples,), jnp.int32)
    index = stacked(config.steps_per_call, (), jnp.int32)
    return run.distribution.abstract_state(resident.DeviceDataset(images, labels)), sampling.Batch(index)


def devices_of(topology: str) -> Any:
    """Returns the chips of a TPU slice, or N devices of this machine for 'cpu:N'."""
    if topology.startswith("cpu:"):
        jax.config.update("jax_num_cpu_devices", int(topology.removeprefix("cpu:")))
        return jax.devices("cpu")
    try:
        return topologies.get_topology_desc(topology, "tpu").devices
    except RuntimeError as error:  # no libtpu, or no such slice
        reason = str(error).splitlines()[0]
        sys.exit(f"--topology {topology}: {reason}; it needs libtpu (pip install -e '.[tpu]') and a name like v5e:4x4")


def measure(config: ConfigDict, topology: str, batch_per_chip: int) -> dict[str, Any]:
    """Compiles a step for a slice and returns its figures as JSON values."""
    chips = devices_of(topology)
    config.batch_size = batch_per_chip * len(chips)
    parsed = configs.parse(config)
    if parsed.data.name not in DATASET_SHAPES:
        sys.exit(f"config.data.name {parsed.data.name!r}: its shapes are unknown; choose one of {[*DATASET_SHAPES]}")
    classes, image, examples = DATASET_SHAPES[parsed.data.name]
    dataset_info = dataset.DatasetInfo(classes, image, examples, normalization.PUBLISHED[parsed.data.name])
    run = run_spec.make(parsed, dataset_info, chips)
    state = run.distribution.abstract_state(init_state.abstract_state(run))
    data, batches = shapes(run)
    step = run.distribution.compile(run_spec.make_train_step(run), has_state=True)
    begin = time.perf_counter()
    compiled = step.variants[True].lower(state, data, batches, 1).compile()
    seconds = time.perf_counter() - begin
    memory, costs = compiled.memory_analysis(), compiled.cost_analysis()
    ops = collectives(compiled.as_text())
    networks = {name: sum(x.size for x in jax.tree.leaves(state.networks[name].params)) for name in run.topology.nodes}
    # A reduction about as large as a network is one of gradients; the rest is BatchNorm's, whose own backward pass has
    # summed the gradients of its scale and bias.
    gradients = [op for op in ops if op.kind == "all-reduce" and sum(op.sizes) > min(networks.values()) / 2]
    return {
        "topology": topology,
        "chips": len(chips),
        "device_kind": chips[0].device_kind,
        "batch_size": config.batch_size,
        "dtype": parsed.dtype,
        "sharding": parsed.sharding,
        "state_bytes_per_chip": run.distribution.bytes_per_device(state),
        "gradient_accumulation": parsed.gradient_accumulation,
        "remat": [name for name, network in parsed.networks.items() if network.remat],
        "parameters": networks,
        "bytes_per_chip": {
            "arguments": memory.argument_size_in_bytes,
            "temporary": memory.temp_size_in_bytes,
            "code": memory.generated_code_size_in_bytes,
        },
        "flops_per_chip": costs["flops"],
        "memory_bytes_accessed_per_chip": costs["bytes accessed"],
        "collectives": len(ops),
        "collective_bytes": sum(op.bytes for op in ops),
        "by_kind": {
            kind: {"count": len(of_kind), "bytes": sum(op.bytes for op in of_kind)}
            for kind in KINDS
            if (of_kind := [op for op in ops if op.kind == kind])
        },
        "at_least_ms": at_least_ms(chips[0].device_kind, costs["flops"], costs["bytes accessed"], ops),
        "gradient_reductions": [{"bytes": op.bytes, "arrays": len(op.sizes)} for op in gradients],
        "compile_seconds": seconds,
    }


def main() -> None:
    """Parses the flags, compiles, prints the figures and writes them to --json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "cifar100_wrn16_2_mobilenetv2.py")
    parser.add_argument("--topology", default="v5e:4x4", help="a TPU slice, or cpu:N")
    parser.add_argument("--batch_per_chip", type=int, default=128)
    parser.add_argument("--set", nargs="+", default=[], metavar="FIELD=VALUE", help="fields of the config")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    config = config_module(options.config).get_config()
    config.update_from_flattened_dict(dict(map(assignment, options.set)))
    figures = measure(config, options.topology, options.batch_per_chip)
    print(json.dumps(figures, indent=2))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        write_json(options.json, figures)


if __name__ == "__main__":
    main()
