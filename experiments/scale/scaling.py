"""How a step's time and memory grow with the batch, the networks, the classes, the devices and the images.

python experiments/scale/scaling.py --sweep batch width networks classes   # timed; leave the machine alone meanwhile
python experiments/scale/scaling.py --sweep devices pods                   # compiled; pods needs libtpu
python experiments/scale/scaling.py --sweep records                        # a stream over made records
python experiments/scale/scaling.py --page                                 # docs/scaling.md and its charts

A sweep writes results/scaling/SWEEP.json. The page is made from these files, so no number on it is typed by hand.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT)]

from experiments.speed.our_step import our_config, our_timer
from switokd_jax import config as configs
from switokd_jax.data.dataset import all_records
from switokd_jax.data.image_records import ImageSpec
from switokd_jax.data.loader import make_loader
from switokd_jax.data.sampling import ProcessShard
from switokd_jax.figures import style
from switokd_jax.files import read_json, write_json

RESULTS, PAGE, IMAGES = ROOT / "results" / "scaling", ROOT / "docs" / "scaling.md", ROOT / "docs" / "images"
MIB = 2**20
ROUNDS, STEPS = 5, 4  # of a timed point
MAX_LINEAR_RANGE = 16  # largest ratio of the last point to the first on a linear axis
IMAGE_SHAPE = (32, 32, 3)  # of a made record
Point = dict[str, float]


@dataclasses.dataclass(frozen=True)
class Sweep:
    """One dimension in which a run can grow.

    Attributes:
      title: of its section.
      text: says what is measured.
      x: name of the dimension.
      points: its values.
      measure: measures one of them.
      lines: columns that the chart shows, with their names.
      ylabel: of the chart.
      separate: whether each point has a process of its own.
    """

    title: str
    text: str
    x: str
    points: Sequence[int]
    measure: Callable[[int], Point]
    lines: dict[str, str]
    ylabel: str
    separate: bool = False


def timed_step(c: Any, classes: int = 100) -> Point:
    """Times a step in both modes, in turns after a warm-up; medians."""
    timed, costs = our_timer(c, classes=classes)
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for turn in range(-1, ROUNDS):
        for paused, measured in seconds.items():
            elapsed = timed(paused, STEPS)
            if turn >= 0:
                measured.append(elapsed / STEPS)
    learning, expert = (statistics.median(seconds[paused]) for paused in (False, True))
    return {
        "learning ms": 1e3 * learning,
        "expert ms": 1e3 * expert,
        "learning images/s": c.batch_size / learning,
        "expert images/s": c.batch_size / expert,
        "state MiB": costs["state_bytes"] / MIB,
        "temporary MiB": costs["temporary_bytes"] / MIB,
    }


def with_batch(size: int) -> Point:
    """Times a pair with batches of this size."""
    c = our_config(("resnet14",), ("resnet8",), "float32")
    c.batch_size = size
    return timed_step(c)


def with_width(width: int) -> Point:
    """Times a pair whose teacher has layers of `width` times the usual features."""
    return timed_step(our_config((f"wrn_16_{width}",), ("resnet8",), "float32"))


def with_networks(count: int) -> Point:
    """Times so many resnet8: all but one teach the last one. A single one learns alone."""
    c = our_config(("resnet8",) * max(count - 1, 1), ("resnet8",), "float32")
    if count == 1:
        del c.networks.n0
        c.method, c.topology.kind = "vanilla", "complete"
    return timed_step(c)


def with_classes(count: int) -> Point:
    """Times a pair with so many labels."""
    return timed_step(our_config(("resnet8",), ("resnet8",), "float32"), count)


def _compiled(topology: str, batch_per_chip: int) -> Point:
    """Compiles the CIFAR-100 pair for some devices, in a process of its own: their number is chosen once in each."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f".{topology.replace(':', '_')}.json"
    command = [sys.executable, str(ROOT / "experiments" / "scale" / "compile_pod.py"), f"--topology={topology}"]
    subprocess.run([*command, f"--batch_per_chip={batch_per_chip}", f"--json={path}"], check=True, stdout=sys.stderr)
    figures = read_json(path)
    path.unlink()
    return {
        "GFLOP a device": figures["flops_per_chip"] / 1e9,
        "temporary MiB a device": figures["bytes_per_chip"]["temporary"] / MIB,
        "collectives": figures["collectives"],
        "communicated MB": figures["collective_bytes"] / 1e6,
    }


def on_devices(count: int) -> Point:
    """Compiles the pair for simulated CPU devices, 16 images on each."""
    return _compiled(f"cpu:{count}", 16)


def on_chips(count: int) -> Point:
    """Compiles the pair for a slice of TPU v5e, 128 images on each chip."""
    side = round(count**0.5)
    return _compiled(f"v5e:{side}x{side}", 128)


@dataclasses.dataclass(frozen=True, eq=False)
class MadeRecords:
    """Random images that are made when they are asked for.

    Attributes:
      count: number of records.
    """

    count: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return np.random.default_rng(index).integers(0, 256, IMAGE_SHAPE).astype(np.uint8), index % 100

    def describe(self, index: int) -> str:
        """Names an example by its index."""
        return f"record {index}"


def with_records(count: int) -> Point:
    """Opens a stream over so many records, in this process's thread, and reads its first batches."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin = time.perf_counter()
    split = all_records(MadeRecords(count), None)
    spec = configs.DataConfig(name="folder", pipeline="stream", workers=0)
    loader = make_loader(split, ImageSpec(IMAGE_SHAPE, False, False), spec, 0, 128, ProcessShard())
    batches = loader.train_batches(0, 10)
    next(batches)
    first = time.perf_counter()
    for _ in range(5):
        next(batches)
    later = time.perf_counter()
    batches.close()
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {
        "s to the first batch": first - begin,
        "ms a later batch": 1e3 * (later - first) / 5,
        "MiB more": grown * (1 if sys.platform == "darwin" else 1024) / MIB,
    }


BOTH = {"learning images/s": "both learn", "expert images/s": "the teacher pauses"}
TIMES = {"learning ms": "all learn", "expert ms": "teachers pause"}
SWEEPS = {
    "batch": Sweep(
        "Batch size",
        "resnet14 teaches resnet8, 32x32 pixels, 100 classes, float32.",
        "batch size",
        (16, 32, 64, 128, 256),
        with_batch,
        BOTH,
        "images/s",
    ),
    "width": Sweep(
        "Width of the teacher",
        "wrn_16_k teaches resnet8, batch 128.",
        "width k",
        (1, 2, 4),
        with_width,
        BOTH,
        "images/s",
    ),
    "networks": Sweep(
        "Number of networks",
        "A star of resnet8: all but one teach the last one; batch 128. One network learns alone. A step costs about "
        "the sum of its networks'.",
        "networks",
        (1, 2, 3, 4, 6, 8),
        with_networks,
        TIMES,
        "ms a step",
    ),
    "classes": Sweep(
        "Number of classes",
        "resnet8 teaches resnet8, batch 128: what grows are the classifier, the distances and the gap.",
        "classes",
        (10, 100, 1000, 10_000),
        with_classes,
        TIMES,
        "ms a step",
    ),
    "devices": Sweep(
        "Devices, compiled",
        "wrn_16_2 teaches mobilenetv2_0.5 on simulated CPU devices, 16 images on each; compiled, not run.",
        "devices",
        (1, 2, 4, 8),
        on_devices,
        {"GFLOP a device": "GFLOP a device"},
        "GFLOP a device",
    ),
    "pods": Sweep(
        "Chips, compiled",
        "The same pair on a slice of TPU v5e, 128 images on each chip; compiled for the slice, not run.",
        "chips",
        (16, 64, 256),
        on_chips,
        {"GFLOP a device": "GFLOP a chip"},
        "GFLOP a chip",
    ),
    "records": Sweep(
        "Images of a stream",
        "A stream over records that are made when they are read, batch 128, each count in a new process. The order of "
        "an epoch is drawn whole; it takes 4 bytes an image, the index 8, and drawing it 8 more.",
        "images",
        (10**4, 10**5, 10**6, 10**7),
        with_records,
        {"s to the first batch": "seconds to the first batch"},
        "seconds to the first batch",
        separate=True,
    ),
}


def measure(name: str) -> None:
    """Measures all points of a sweep and writes its JSON."""
    sweep, rows = SWEEPS[name], []
    for value in sweep.points:
        if sweep.separate:
            command = [sys.executable, __file__, "--point", name, str(value)]
            point = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        else:
            point = sweep.measure(value)
        rows.append({sweep.x: value, **point})
        print(rows[-1], flush=True)
    RESULTS.mkdir(parents=True, exist_ok=True)
    device = jax.devices()[0]
    write_json(RESULTS / f"{name}.json", {"device": device.device_kind, "jax": jax.__version__, "rows": rows})


def draw(name: str, rows: Sequence[Point]) -> Path:
    """Draws the chart of a sweep."""
    sweep = SWEEPS[name]
    figure = Figure(figsize=(5, 3.2), layout="constrained")
    axes = figure.subplots()
    xs = [row[sweep.x] for row in rows]
    for color, (column, label) in zip(style.NETWORKS, sweep.lines.items(), strict=False):
        axes.plot(xs, [row[column] for row in rows], color=color, marker="o", markersize=4, label=label)
    style.style_axes(axes, sweep.x, sweep.ylabel)
    if xs[-1] > MAX_LINEAR_RANGE * xs[0]:
        axes.set_xscale("log")
    axes.set_xticks(xs)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
    axes.set_ylim(0, None)
    if len(sweep.lines) > 1:
        axes.legend(frameon=False)
    return style.save(figure, IMAGES / f"scaling_{name}.png")


def number(value: float) -> str:
    """Formats a number for a table, to three digits.

    >>> [number(x) for x in (10_000_000, 1234.5, 98.86, 0.01234)]
    ['10,000,000', '1,234', '98.9', '0.0123']
    """
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"


def section(name: str) -> str:
    """Returns the section of a sweep that has been measured."""
    sweep, found = SWEEPS[name], read_json(RESULTS / f"{name}.json")
    columns = [*found["rows"][0]]
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    lines += [f"| {' | '.join(number(row[column]) for column in columns)} |" for row in found["rows"]]
    alt = f"{', '.join(sweep.lines.values())}, over {sweep.x}"
    return (
        f"## {sweep.title}\n\n{sweep.text} Device: {found['device']}; JAX {found['jax']}.\n\n"
        f"    python experiments/scale/scaling.py --sweep {name}\n\n" + "\n".join(lines) + "\n\n"
        f"![{alt}](images/scaling_{name}.png)\n"
    )


HEAD = """# How training scales

<!-- Written by experiments/scale/scaling.py from results/scaling/; edit the script. -->

Each section grows one dimension of a run and leaves the others alone. Times are medians of {rounds} turns of {steps}
steps, learning and expert mode in turns after a warm-up. Memory is what XLA plans: the state, and the arrays within a
step.

"""


def write_page() -> None:
    """Writes docs/scaling.md and the charts from what has been measured."""
    measured = [name for name in SWEEPS if (RESULTS / f"{name}.json").exists()]
    for name in measured:
        draw(name, read_json(RESULTS / f"{name}.json")["rows"])
    PAGE.write_text(HEAD.format(rounds=ROUNDS, steps=STEPS) + "\n".join(map(section, measured)), encoding="utf-8")


def main() -> None:
    """Parses the flags; measures, or writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweep", nargs="+", default=[], choices=[*SWEEPS])
    parser.add_argument("--point", nargs=2, metavar=("SWEEP", "VALUE"), help="print one point as JSON")
    parser.add_argument("--page", action="store_true", help="write docs/scaling.md and its charts")
    args = parser.parse_args()
    if args.point:
        name, value = args.point
        print(json.dumps(SWEEPS[name].measure(int(value))))
    for name in args.sweep:
        measure(name)
    if args.page:
        write_page()


if __name__ == "__main__":
    main()
