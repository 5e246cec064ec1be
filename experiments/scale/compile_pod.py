"""Compiles the train step of a config for a TPU slice, without a TPU, and reads what a step costs there.

pip install -e '.[tpu]'
python experiments/scale/compile_pod.py --topology=v5e:4x4 --batch_per_chip=128 --set networks.teacher.remat=True

Prints memory and operations of one chip, the collectives of one step, and what they take at published rates; the
teacher's backward pass, which is skipped in expert mode, is counted as taken.
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

os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # there is no TPU to ask
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
from switokd_jax.parallel.mesh import AXIS
from switokd_jax.train import init_state, run_spec

# Of data sets that need not be there: classes, image shape, training examples.
SHAPES = {
    "cifar100": (100, (32, 32, 3), 50_000),
    "cifar10": (10, (32, 32, 3), 50_000),
    "imagenet2012": (1000, (224, 224, 3), 1_281_167),
}


# Of one chip in a second: operations in bfloat16 (a float32 product takes several), bytes of memory, and bytes between
# chips. Source: Google's table of the TPU v5e, https://cloud.google.com/tpu/docs/v5e (1600 Gbit/s of interconnect).
RATES = {"TPU v5 lite": {"arithmetic": 197e12, "memory": 819e9, "messages": 200e9}}


def at_least_ms(kind: str, flops: float, accessed: float, sent: list[Collective]) -> dict[str, float]:
    """What a step takes at published rates, nothing else counted; empty for chips whose rates are not known here.

    Each chip sends and receives nearly every byte of an all-reduce twice, and of the others once.
    """
    messages = sum(one.bytes * (2 if one.kind == "all-reduce" else 1) for one in sent)
    work = {"arithmetic": flops, "memory": accessed, "messages": messages}
    return {name: 1e3 * work[name] / rate for name, rate in RATES.get(kind, {}).items()}


def assignment(text: str) -> tuple[str, Any]:
    """'networks.teacher.remat=True' as a field and a Python value, or text where it is none."""
    field, _, value = text.partition("=")
    try:
        return field, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return field, value


def shapes(run: run_spec.RunSpec) -> tuple[Any, sampling.Batch]:
    """The resident data, or None of a stream, and the batches of a call as shapes with their placement."""
    examples, config = run.dataset_info.train_examples, run.config
    rows = NamedSharding(run.distribution.mesh, PartitionSpec(None, AXIS))

    def stacked(most: int, shape: tuple[int, ...], dtype: Any) -> Any:
        return jax.ShapeDtypeStruct((most, config.batch_size, *shape), dtype, sharding=rows)

    if config.data.pipeline == "stream":
        images = stacked(1, run.dataset_info.image_shape, jnp.uint8)
        return None, sampling.Batch(stacked(1, (), jnp.int32), images=images, labels=stacked(1, (), jnp.int32))
    whole: Any = jax.ShapeDtypeStruct((examples, *run.dataset_info.image_shape), jnp.uint8)
    labels: Any = jax.ShapeDtypeStruct((examples,), jnp.int32)
    index = stacked(config.steps_per_call, (), jnp.int32)
    return run.distribution.abstract_state(resident.DeviceDataset(whole, labels)), sampling.Batch(index)


def devices_of(topology: str) -> Any:
    """The chips of a TPU slice, or 'cpu:N' devices of this machine."""
    if topology.startswith("cpu:"):
        jax.config.update("jax_num_cpu_devices", int(topology.removeprefix("cpu:")))
        return jax.devices("cpu")
    try:
        return topologies.get_topology_desc(topology, "tpu").devices
    except RuntimeError as error:  # no libtpu, or no such slice
        said = str(error).splitlines()[0]
        sys.exit(f"--topology {topology}: {said}; it takes libtpu (pip install -e '.[tpu]') and a name like v5e:4x4")


def measure(config: ConfigDict, topology: str, batch_per_chip: int) -> dict[str, Any]:
    """The figures of a step on a slice."""
    chips = devices_of(topology)
    config.batch_size = batch_per_chip * len(chips)
    parsed = configs.parse(config)
    if parsed.data.name not in SHAPES:
        sys.exit(f"config.data.name {parsed.data.name!r}: its shapes are not known here; one of {[*SHAPES]} is")
    classes, image, examples = SHAPES[parsed.data.name]
    facts = dataset.DatasetInfo(classes, image, examples, normalization.PUBLISHED[parsed.data.name])
    run = run_spec.make(parsed, facts, chips)
    state = run.distribution.abstract_state(init_state.abstract_state(run))
    data, coming = shapes(run)
    step = run.distribution.compile(run_spec.make_train_step(run), has_state=True)
    begin = time.perf_counter()
    compiled = step.variants[True].lower(state, data, coming, 1).compile()
    seconds = time.perf_counter() - begin
    memory, costs = compiled.memory_analysis(), compiled.cost_analysis()
    sent = collectives(compiled.as_text())
    networks = {name: sum(x.size for x in jax.tree.leaves(state.networks[name].params)) for name in run.topology.nodes}
    # A reduction about as large as a network is one of gradients; the rest is BatchNorm's, whose own backward pass has
    # summed the gradients of its scale and bias.
    gradients = [one for one in sent if one.kind == "all-reduce" and sum(one.sizes) > min(networks.values()) / 2]
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
        "collectives": len(sent),
        "collective_bytes": sum(one.bytes for one in sent),
        "by_kind": {
            kind: {"count": len(some), "bytes": sum(one.bytes for one in some)}
            for kind in KINDS
            if (some := [one for one in sent if one.kind == kind])
        },
        "at_least_ms": at_least_ms(chips[0].device_kind, costs["flops"], costs["bytes accessed"], sent),
        "gradient_reductions": [{"bytes": one.bytes, "arrays": len(one.sizes)} for one in gradients],
        "compile_seconds": seconds,
    }


def main() -> None:
    """Compiles, prints, writes."""
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
