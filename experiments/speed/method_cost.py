"""What each online method costs beside training alone: operations and memory of a compiled train step.

python experiments/speed/method_cost.py --json=runs/method_cost.json

Four resnet32 on CIFAR-100 in batches of 128, or one with four branches (configs/online.py:cifar100,METHOD). XLA counts
the operations and plans the memory; nothing runs, so the numbers do not depend on the machine's load. The rows are
relative to 'vanilla' with networks, and with branches.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT)]

from experiments.grids import DATA_SIZES, load
from experiments.table_online import arms
from switokd_jax import config
from switokd_jax.data import dataset, normalization, resident
from switokd_jax.data.sampling import Batch
from switokd_jax.files import write_json
from switokd_jax.models.layers import with_options
from switokd_jax.models.ops import convolution
from switokd_jax.train import init_state, run_spec
from switokd_jax.train.adapters import with_convolution

MIB = 2**20


def make_run(config_file: str) -> run_spec.RunSpec:
    """Builds the run of a config on one device, with lax's convolutions: XLA counts the body of a loop once."""
    c = config.parse(load(str(ROOT / config_file), []))
    size = DATA_SIZES[c.data.name]
    info = dataset.DatasetInfo(size.classes, size.shape, size.train, normalization.PUBLISHED[c.data.name])
    run = run_spec.make(c, info, jax.devices()[:1])
    lax_convolution = convolution.for_devices("tpu", single_device=True)
    networks = {
        name: dataclasses.replace(network, module=with_options(network.module, convolution=lax_convolution))
        for name, network in run.networks.items()
    }
    adapters = {
        name: dataclasses.replace(adapter, module=with_convolution(adapter.module, lax_convolution))
        for name, adapter in run.adapters.items()
    }
    return dataclasses.replace(run, networks=networks, adapters=adapters)


def cost(run: run_spec.RunSpec) -> dict[str, float]:
    """Compiles the train step of a run, and returns its operations (GFLOP) and its memory (MiB)."""
    state = init_state.abstract_state(run)
    train, batch = run.dataset_info.train_examples, run.config.batch_size
    images: Any = jax.ShapeDtypeStruct((train, *run.dataset_info.image_shape), jnp.uint8)
    labels: Any = jax.ShapeDtypeStruct((train,), jnp.int32)
    data = resident.DeviceDataset(images, labels)
    examples = Batch(jax.ShapeDtypeStruct((1, batch), jnp.int32))
    step = run.distribution.compile(run_spec.make_train_step(run), has_state=True)
    compiled = step.variants[True].lower(state, data, examples, 1).compile()
    costs: Any = compiled.cost_analysis()
    memory: Any = compiled.memory_analysis()
    return {
        "gflop": costs["flops"] / 1e9,
        "state_mib": sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state)) / MIB,
        "temporary_mib": memory.temp_size_in_bytes / MIB,
    }


def main() -> None:
    """Reads the flags, measures, prints, and writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", nargs="+", default=[], help="only these, and vanilla")
    parser.add_argument("--json", type=Path, default=Path("runs/method_cost.json"))
    args = parser.parse_args()
    known = arms("cifar100")
    costs: dict[str, dict[str, float]] = {}
    print(f"{'arm':<18}{'GFLOP':>8}{'state MiB':>11}{'temporary MiB':>15}{'FLOP ratio':>12}{'memory ratio':>14}")
    for name in sorted(known, key=lambda name: not name.startswith("vanilla")):
        if args.arms and name not in args.arms and not name.startswith("vanilla"):
            continue
        run = make_run(known[name].config)
        found = costs[name] = cost(run)
        base = costs["vanilla" if len(run.networks) > 1 else "vanilla_branches"]
        memory, base_memory = (each["state_mib"] + each["temporary_mib"] for each in (found, base))
        print(
            f"{name:<18}{found['gflop']:>8.1f}{found['state_mib']:>11.1f}{found['temporary_mib']:>15.1f}"
            f"{found['gflop'] / base['gflop']:>12.3f}{memory / base_memory:>14.3f}",
            flush=True,
        )
    args.json.parent.mkdir(parents=True, exist_ok=True)
    write_json(args.json, costs)


if __name__ == "__main__":
    main()
