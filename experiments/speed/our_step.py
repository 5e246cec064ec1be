"""Our training step as it is measured: what decides about the teacher is overruled by a traced value."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from switokd_jax import config, initialise, plan
from switokd_jax.data import batches, resident, sources
from switokd_jax.methods import Decision, Outputs

BATCH, CLASSES, SIDE = 128, 100, 32
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


def overruled(method: Callable[..., Decision]) -> Callable[..., Decision]:
    """The method, with a traced value in place of what it decides."""

    def apply(outputs: Outputs, labels: jax.Array, *rest: Any) -> Decision:
        decision = method(outputs, labels, *rest)
        learns = jnp.asarray(outputs.epoch) < LEARNING_EPOCHS
        return dataclasses.replace(decision, learn=dict.fromkeys(decision.learn, learns))

    return apply


def ours(c: Any) -> tuple[Timed, dict[str, float]]:
    """Our step, and what compiling it took."""
    split = sources.Split(
        np.random.default_rng(0).integers(0, 256, (8 * BATCH, SIDE, SIDE, 3)).astype(np.uint8),
        np.random.default_rng(1).integers(0, CLASSES, 8 * BATCH).astype(np.int32),
    )
    facts = sources.Facts(CLASSES, (SIDE, SIDE, 3), len(split), sources.KNOWN["cifar100"])
    made = plan.make(config.parse(c), facts, jax.devices()[:1])
    made = dataclasses.replace(made, method=dataclasses.replace(made.method, apply=overruled(made.method.apply)))
    begin = time.perf_counter()
    state = made.devices.place(initialise.initial(made))
    data = made.devices.place(resident.Resident(split.images, split.labels))
    step = made.devices.compile(plan.make_step(made), carried=True)
    drawn = made.devices.batches(
        batches.Stack(BATCH, 8, batches.Examples(np.arange(8 * BATCH, dtype=np.int32).reshape(8, BATCH)))
    )
    started = time.perf_counter()
    state, metrics = step.call(state, data, dataclasses.replace(drawn, count=1))
    jax.block_until_ready(metrics)
    ended = time.perf_counter()
    held = {"state": state}
    first_waiting_step = LEARNING_EPOCHS * made.steps_per_epoch

    def timed(paused: bool, steps: int) -> float:
        number = jnp.asarray(first_waiting_step if paused else 0, jnp.int32)
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
