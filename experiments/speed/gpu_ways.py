"""Ways to keep a GPU busier during our step, measured side by side.

python experiments/speed/gpu_ways.py --json=runs/gpu_ways.json                 # about ten minutes on one card
python experiments/speed/gpu_ways.py --teacher=resnet8 --student=resnet8 --steps=1 --rounds=1 --dtypes float32  # tiny

The networks of a step depend on each other only through their logits, yet a GPU runs their kernels one after another.
Each way is one compiled step of a pair on batches of 128 CIFAR-sized images; all alternate in one process, in learning
and in expert mode. Prints images/s and the ratio to the step as it is. A way that the installed XLA does not have is
listed with XLA's message.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import statistics
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import optax
from jax.experimental.compute_on import compute_on

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT)]

from experiments.speed.our_step import BATCH, Timed, our_config, our_timer
from experiments.speed.turns import taking_turns
from switokd_jax import step as step_module
from switokd_jax.files import write_json
from switokd_jax.forward import ForwardPass, forward
from switokd_jax.train import run_spec

GRAPHS = {
    "xla_gpu_enable_command_buffer": "FUSION,CUBLAS,CUBLASLT,CUDNN,CUSTOM_CALL,DYNAMIC_SLICE_FUSION,WHILE,CONDITIONAL",
    "xla_gpu_graph_min_graph_size": 1,
}


@dataclasses.dataclass(frozen=True)
class Way:
    """A variant of the step.

    Attributes:
      options: compiler options of XLA.
      make_step: builds the step of a run.
      change_run: applied to the run before its state is made.
    """

    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    make_step: Callable[[run_spec.RunSpec], run_spec.TrainStepFn] = run_spec.make_train_step
    change_run: Callable[[run_spec.RunSpec], run_spec.RunSpec] = lambda run: run


def networks_on_streams(run: run_spec.RunSpec) -> run_spec.TrainStepFn:
    """Builds a step that annotates each network's forward and backward pass with a stream of its own."""
    plain = run_spec.make_train_step(run)

    def forward_on_stream(counter: itertools.count[int], *args: Any) -> ForwardPass:
        stream = f"gpu_stream:{next(counter)}"
        with compute_on(stream):
            forward_pass = forward(*args)

        def pullback(cotangents: Any) -> Any:
            with compute_on(stream):
                return forward_pass.pullback(cotangents)

        return forward_pass._replace(pullback=pullback)

    def step(*args: Any) -> Any:
        # The step is traced inside this function; nothing else reads the replaced name.
        with mock.patch.object(step_module, "forward", functools.partial(forward_on_stream, itertools.count(1))):
            return plain(*args)

    return step


def with_flat_optimizers(run: run_spec.RunSpec) -> run_spec.RunSpec:
    """Returns the run with the updates of each network computed as those of one vector."""
    networks = {
        name: dataclasses.replace(network, optimizer=optax.flatten(network.optimizer))
        for name, network in run.networks.items()
    }
    return dataclasses.replace(run, networks=networks)


WAYS = {
    "as it is": Way(),
    "command buffers": Way(GRAPHS),
    "concurrent command buffers": Way({**GRAPHS, "xla_gpu_command_buffer_scheduling_mode": "CONCURRENT"}),
    "four compute streams": Way({"xla_gpu_executable_num_compute_streams": 4}),
    "a stream for each network": Way({"xla_gpu_experimental_stream_annotation": True}, networks_on_streams),
    "flat optimizers": Way(change_run=with_flat_optimizers),
    "flat optimizers, concurrent command buffers": Way(
        {**GRAPHS, "xla_gpu_command_buffer_scheduling_mode": "CONCURRENT"}, change_run=with_flat_optimizers
    ),
}


def images_per_second(timed: Timed, paused: bool, steps: int) -> float:
    """Measures once."""
    return BATCH * steps / timed(paused, steps)


def main() -> None:
    """Reads the flags, measures, prints, and writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default="wrn_16_2")
    parser.add_argument("--student", default="mobilenetv2_0.5")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=[*WAYS])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, default=Path("runs/gpu_ways.json"))
    args = parser.parse_args()
    results: list[dict[str, Any]] = []
    for dtype in args.dtypes:
        timers: dict[str, Timed] = {}
        for name in dict.fromkeys(["as it is", *args.ways]):
            way = WAYS[name]
            config = our_config((args.teacher,), (args.student,), dtype)
            try:
                timers[name], _ = our_timer(config, way.make_step, way.options, way.change_run)
            except (jax.errors.JaxRuntimeError, ValueError) as error:
                print(f"{dtype} {name}: {str(error).splitlines()[0][:200]}", flush=True)
                results.append({"dtype": dtype, "way": name, "error": str(error)[:1000]})
        for paused in (False, True):
            contenders = {
                name: functools.partial(images_per_second, timed, paused, args.steps) for name, timed in timers.items()
            }
            rates = {name: statistics.median(rates) for name, rates in taking_turns(contenders, args.rounds).items()}
            mode = "expert" if paused else "learning"
            for name, rate in rates.items():
                print(f"{dtype} {mode:8} {name:45} {rate:9.0f} images/s  {rate / rates['as it is']:5.2f}", flush=True)
                results.append({"dtype": dtype, "mode": mode, "way": name, "images_per_second": rate})
    args.json.parent.mkdir(parents=True, exist_ok=True)
    write_json(args.json, {"device": jax.devices()[0].device_kind, "steps": args.steps, "results": results})


if __name__ == "__main__":
    main()
