"""Learning-rate schedules on the global step, and optax chains without the learning rate.

The learning rate is applied outside the chain. Inside, optax counts a network's own updates, so a paused teacher would
stretch its schedule. Sources: torch.optim's definitions for SGD, Adam and AdamW (SGD's rate scales after the momentum
trace; Adam's weight decay is L2 in the gradient, AdamW's is decoupled), optax's for the others.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

# Global step [int32], counted from 0, to the learning rate [scalar float].
Schedule = Callable[[jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class ScheduleSettings:
    """Arguments of a builder in `SCHEDULES`; durations are in steps of the whole run.

    Attributes:
      learning_rate: highest learning rate, reached after the warm-up.
      total_steps: number of steps of the run.
      warmup_steps: number of steps of linear warm-up.
      milestones: steps from which on the rate is multiplied by `decay` once more.
      decay: factor at each milestone.
      final_learning_rate: learning rate at the end of the schedules that have one.
    """

    learning_rate: float
    total_steps: int
    warmup_steps: int = 0
    milestones: tuple[int, ...] = ()
    decay: float = 0.1
    final_learning_rate: float = 0.0

    @property
    def decay_steps(self) -> int:
        """Number of steps after the warm-up, at least 1."""
        return max(self.total_steps - self.warmup_steps, 1)

    @property
    def final_factor(self) -> float:
        """Final learning rate as a fraction of the highest."""
        return self.final_learning_rate / self.learning_rate if self.learning_rate else 0.0


@dataclasses.dataclass(frozen=True)
class OptimizerSettings:
    """Arguments of a builder in `OPTIMIZERS`.

    Attributes:
      momentum: momentum of SGD, LARS and Muon.
      nesterov: whether SGD and LARS use Nesterov momentum.
      betas: decay rates of both moments for the Adam family and Lion; None for the optimizer's own.
      weight_decay: coefficient of the weight decay.
      decay_all: whether biases and normalization parameters decay, too; otherwise only kernels do.
    """

    momentum: float = 0.9
    nesterov: bool = False
    betas: tuple[float, float] | None = None
    weight_decay: float = 0.0
    decay_all: bool = True

    def add_decayed_weights(self) -> optax.GradientTransformation:
        """Returns the transformation that adds weight_decay * parameters to the updates."""
        return optax.add_decayed_weights(self.weight_decay, None if self.decay_all else kernel_mask)


def _with_warmup(settings: ScheduleSettings, schedule: optax.Schedule) -> optax.Schedule:
    """Replaces the first `warmup_steps` steps of a schedule of factors by (step + 1) / warmup_steps."""
    if not settings.warmup_steps:
        return schedule
    # optax.linear_schedule computes 1 - (1 - step / steps), which loses digits, and join_schedules counts the steps
    # of the second schedule from the boundary; milestones count from the start of the run.
    return lambda step: jnp.where(step < settings.warmup_steps, (step + 1) / settings.warmup_steps, schedule(step))


def _constant(settings: ScheduleSettings) -> optax.Schedule:
    return _with_warmup(settings, lambda step: jnp.ones(()))  # optax.constant_schedule has no dtype


def _multistep(settings: ScheduleSettings) -> optax.Schedule:
    counts = collections.Counter(settings.milestones)  # two milestones may round to the same step
    scales = {step: settings.decay**count for step, count in counts.items()}
    schedule = optax.piecewise_constant_schedule(1.0, scales)
    # With a dtype of its own: a weakly typed float64 would become float32 beside the warm-up's.
    return _with_warmup(settings, lambda step: jnp.asarray(schedule(step), float))


def _cosine(settings: ScheduleSettings) -> optax.Schedule:
    schedule = optax.cosine_decay_schedule(1.0, decay_steps=1, alpha=settings.final_factor)
    # In units of the whole decay, which rounds as in earlier versions; optax multiplies by pi before it divides.
    return _with_warmup(
        settings, lambda step: schedule(jnp.maximum((step - settings.warmup_steps) / settings.decay_steps, 0.0))
    )


def _linear(settings: ScheduleSettings) -> optax.Schedule:
    schedule = optax.linear_schedule(1.0, settings.final_factor, settings.decay_steps, settings.warmup_steps)
    return _with_warmup(settings, schedule)


def _onecycle(settings: ScheduleSettings) -> optax.Schedule:
    total = max(settings.total_steps, 2)
    peak = min(max(settings.warmup_steps or round(0.3 * total), 1), total - 1)  # optax needs two phases of some length
    # Both divisors are optax's defaults, as in torch.optim.lr_scheduler.OneCycleLR (Smith and Topin 2018).
    final_divisor = 1.0 / (25.0 * settings.final_factor) if settings.final_factor else 1e4
    # optax rounds pct_start * total down: half a step more protects `peak` from rounding.
    return optax.cosine_onecycle_schedule(total, 1.0, (peak + 0.5) / total, 25.0, final_divisor)


# Values of config.networks.NAME.schedule. A builder returns the factor of the learning rate by global step.
SCHEDULES: dict[str, Callable[[ScheduleSettings], optax.Schedule]] = {
    "multistep": _multistep,
    "cosine": _cosine,
    "constant": _constant,
    "linear": _linear,
    "onecycle": _onecycle,
}


def _betas(settings: OptimizerSettings, default: tuple[float, float] = (0.9, 0.999)) -> dict[str, float]:
    return dict(zip(("b1", "b2"), settings.betas or default, strict=True))


def _muon(settings: OptimizerSettings) -> optax.GradientTransformation:
    """Returns Muon on kernels, each as a matrix [inputs, outputs], and Adam on all other parameters."""
    return optax.contrib.muon(
        learning_rate=-1.0,  # optax multiplies by -learning_rate; here the updates are subtracted
        beta=settings.momentum,
        weight_decay=settings.weight_decay,
        adam_b1=_betas(settings)["b1"],
        adam_b2=_betas(settings)["b2"],
        adam_weight_decay=settings.weight_decay if settings.decay_all else 0.0,
        muon_weight_dimension_numbers=_muon_dimensions,
    )


def _muon_dimensions(params: Any) -> Any:
    def dimensions(is_kernel: bool, param: jax.Array) -> optax.contrib.MuonDimensionNumbers | None:
        if not is_kernel or param.ndim < 2:
            return None
        return optax.contrib.MuonDimensionNumbers(tuple(range(param.ndim - 1)), param.ndim - 1)

    return jax.tree.map(dimensions, kernel_mask(params), params)


# Values of config.networks.NAME.optimizer. A builder returns optax transformations in their order, without the
# learning rate and without the sign: the train step multiplies the updates by the rate and subtracts them.
OPTIMIZERS: dict[str, Callable[[OptimizerSettings], tuple[optax.GradientTransformation, ...]]] = {
    "sgd": lambda s: (s.add_decayed_weights(), optax.trace(s.momentum, s.nesterov)),
    "adam": lambda s: (s.add_decayed_weights(), optax.scale_by_adam(**_betas(s))),
    "adamw": lambda s: (optax.scale_by_adam(**_betas(s)), s.add_decayed_weights()),
    "lars": lambda s: (
        s.add_decayed_weights(),
        optax.scale_by_trust_ratio(trust_coefficient=0.001),
        optax.trace(s.momentum, s.nesterov),
    ),
    "lamb": lambda s: (
        optax.scale_by_adam(**_betas(s), eps=1e-6),
        s.add_decayed_weights(),
        optax.scale_by_trust_ratio(),
    ),
    "lion": lambda s: (optax.scale_by_lion(**_betas(s, (0.9, 0.99))), s.add_decayed_weights()),
    "muon": lambda s: (_muon(s),),
}


def make_schedule(name: str, settings: ScheduleSettings) -> Schedule:
    """Creates the function from the global step to the learning rate.

    Args:
      name: key of `SCHEDULES`.
      settings: its arguments.

    >>> rate = make_schedule("multistep", ScheduleSettings(learning_rate=1.0, total_steps=9, milestones=(3, 6)))
    >>> tuple(round(float(rate(step)), 3) for step in range(0, 9, 2))
    (1.0, 1.0, 0.1, 0.01, 0.01)
    """
    factor = SCHEDULES[name](settings)

    def learning_rate(step: jax.Array) -> jax.Array:
        return settings.learning_rate * jnp.asarray(factor(jnp.asarray(step, jnp.int32)))

    return learning_rate


def make_optimizer(name: str, settings: OptimizerSettings, clip_norm: float = 0.0) -> optax.GradientTransformation:
    """Creates the optax chain without the learning rate: multiply its updates by the rate and subtract them.

    Args:
      name: key of `OPTIMIZERS`.
      settings: its arguments.
      clip_norm: largest global norm of the gradient, before anything else; 0 for no clipping.
    """
    clip = (optax.clip_by_global_norm(clip_norm),) if clip_norm else ()
    return optax.chain(*clip, *OPTIMIZERS[name](settings))


def kernel_mask(params: Any) -> Any:
    """Returns True for kernels of convolutions and linear layers, False for biases and normalization parameters."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)
