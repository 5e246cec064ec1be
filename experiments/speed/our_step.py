"""Our training step as it is measured: what decides about the teacher is overruled by a traced value."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from switokd_jax import config
from switokd_jax.data import dataset, loader, normalization, resident, sampling
from switokd_jax.forward import forward
from switokd_jax.methods import MethodInputs, MethodOutput
from switokd_jax.models.layers import with_options
from switokd_jax.models.ops import convolution
from switokd_jax.parallel.collectives import Collectives
from switokd_jax.parallel.mesh import DeviceBatches
from switokd_jax.precision import DTYPES
from switokd_jax.state import TrainState
from switokd_jax.train import init_state, run_spec
from switokd_jax.train.run_spec import TrainStepFn

BATCH, CLASSES, SIDE = 128, 100, 32
STACK = 8  # batches of one call
LEARNING_EPOCHS = 10**6  # of the measured runs: the teacher learns before this epoch and waits from it on
Timed = Callable[[bool, int], float]
"""(paused, steps) to the seconds that so many steps take."""


def our_config(teachers: tuple[str, ...], students: tuple[str, ...], dtype: str) -> Any:
    """The config of a star, or of a pair."""
    c = config.default()
    c.data.name, c.batch_size, c.dtype = "cifar100", BATCH, dtype
    names = [f"n{i}" for i in range(len(teachers) + len(students))]
    c.topology.kind = "pair" if len(names) == 2 else "star"
    c.topology.teachers, c.topology.students = tuple(names[: len(teachers)]), tuple(names[len(teachers) :])
    c.networks = {
        name: config.network(model=model, learning_rate=0.01, schedule="constant")
        for name, model in zip(names, (*teachers, *students), strict=True)
    }
    return c


def overruled(method: Callable[..., MethodOutput]) -> Callable[..., MethodOutput]:
    """The method, with a traced value in place of what it decides."""

    def apply(outputs: MethodInputs, labels: jax.Array, *rest: Any) -> MethodOutput:
        decision = method(outputs, labels, *rest)
        learns = jnp.asarray(outputs.epoch) < LEARNING_EPOCHS
        return dataclasses.replace(decision, should_update=dict.fromkeys(decision.should_update, learns))

    return apply


def planned(c: Any) -> run_spec.RunSpec:
    """The plan of a config for the measured images, its decisions overruled."""
    facts = dataset.DatasetInfo(CLASSES, (SIDE, SIDE, 3), STACK * BATCH, normalization.PUBLISHED["cifar100"])
    made = run_spec.make(config.parse(c), facts, jax.devices()[:1])
    return dataclasses.replace(made, method=dataclasses.replace(made.method, apply=overruled(made.method.apply)))


def inputs(made: run_spec.RunSpec) -> tuple[TrainState, resident.DeviceDataset, DeviceBatches]:
    """State, random images and one call's batches, placed."""
    images = np.random.default_rng(0).integers(0, 256, (STACK * BATCH, SIDE, SIDE, 3)).astype(np.uint8)
    labels = np.random.default_rng(1).integers(0, CLASSES, STACK * BATCH).astype(np.int32)
    index = np.arange(STACK * BATCH, dtype=np.int32).reshape(STACK, BATCH)
    return (
        made.distribution.device_put(init_state.init_state(made)),
        made.distribution.device_put(resident.DeviceDataset(images, labels)),
        made.distribution.put_batches(sampling.StackedBatches(BATCH, STACK, sampling.Batch(index))),
    )


def forward_only(made: run_spec.RunSpec) -> TrainStepFn:
    """A step that is the first network's forward pass in training mode, and nothing else."""
    name = made.topology.nodes[0]
    network = made.networks[name]
    read = loader.train_inputs(
        made.dataset_info.preprocess,
        made.config.data,
        steps_per_epoch=made.steps_per_epoch,
        dtype=DTYPES[made.config.dtype],
    )

    def step(
        collectives: Collectives, state: TrainState, data: Any, batch: sampling.Batch
    ) -> tuple[TrainState, jax.Array]:
        images, _ = read(data, batch, state.rng, state.step)
        positions = jnp.arange(BATCH, dtype=jnp.int32)
        forward_pass = forward(network, state.networks[name], images, positions, state.rng)
        new_network = dataclasses.replace(state.networks[name], batch_stats=forward_pass.batch_stats)
        new_state = dataclasses.replace(state, networks={**state.networks, name: new_network}, step=state.step + 1)
        return new_state, jnp.mean(forward_pass.output.logits)

    return step


@functools.cache
def xla_flops(teachers: tuple[str, ...], students: tuple[str, ...], paused: bool) -> float | None:
    """Operations of a star's step per image, as XLA counts them before it optimises.

    On CPU our convolutions loop over images, and XLA counts a loop's body once: counted are lax's own convolutions.
    None where a backend does not count: GPUs.
    """
    made = planned(our_config(teachers, students, "float32"))
    state, data, drawn = inputs(made)
    plain = convolution.for_devices("tpu", single_device=True)
    networks = {
        name: dataclasses.replace(
            network,
            module=with_options(network.module, convolution=plain),
            frozen=paused and name in {teacher for teacher, _ in made.pairs},
        )
        for name, network in made.networks.items()
    }
    step = made.distribution.compile(
        run_spec.make_train_step(dataclasses.replace(made, networks=networks)), has_state=True
    )
    costs = step.variants[True].lower(state, data, drawn.examples, 1).cost_analysis()
    return float(costs["flops"]) / BATCH if costs else None


def ours(
    c: Any, make_step: Callable[[run_spec.RunSpec], TrainStepFn] = run_spec.make_train_step
) -> tuple[Timed, dict[str, float]]:
    """Our step, and what compiling it took."""
    made = planned(c)
    begin = time.perf_counter()
    state, data, drawn = inputs(made)
    step = made.distribution.compile(make_step(made), has_state=True)
    started = time.perf_counter()
    state, metrics = step.call(state, data, dataclasses.replace(drawn, count=1))
    jax.block_until_ready(metrics)
    ended = time.perf_counter()
    held = {"state": state}
    first_waiting_step = LEARNING_EPOCHS * made.steps_per_epoch

    def timed(paused: bool, steps: int) -> float:
        # Placed as the step returns it: another placement would be another program.
        number = made.distribution.device_put(np.int32(first_waiting_step if paused else 0))
        state = jax.block_until_ready(dataclasses.replace(held["state"], step=number))
        begin = time.perf_counter()
        for done in range(0, steps, drawn.count):
            coming = dataclasses.replace(drawn, count=min(drawn.count, steps - done))
            state, metrics = step.call(state, data, coming)
        jax.block_until_ready((state, metrics))
        taken = time.perf_counter() - begin
        held["state"] = state
        return taken

    return timed, {"compile_seconds": ended - started, "seconds_to_first_step": ended - begin}
