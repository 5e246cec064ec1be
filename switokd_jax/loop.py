"""Train, evaluate, save, draw: one run from a config to its summary."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import serialization
from ml_collections import ConfigDict

from switokd_jax import checkpoint, distribution, figures, logs, plan, report, scoring, state
from switokd_jax import config as configs
from switokd_jax.data import resident, sources
from switokd_jax.fields import ConfigError
from switokd_jax.files import write_json
from switokd_jax.interop import pytorch

# A run may go on with other values of these; anything else would make it another run.
MAY_CHANGE = ("log", "checkpoint", "data.dir", "parallelism", "sharding")


def train_and_evaluate(config: ConfigDict, workdir: str | Path) -> dict[str, Any]:
    """Trains the networks of a config, or goes on where an earlier call with the same workdir stopped.

    Args:
      config: as `config.default()` makes it.
      workdir: a folder for config.json, metrics.jsonl, summary.json, checkpoints/, figures/.

    Returns:
      The summary, as it stands in summary.json.

    Raises:
      ConfigError: one line that names the field, file or network at fault; nothing has been trained.
    """
    parsed = configs.parse(config)
    with jax.enable_x64(parsed.dtype == "float64"):
        dataset, run = prepare(parsed)
        folder = open_workdir(Path(workdir), config)
        return _Run(run, dataset, folder).train()


def prepare(parsed: configs.Config) -> tuple[sources.Dataset, plan.Plan]:
    """Loads the data set and builds the plan; nothing is written or compiled."""
    plan.make_topology(parsed)  # before the data is read: it is the likelier mistake
    dataset = sources.load(parsed.data.name, parsed.data.dir, parsed.data.validation_fraction, parsed.seed)
    return dataset, plan.make(parsed, dataset.num_classes, len(dataset.train), dataset.preprocess)


def dry_run(parsed: configs.Config) -> str:
    """The plan of a run as text: networks, shapes, steps, memory; trains nothing."""
    with jax.enable_x64(parsed.dtype == "float64"):
        dataset, run = prepare(parsed)
        start = initial(run, dataset)
        return report.describe(run, dataset, start) + "\n" + report.parameter_tables(run, start)


def initial(run: plan.Plan, dataset: sources.Dataset) -> state.TrainState:
    """The state before the first step, from the seed and from `init_from` where a network has one."""
    made = {}
    for name, network in run.networks.items():
        spec = run.config.networks[name]
        made[name] = state.initial_variables(network.module, name, run.config.seed, dataset.image_shape)
        if spec.init_from:
            made[name] = _initialised_from(spec.init_from, spec.model, dataset.num_classes, made[name])
    return state.initial_state(run.networks, made, run.pairs, run.config.seed)


def open_workdir(folder: Path, config: ConfigDict) -> Path:
    """Makes the folder with its config.json, or checks that it holds a run of the same config.

    Raises:
      ConfigError: if it cannot be written, or another run lives there.
    """
    text = json.loads(config.to_json_best_effort())
    path = folder / "config.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if path.exists():
            _check_same(_flat(json.loads(path.read_text())), _flat(text), folder)
        write_json(path, text)
    except OSError as error:
        raise ConfigError(f"--workdir {folder} cannot be written ({error.strerror}); choose another folder") from None
    except json.JSONDecodeError:
        raise ConfigError(f"{path} is not JSON; choose another --workdir or remove that file") from None
    return folder


def _check_same(old: dict[str, Any], new: dict[str, Any], folder: Path) -> None:
    for name in sorted(old.keys() | new.keys()):
        if name.startswith(MAY_CHANGE) or old.get(name) == new.get(name):
            continue
        raise ConfigError(
            f"--workdir {folder} holds a run with config.{name} = {old.get(name)!r}, not {new.get(name)!r}; "
            "choose another folder, or the old config to go on with that run"
        )


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in tree.items():
        out |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return out


@dataclasses.dataclass
class _Clock:
    """Training time and examples of all restarts; compilation and evaluation are left out."""

    seconds: float = 0.0
    examples: int = 0
    _since: float | None = None

    @property
    def rate(self) -> float:
        """Images per second."""
        return self.examples / self.seconds if self.seconds else 0.0

    def start(self) -> None:
        """Runs from now on."""
        self._since = time.monotonic()

    def stop(self) -> None:
        """Adds the time since `start`."""
        if self._since is not None:
            self.seconds += time.monotonic() - self._since
            self._since = None

    def lap(self) -> None:
        """Brings `seconds` up to now and goes on."""
        self.stop()
        self.start()


class _Run:
    """What one call of `train_and_evaluate` holds: the plan, the compiled steps, the placed data."""

    def __init__(self, run: plan.Plan, dataset: sources.Dataset, folder: Path):
        self.plan, self.config, self.folder, self.dataset = run, run.config, folder, dataset
        self.names = run.topology.nodes
        self.clock = _Clock()
        self.best: dict[str, dict[str, float]] = {}
        self.compiled_for: set[int] = set()  # batch sizes
        devices = run.devices
        self.step = devices.compile(plan.make_step(run), donate=True)
        modules = {name: network.module for name, network in run.networks.items()}
        dtype = plan.DTYPES[self.config.dtype]
        self.score = devices.compile(
            scoring.score_step(modules, dataset.preprocess, dataset.num_classes, dtype), donate=False
        )
        splits = {"validation": dataset.validation, "test": dataset.test}
        self.scored = {name: split for name, split in splits.items() if len(split)}
        self.data = {name: devices.place(resident.resident(split)) for name, split in self.scored.items()}
        self.train_data = devices.place(resident.resident(dataset.train))
        self.selected_on = next(iter(self.scored))  # validation where there is one

    def train(self) -> dict[str, Any]:
        config, run, main = self.config, self.plan, distribution.is_main_process()
        checkpoints = checkpoint.open_checkpoints(self.folder, self.names, config.checkpoint, run.steps_per_epoch)
        host = initial(run, self.dataset)
        template = run.devices.template(serialization.to_state_dict(host))
        if restored := checkpoints.restore(host, template):
            host, progress = restored
            self.clock = _Clock(progress["seconds"], progress["examples"])
            self.best = progress["best"]
        first = int(host.step)
        if main:
            logs.drop_beyond(self.folder / "metrics.jsonl", first)
        writer = logs.open_writer(self.folder, config.log.tensorboard and main)
        shown = config.log.progress and main
        bar = logs.Progress(run.total_steps, first, run.epoch(run.total_steps), shown=shown)
        bar.say(report.describe(run, self.dataset, host) + "\n" + report.parameter_tables(run, host))
        if first:
            bar.say(f"resuming {self.folder} at step {first} of {run.total_steps}")
        current = run.devices.place(host)
        events = self._events(first)
        indices = resident.batches(config.seed, len(self.dataset.train), config.batch_size, first)
        for stop, evaluate, save in events:
            current = self._steps(current, indices, first, stop, writer, bar)
            first = stop
            if evaluate:
                self._evaluate(current, stop, writer, bar, checkpoints)
            if save:
                progress = {"seconds": self.clock.seconds, "examples": self.clock.examples, "best": self.best}
                checkpoints.save_latest(stop, run.devices.one(current), progress)
        checkpoints.close()
        writer.close()
        bar.close()
        return self._finish(run.devices.one(current), bar)

    def _events(self, first: int) -> list[tuple[int, bool, bool]]:
        """(step, evaluate, save) after `first`, in order; the last step does both."""
        total, per_epoch = self.plan.total_steps, self.plan.steps_per_epoch
        evaluations = _marks(self.config.eval_every * per_epoch, total)
        saves = _marks(self.config.checkpoint.every * per_epoch, total)
        return [(s, s in evaluations, s in saves) for s in sorted(evaluations | saves) if s > first]

    def _steps(
        self,
        current: state.TrainState,
        indices: Iterator[np.ndarray],
        first: int,
        stop: int,
        writer: logs.Writer,
        bar: logs.Progress,
    ) -> state.TrainState:
        waiting: list[Any] = []
        self.clock.start()
        for step in range(first, stop):
            batch = next(indices)
            fresh = len(batch) not in self.compiled_for
            if fresh:  # this call compiles: it tells nothing of the speed
                jax.block_until_ready(current)
                self.clock.stop()
            current, metrics = self.step.call(current, self.train_data, batch)
            waiting.append(metrics)
            if fresh:
                jax.block_until_ready(current)
                self.compiled_for.add(len(batch))
                self.clock.start()
            else:
                self.clock.examples += len(batch)
            if (step + 1) % self.config.log.every == 0 or step + 1 == stop:
                lines = self._lines(step + 1, waiting)
                waiting = []
                self.clock.lap()
                if distribution.is_main_process():
                    writer.write(lines)
                bar.step(step + 1, lines[-1], self.clock.rate, _share(lines))
        self.clock.stop()
        return current

    def _lines(self, last: int, waiting: list[Any]) -> list[logs.Line]:
        host = jax.device_get([self.plan.devices.one(metrics) for metrics in waiting])
        steps = range(last - len(host) + 1, last + 1)
        return [
            {"split": "train", "epoch": round(self.plan.epoch(step), 6), "step": step, **_numbers(metrics)}
            for step, metrics in zip(steps, host, strict=True)
        ]

    def _evaluate(
        self,
        current: state.TrainState,
        step: int,
        writer: logs.Writer,
        bar: logs.Progress,
        checkpoints: checkpoint.Checkpoints,
    ) -> None:
        variables = {name: current.networks[name].evaluated for name in self.names}
        one = self.plan.devices.one
        scores = {
            split: scoring.score(
                self.score.call, one, variables, self.data[split], len(examples), self.config.batch_size
            )
            for split, examples in self.scored.items()
        }
        lines = []
        for split, by_name in scores.items():
            line: logs.Line = {"split": split, "epoch": round(self.plan.epoch(step), 6), "step": step}
            for name in self.names:
                line |= {f"{name}/{key}": by_name[name][key] for key in ("loss", "top1", "top5")}
                line[f"{name}/class_top1"] = [None if math.isnan(x) else x for x in by_name[name]["class_top1"]]
            lines.append(line)
        if distribution.is_main_process():
            writer.write(lines)
        shares = logs.expert_shares(jax.device_get(one(current.expert_steps)), step)
        share = sum(shares.values()) / len(shares) if shares else None
        for line in lines:
            bar.evaluated(step, line, self.clock.rate, share)
        for name in self.names:
            score = scores[self.selected_on][name]["top1"]
            if name not in self.best or score > self.best[name]["score"]:
                self.best[name] = {"score": score, "step": step, "top1": scores["test"][name]["top1"]}
                checkpoints.save_best(name, step, jax.tree.map(np.array, jax.device_get(one(variables[name]))))

    def _finish(self, final: state.TrainState, bar: logs.Progress) -> dict[str, Any]:
        tests = [line for line in logs.read_metrics(self.folder / "metrics.jsonl") if line["split"] == "test"]
        updates = {name: int(network.updates) for name, network in final.networks.items()}
        shares = logs.expert_shares({k: int(v) for k, v in final.expert_steps.items()}, int(final.step))
        parameters = {name: report.count(network.params) for name, network in final.networks.items()}
        summary = {
            "steps": int(final.step),
            "epochs": self.plan.epoch(int(final.step)),
            "seconds": round(self.clock.seconds, 3),
            "examples_per_second": round(self.clock.rate, 1),
            "best_selected_on": self.selected_on,
            "networks": {
                name: {
                    "model": self.config.networks[name].model,
                    "parameters": parameters[name],
                    "final_top1": tests[-1][f"{name}/top1"],
                    "best_top1": self.best[name]["top1"],
                    "best_epoch": self.plan.epoch(int(self.best[name]["step"])),
                    "final_loss": tests[-1][f"{name}/loss"],
                    "updates": updates[name],
                }
                for name in self.names
            },
            "switch": {pair: {"expert_fraction": share} for pair, share in shares.items()},
        }
        if distribution.is_main_process():
            write_json(self.folder / "summary.json", summary)
            drawn = figures.draw_run(self.folder)
            bar.say(report.closing(summary, [path.relative_to(self.folder) for path in drawn], self.folder))
        return summary


def _marks(every: float, total: int) -> set[int]:
    """Whole steps nearest to the multiples of `every`, and the last one."""
    marks = set() if every <= 0 else {max(round(i * every), 1) for i in range(1, int(total / every) + 1)}
    return {step for step in marks if step <= total} | {total}


def _share(lines: list[logs.Line]) -> float | None:
    keys = [key for key in lines[-1] if key.endswith("/expert")]
    return float(np.mean([[line[key] for key in keys] for line in lines])) if keys else None


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float | bool]:
    return {name: bool(x) if x.dtype == bool else float(x) for name, x in metrics.items()}


def _initialised_from(source: str, model: str, num_classes: int, like: dict[str, Any]) -> dict[str, Any]:
    try:
        if source.endswith((*pytorch.TORCH_SUFFIXES, ".safetensors")):
            read = pytorch.variables(model, pytorch.read(source), num_classes)
        else:
            read = checkpoint.read_network(source)
        return jax.tree.map(lambda old, new: np.asarray(new, old.dtype).reshape(old.shape), like, read)
    except ValueError as error:
        raise ConfigError(f"init_from {source!r} does not fit {model}: {error}") from None
