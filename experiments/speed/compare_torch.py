"""Our train step beside PyTorch's: same networks, batch, dtype and optimizer, alternating in one process.

python experiments/speed/compare_torch.py --device=cpu --steps=8 --rounds=5 --json=runs/speed.json

Topologies: the CIFAR-100 pair (wrn_16_2 teaches mobilenetv2_0.5) and a star of one teacher with two students, batches
of 128. Modes: 'learning' (all networks take their step) and 'expert' (the teacher pauses). Ours is the step of real
runs, including crops, flips and normalization; a traced value replaces the decision about the teacher, so that one
compiled step serves both modes. PyTorch gets normalized images. Prints Markdown, writes JSON.

PyTorch's variants: 'eager' (NCHW), 'channels_last', and 'compile' (channels_last and torch.compile; on a GPU in its
fastest mode, 'reduce-overhead', which replays CUDA graphs); in bfloat16 all under autocast.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import resource
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import jax
import torch

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]  # the PyTorch networks that the tests compare logits with

import torch_networks
from experiments.speed import torch_step
from experiments.speed.our_step import BATCH, CLASSES, SIDE, Timed, our_config, our_timer, xla_flops
from switokd_jax.files import write_json

TOPOLOGIES = {
    "pair": (("wrn_16_2",), ("mobilenetv2_0.5",)),
    "1t2s": (("wrn_16_2",), ("mobilenetv2_0.5", "resnet20")),
}
VARIANTS = ("eager", "channels_last", "compile")


def torch_timer(models: tuple[str, ...], teachers: int, device: str, dtype: str, variant: str) -> Timed:
    """Builds PyTorch's step in one variant, and returns the function that times it."""
    torch.manual_seed(0)
    layout = torch.contiguous_format if variant == "eager" else torch.channels_last
    networks: list[Any] = [torch_networks.structure(name, CLASSES).to(device).train() for name in models]
    networks = [network.to(memory_format=layout) for network in networks]
    optimizers = [torch.optim.SGD(network.parameters(), 0.01, momentum=0.9, weight_decay=5e-4) for network in networks]
    if variant == "compile":
        mode = "reduce-overhead" if device == "cuda" else None
        networks = [torch.compile(network, mode=mode) for network in networks]
    pairs = [(t, s) for t in range(teachers) for s in range(teachers, len(models))]
    step = torch_step.make_step(
        torch_step.Star(networks, optimizers, pairs), autocast=torch.bfloat16 if dtype == "bfloat16" else None
    )
    images = torch.randn(BATCH, 3, SIDE, SIDE, device=device).contiguous(memory_format=layout)
    labels = torch.randint(0, CLASSES, (BATCH,), device=device)

    def timed(paused: bool, steps: int) -> float:
        wait = torch.cuda.synchronize if device == "cuda" else (lambda: None)
        wait()
        begin = time.perf_counter()
        for _ in range(steps):
            torch.compiler.cudagraph_mark_step_begin()  # the outputs of the last step may be overwritten
            step(images, labels, paused)
        wait()
        return time.perf_counter() - begin

    return timed


def peak_flops(dtype: str, device: str) -> float:
    """Operations per second of a large matrix product of random numbers on this device."""
    side = {"cpu": 2048, "gpu": 8192}[device]
    x = jax.random.normal(jax.random.key(0), (side, side), dtype)
    product = jax.jit(lambda a: a @ a)
    product(x).block_until_ready()
    times = []
    for _ in range(5):
        begin = time.perf_counter()
        product(x).block_until_ready()
        times.append(time.perf_counter() - begin)
    return 2 * side**3 / statistics.median(times)


def warm_up(timer: Timed) -> None:
    """Takes a few steps in both modes, so that everything is compiled before the clock starts."""
    for paused in (False, True):
        timer(paused, 3)


def measure(topology: str, dtype: str, device: str, steps: int, rounds: int, peak: float) -> list[dict[str, Any]]:
    """Measures one topology; returns a row for each mode."""
    teachers, students = TOPOLOGIES[topology]
    models = (*teachers, *students)
    timers: dict[str, Timed] = {}
    timers["ours"], compiling = our_timer(our_config(teachers, students, dtype))
    warm_up(timers["ours"])
    failed = {}
    for variant in VARIANTS:
        try:
            timer = torch_timer(models, len(teachers), "cuda" if device == "gpu" else "cpu", dtype, variant)
            warm_up(timer)
            timers[variant] = timer
        except Exception as error:  # torch.compile raises many types where it has no compiler; the row reports them
            failed[variant] = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
    rates_by_round: dict[tuple[str, bool], list[float]] = {}
    for _ in range(rounds):
        for paused in (False, True):
            for name, timer in timers.items():
                rates_by_round.setdefault((name, paused), []).append(steps * BATCH / timer(paused, steps))
    image = torch.zeros(1, 3, SIDE, SIDE)
    flops = [torch_step.forward_flops(torch_networks.structure(name, CLASSES).eval(), image) for name in models]
    rows = []
    for paused in (False, True):
        rates = {name: statistics.median(rates_by_round[name, paused]) for name in timers}
        # A backward pass costs two forward ones.
        needed = sum(flop * (1 if paused and i < len(teachers) else 3) for i, flop in enumerate(flops))
        torch_rates = {name: rate for name, rate in rates.items() if name != "ours"}
        rows.append(
            {
                "topology": topology,
                "mode": "expert" if paused else "learning",
                "method": "switokd",
                "dtype": dtype,
                "device": device,
                "networks": models,
                "batch": BATCH,
                "ours_images_per_second": rates["ours"],
                "torch_images_per_second": torch_rates,
                "torch_failed": failed,
                "ratio_to_eager": rates["ours"] / torch_rates["eager"],
                "ratio_to_fastest_torch": rates["ours"] / max(torch_rates.values()),
                "rounds": {name: rates_by_round[name, paused] for name in timers},
                "flops_per_image": needed,
                "xla_flops_per_image": xla_flops(teachers, students, paused),
                "share_of_peak": rates["ours"] * needed / peak,
                **compiling,
            }
        )
    return rows


HEAD = (
    f"| topology | mode | dtype | ours | {' | '.join(f'torch {name}' for name in VARIANTS)} | to eager | to fastest "
    "| of peak | compile s |\n|" + "---|" * (8 + len(VARIANTS))
)


def table_row(row: dict[str, Any]) -> str:
    """Formats a row as Markdown, for the columns of `HEAD`."""
    rates = [row["torch_images_per_second"].get(name) for name in VARIANTS]
    cells = [row["topology"], row["mode"], row["dtype"], f"{row['ours_images_per_second']:.0f}"]
    cells += ["-" if rate is None else f"{rate:.0f}" for rate in rates]
    cells += [f"{row['ratio_to_eager']:.2f}", f"{row['ratio_to_fastest_torch']:.2f}"]
    cells += [f"{100 * row['share_of_peak']:.0f} %", f"{row['compile_seconds']:.1f}"]
    return f"| {' | '.join(cells)} |"


def environment(device: str) -> dict[str, Any]:
    """Returns versions, device, number of cores, and the peak memory so far."""
    result = {
        "jax": jax.__version__,
        "torch": torch.__version__,
        "device": str(jax.devices()[0].device_kind),
        "cores": len(os.sched_getaffinity(0)),
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    if device == "gpu":
        result["our_peak_memory_on_gpu_bytes"] = jax.devices()[0].memory_stats()["peak_bytes_in_use"]
    return result


def main() -> None:
    """Reads the flags, measures, prints, and writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--steps", type=int, default=8, help="timed in a row")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, default=Path("runs/speed.json"))
    parser.add_argument("--topologies", nargs="+", choices=TOPOLOGIES, default=[*TOPOLOGIES])
    parser.add_argument("--dtypes", nargs="+", choices=("float32", "bfloat16"), default=["float32"])
    args = parser.parse_args()
    if jax.default_backend() != args.device:
        sys.exit(f"--device={args.device}, and JAX runs on {jax.default_backend()}")
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    run = functools.partial(measure, device=args.device, steps=args.steps, rounds=args.rounds)
    print(f"images/s, medians of {args.rounds} rounds of {args.steps} steps\n\n{HEAD}", flush=True)
    args.json.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    peaks = {dtype: peak_flops(dtype, args.device) for dtype in args.dtypes}
    for dtype, peak in peaks.items():
        for topology in args.topologies:
            topology_rows = run(topology, dtype=dtype, peak=peak)
            rows += topology_rows
            # Written after each topology, so that an interrupted run keeps what it has measured.
            write_json(args.json, {"facts": {**environment(args.device), "peak_flops": peaks}, "rows": rows})
            print("\n".join(map(table_row, topology_rows)), flush=True)
    print(f"\n{json.dumps({**environment(args.device), 'peak_flops': peaks})}")


if __name__ == "__main__":
    main()
