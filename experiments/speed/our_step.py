"""Our train step as it is measured: a traced value replaces the decision about the teacher."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from switokd_jax import config
from switokd_jax.data import dataset, normalization, resident, sampling
from switokd_jax.forward import forward
from switokd_jax.methods import MethodInputs, MethodOutput
from switokd_jax.models.layers import with_options
from switokd_jax.models.ops import convolution
from switokd_jax.parallel.collectives import Collectives
from switokd_jax.parallel.mesh import DeviceBatches
from switokd_jax.state import TrainState
from switokd_jax.train import init_state, run_spec
from switokd_jax.train.run_spec import TrainStepFn, make_train_inputs, make_train_step

BATCH, CLASSES, SIDE = 128, 100, 32
STACK = 8  # number of batches of one call
LEARNING_EPOCHS = 10**6  # the teacher learns before this epoch of a measured run and pauses from it on
Timed = Callable[[bool, int], float]
"""Takes (paused, steps); returns the seconds of that many steps."""


def our_config(teachers: tuple[str, ...], students: tuple[str, ...], dtype: str) -> Any:
    """Builds the config of a star, or of a pair."""
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
    """Returns the method with a traced value in place of its decisions."""

    def apply(inputs: MethodInputs, labels: jax.Array, *rest: Any) -> MethodOutput:
        output = method(inputs, labels, *rest)
        learns = jnp.asarray(inputs.epoch) < LEARNING_EPOCHS
        return dataclasses.replace(output, should_update=dict.fromkeys(output.should_update, learns))

    return apply


def make_run_spec(c: Any, classes: int = CLASSES) -> run_spec.RunSpec:
    """Returns the run specification of a config for the measured images, with its decisions overruled."""
    info = dataset.DatasetInfo(classes, (SIDE, SIDE, 3), STACK * c.batch_size, normalization.PUBLISHED["cifar100"])
    run = run_spec.make(config.parse(c), info, jax.devices()[:1])
    return dataclasses.replace(run, method=dataclasses.replace(run.method, apply=overruled(run.method.apply)))


def inputs(run: run_spec.RunSpec) -> tuple[TrainState, resident.DeviceDataset, DeviceBatches]:
    """Returns state, random images and the batches of one call, all on the devices."""
    batch, classes = run.config.batch_size, run.dataset_info.num_classes
    images = np.random.default_rng(0).integers(0, 256, (STACK * batch, SIDE, SIDE, 3)).astype(np.uint8)
    labels = np.random.default_rng(1).integers(0, classes, STACK * batch).astype(np.int32)
    index = np.arange(STACK * batch, dtype=np.int32).reshape(STACK, batch)
    return (
        run.distribution.device_put(init_state.init_state(run)),
        run.distribution.device_put(resident.DeviceDataset(images, labels)),
        run.distribution.put_batches(sampling.StackedBatches(batch, STACK, sampling.Batch(index))),
    )


def forward_only(run: run_spec.RunSpec) -> TrainStepFn:
    """Returns a step that is only the forward pass of the first network, in training mode."""
    name = run.topology.nodes[0]
    network = run.networks[name]
    make_inputs = make_train_inputs(run)

    def step(
        collectives: Collectives, state: TrainState, data: Any, batch: sampling.Batch
    ) -> tuple[TrainState, jax.Array]:
        images = make_inputs(data, batch, state.key, state.step, collectives).images
        positions = jnp.arange(BATCH, dtype=jnp.int32)
        forward_pass = forward(network, state.networks[name], images, positions, state.key)
        with_new_stats = dataclasses.replace(state.networks[name], batch_stats=forward_pass.batch_stats)
        new_state = dataclasses.replace(state, networks={**state.networks, name: with_new_stats}, step=state.step + 1)
        return new_state, jnp.mean(forward_pass.outputs[name].logits)

    return step


@functools.cache
def xla_flops(teachers: tuple[str, ...], students: tuple[str, ...], paused: bool) -> float | None:
    """Counts the operations of a star's step per image, as XLA does before optimization.

    Our convolutions loop over images on CPU, and XLA counts the body of a loop once; so the count is that of lax's own
    convolutions. None on backends that do not count, such as GPUs.
    """
    run = make_run_spec(our_config(teachers, students, "float32"))
    state, data, batches = inputs(run)
    lax_convolution = convolution.for_devices("tpu", single_device=True)
    networks = {
        name: dataclasses.replace(
            network,
            module=with_options(network.module, convolution=lax_convolution),
            frozen=paused and name in {teacher for teacher, _ in run.pairs},
        )
        for name, network in run.networks.items()
    }
    step = run.distribution.compile(make_train_step(dataclasses.replace(run, networks=networks)), has_state=True)
    costs = step.variants[True].lower(state, data, batches.examples, 1).cost_analysis()
    return float(costs["flops"]) / BATCH if costs else None


def our_timer(
    c: Any,
    make_step: Callable[[run_spec.RunSpec], TrainStepFn] = make_train_step,
    options: Mapping[str, Any] | None = None,
    change_run: Callable[[run_spec.RunSpec], run_spec.RunSpec] = lambda run: run,
    classes: int = CLASSES,
) -> tuple[Timed, dict[str, float]]:
    """Prepares a step for measurements.

    Args:
      c: ConfigDict of the run.
      make_step: builds the step of a run.
      options: compiler options of XLA beside the package's own.
      change_run: applied to the run before its state and step are made.
      classes: number of labels.

    Returns:
      The function that times the step; then the seconds of compiling it, and the bytes of its state and of its
      temporary arrays.
    """
    run = change_run(make_run_spec(c, classes))
    begin = time.perf_counter()
    state, data, batches = inputs(run)
    step = run.distribution.compile(make_step(run), has_state=True)
    step = dataclasses.replace(step, options={**step.options, **(options or {})})
    started = time.perf_counter()
    state, metrics = step.call(state, data, dataclasses.replace(batches, count=1))
    jax.block_until_ready(metrics)
    ended = time.perf_counter()
    carry = {"state": state}
    first_paused_step = LEARNING_EPOCHS * run.steps_per_epoch

    def timed(paused: bool, steps: int) -> float:
        # With the sharding that the step returns: another one would compile another program.
        number = run.distribution.device_put(np.int32(first_paused_step if paused else 0))
        state = jax.block_until_ready(dataclasses.replace(carry["state"], step=number))
        begin = time.perf_counter()
        for done in range(0, steps, batches.count):
            call_batches = dataclasses.replace(batches, count=min(batches.count, steps - done))
            state, metrics = step.call(state, data, call_batches)
        jax.block_until_ready((state, metrics))
        seconds = time.perf_counter() - begin
        carry["state"] = state
        return seconds

    memory = step.executable(state, data, batches).memory_analysis()
    return timed, {
        "compile_seconds": ended - started,
        "seconds_to_first_step": ended - begin,
        "state_bytes": sum(x.nbytes for x in jax.tree.leaves(state)),
        "temporary_bytes": memory.temp_size_in_bytes if memory else 0,  # a backend may not say
    }
