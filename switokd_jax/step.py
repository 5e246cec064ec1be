"""One training step, written once for N networks on any topology.

Forward of every network under `jax.vjp`; the method makes losses and decisions of the logits; one cheap
gradient at the logits gives every network its cotangent, since a loss depends on the other networks only
through stop_gradient; then each network pulls its cotangent back and takes its optimizer step, inside a
`lax.cond` where it can be paused. The skipped branch holds no convolution.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from switokd_jax.forward import ForwardPass, NetworkOutput, NetworkSpec, forward
from switokd_jax.losses import cross_entropy
from switokd_jax.methods import AdapterFn, MethodFn, MethodInputs, MethodOutput
from switokd_jax.metrics import top_k_correct
from switokd_jax.parallel.collectives import Collectives
from switokd_jax.state import NetworkState, TrainState, Tree, fold_in_name, pair_name
from switokd_jax.topology import Topology


def train_step(
    state: TrainState,
    images: jax.Array,
    labels: jax.Array,
    indices: jax.Array,
    *,
    epoch: jax.Array | int,
    networks: Mapping[str, NetworkSpec],
    method: MethodFn,
    hyperparameters: Any,
    topology: Topology,
    across: Collectives,
    adapters: Mapping[str, NetworkSpec],
    parts: int = 1,
    skip_nonfinite: bool = False,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """All networks see the batch once; each that may learn takes one optimizer step.

    Args:
      state: the state before; donate it.
      images: [batch, height, width, channels], normalised, this device's share of the batch.
      labels: [batch], integer, likewise.
      indices: [batch] int32, the examples' places in the training split, likewise.
      epoch: int32 scalar, from 1.
      networks: what does not change, by name.
      method: a pure function of `methods.METHODS`.
      hyperparameters: the method's own.
      topology: who learns from whom.
      across: how the devices work together.
      adapters: by edge ('student <- teacher'), what does not change of the method's adapters.
      parts: in how many parts the batch is computed; see `forward`.
      skip_nonfinite: whether a step in which a loss or gradient is not finite leaves all but its number as it was.

    Returns:
      The state after, and scalar metrics: NAME/loss, NAME/cross_entropy (the labels' part of the loss),
      NAME/top1 (percent of the batch), NAME/learning_rate, NAME/finite (whether the loss and the gradient, where one
      was computed, are), and for each gated pair of a switching method T->S/gap, T->S/threshold, T->S/epsilon,
      T->S/student_distance, T->S/teacher_distance, T->S/expert.
    """
    key = jax.random.fold_in(state.rng, state.step)
    places = across.shard_offset(len(images)) + jnp.arange(len(images), dtype=jnp.int32)
    outputs = {
        name: forward(networks[name], _whole(across, before), images, places, fold_in_name(key, name), parts)
        for name, before in ((name, state.networks[name]) for name in topology.nodes)
    }
    said = {name: jax.lax.stop_gradient(output.said) for name, output in outputs.items()}
    heard, everyone, everyone_at = across.all_gather((said, labels, indices))
    frozen = frozenset(name for name, network in networks.items() if network.frozen)

    def decide(
        heard: Mapping[str, NetworkOutput], trained: Mapping[str, Tree]
    ) -> tuple[jax.Array, tuple[MethodOutput, dict[str, jax.Array]]]:
        supervised = {
            name: jnp.mean(cross_entropy(said.logits, everyone, networks[name].label_smoothing))
            for name, said in heard.items()
        }
        everything = MethodInputs(
            logits={name: said.logits for name, said in heard.items()},
            cross_entropy=supervised,
            frozen=frozen,
            features={name: said.features for name, said in heard.items()},
            adapters={
                edge: _adapt(adapters[edge], state.adapters[edge].batch_stats, params)
                for edge, params in trained.items()
            },
            indices=everyone_at,
            keys={edge: fold_in_name(key, edge) for edge in trained},
            epoch=epoch,
            memory=state.memory,
        )
        decision = method(everything, everyone, topology, hyperparameters)
        return jnp.sum(jnp.stack([*decision.losses.values()])), (decision, supervised)

    trained = {edge: across.all_gather_params(adapter.params) for edge, adapter in state.adapters.items()}
    (cotangents, adapter_gradients), (decision, supervised) = jax.grad(decide, (0, 1), has_aux=True)(heard, trained)

    after: dict[str, NetworkState] = {}
    metrics: dict[str, jax.Array] = {}
    for name in topology.nodes:
        rate = networks[name].schedule(state.step)
        after[name], finite_gradient = _network_step(
            networks[name],
            state.networks[name],
            outputs[name],
            cotangent=jax.tree.map(across.local_shard, cotangents[name]),
            rate=rate,
            learn=decision.should_update.get(name),
            freeze_paused_stats=decision.freeze_paused_stats,
            across=across,
        )
        metrics[f"{name}/loss"] = decision.losses[name]
        metrics[f"{name}/cross_entropy"] = supervised[name]
        metrics[f"{name}/top1"] = 100.0 * jnp.mean(top_k_correct(heard[name].logits, everyone))
        metrics[f"{name}/learning_rate"] = rate
        metrics[f"{name}/finite"] = jnp.isfinite(decision.losses[name]) & finite_gradient

    expert_steps = dict(state.expert_steps)
    for pair, switch in decision.switches.items():
        expert_steps[pair_name(pair)] += switch.expert.astype(jnp.int32)
        metrics |= {f"{pair_name(pair)}/{field}": value for field, value in switch._asdict().items()}
    adapted = {
        edge: _stepped(
            adapters[edge],
            dataclasses.replace(state.adapters[edge], batch_stats=decision.adapter_stats[edge]),
            gradient,
            adapters[edge].schedule(state.step),
        )
        for edge, gradient in adapter_gradients.items()
    }
    after_step = dataclasses.replace(
        state,
        networks=after,
        adapters=adapted,
        expert_steps=expert_steps,
        memory=state.memory if decision.memory is None else decision.memory,
        step=state.step + 1,
    )
    if skip_nonfinite:
        finite = jnp.all(jnp.stack([metrics[f"{name}/finite"] for name in topology.nodes]))
        before_step = dataclasses.replace(state, step=state.step + 1)
        after_step = jax.tree.map(lambda new, old: jnp.where(finite, new, old), after_step, before_step)
    return after_step, metrics


def _finite(tree: Tree) -> jax.Array:
    """Whether all numbers of a tree are."""
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(tree)]))


def _whole(across: Collectives, network: NetworkState) -> NetworkState:
    return dataclasses.replace(network, params=across.all_gather_params(network.params))


def _adapt(adapter: NetworkSpec, batch_stats: Tree, params: Tree) -> AdapterFn:
    def apply(x: jax.Array, source: jax.Array) -> tuple[Tree, Tree]:
        variables = {"params": params, "batch_stats": batch_stats}
        adapted, moved = adapter.module.apply(variables, x, source, train=True, mutable=["batch_stats"])
        return adapted, moved.get("batch_stats", {})

    return apply


def _stepped(network: NetworkSpec, before: NetworkState, gradient: Tree, rate: jax.Array) -> NetworkState:
    """One optimizer step."""
    direction, opt_state = network.optimizer.update(gradient, before.opt_state, before.params)
    params = jax.tree.map(lambda p, d: p - rate.astype(p.dtype) * d, before.params, direction)
    ema = before.ema
    if network.ema:
        ema = jax.tree.map(lambda e, p: network.ema * e + (1.0 - network.ema) * p, ema, params)
    return dataclasses.replace(before, params=params, opt_state=opt_state, ema=ema, updates=before.updates + 1)


def _network_step(
    network: NetworkSpec,
    before: NetworkState,
    output: ForwardPass,
    *,
    cotangent: NetworkOutput,
    rate: jax.Array,
    learn: jax.Array | None,
    freeze_paused_stats: bool,
    across: Collectives,
) -> tuple[NetworkState, jax.Array | bool]:
    """The network after the step, and whether its gradient is finite."""
    if network.frozen:
        return before, True
    moved = dataclasses.replace(before, batch_stats=across.pmean_batch_stats(output.batch_stats))

    def update() -> tuple[NetworkState, jax.Array]:
        typed = jax.tree.map(lambda x, like: x.astype(like.dtype), cotangent, output.said)
        (gradient,) = output.pullback(typed)
        gradient = across.psum(gradient)
        return _stepped(network, moved, gradient, rate), _finite(gradient)

    if learn is None:
        return update()
    return jax.lax.cond(learn, update, lambda: (before if freeze_paused_stats else moved, jnp.array(True)))
