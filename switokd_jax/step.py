"""One training step, written once for N networks on any topology.

1. Every network runs forward under `jax.vjp`.
2. The method turns all logits into losses and decisions. A loss depends on the other networks only through
   stop_gradient, so one cheap gradient at the logits gives every network its cotangent.
3. Each network pulls its cotangent back and takes its optimizer step, inside a `lax.cond` where it can be paused. The
   skipped branch holds no convolution: a paused network costs no backward pass.
4. Metrics of the step.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from switokd_jax.data.sampling import Batch
from switokd_jax.forward import ForwardPass, NetworkSpec, NodeOutput, forward
from switokd_jax.losses import cross_entropy
from switokd_jax.methods import AdapterFn, MethodFn, MethodInputs, MethodOutput
from switokd_jax.metrics import finite_key, merge_metrics, top_k_correct
from switokd_jax.parallel.collectives import Collectives
from switokd_jax.state import NetworkState, TrainState, Tree, fold_in_name, pair_name
from switokd_jax.topology import Topology


@dataclasses.dataclass(frozen=True)
class StepSpec:
    """All that is static in a train step.

    Attributes:
      networks: by name. The topology's nodes are the networks, or their branches.
      topology: which node learns from which.
      method: the distillation method, a pure function of `methods.METHODS`.
      hyperparameters: the method's own.
      adapters: the method's trained modules by name; that of an edge is 'student <- teacher'.
      steps_per_epoch: for methods that depend on the epoch.
      num_microbatches: see `forward`.
      skip_nonfinite: a step with a loss or gradient that is not finite changes nothing but the step count.
      mean_teachers: networks that learn also run with their averaged parameters, for the method.
    """

    networks: Mapping[str, NetworkSpec]
    topology: Topology
    method: MethodFn
    hyperparameters: Any
    adapters: Mapping[str, NetworkSpec] = dataclasses.field(default_factory=dict)
    steps_per_epoch: int = 1
    num_microbatches: int = 1
    skip_nonfinite: bool = False
    mean_teachers: bool = False

    @property
    def network_of(self) -> dict[str, NetworkSpec]:
        """The network that computes each node."""
        return {node: network for network in self.networks.values() for node in network.nodes}

    @property
    def frozen(self) -> frozenset[str]:
        """Nodes whose network takes no steps."""
        return frozenset(node for node, network in self.network_of.items() if network.frozen)


class _MethodGradients(NamedTuple):
    """Gradient of the sum of all losses, and what led to it.

    Attributes:
      cotangents: by node, at its outputs on the global batch.
      adapters: by name, at the adapter's parameters.
      output: of the method.
      task_losses: scalar by node, the cross-entropy with the labels.
      top1: scalar by node, percent of the global batch.
    """

    cotangents: Mapping[str, NodeOutput]
    adapters: Mapping[str, Tree]
    output: MethodOutput
    task_losses: Mapping[str, jax.Array]
    top1: Mapping[str, jax.Array]


def train_step(
    state: TrainState, batch: Batch, spec: StepSpec, collectives: Collectives
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Takes one step: every network sees the batch once, and each that may learn takes one optimizer step.

    Args:
      state: the state before the step; donate it.
      batch: this device's shard of the global batch: images [batch, height, width, channels] ready for the networks,
        or such views by network or branch, labels [batch] int32 or [batch, classes] probabilities, and index [batch]
        int32, the examples' indices in the training split.
      spec: all that is static.
      collectives: the operations across devices; `Collectives()` where the batch is the global one.

    Returns:
      The state after the step, and scalar metrics by name: NAME/loss, NAME/cross_entropy (the task part of the loss),
      NAME/top1 (percent of the batch), NAME/learning_rate, NAME/finite (the loss and the gradient are finite); for each
      gated pair of a switching method T->S/gap, T->S/threshold, T->S/epsilon, T->S/student_distance,
      T->S/teacher_distance, T->S/expert; and the method's own.
    """
    key = jax.random.fold_in(state.key, state.step)
    passes = _forward_all(spec.networks, state, batch, spec, collectives, key)
    averaged_logits = _averaged_logits(state, batch, spec, collectives, key) if spec.mean_teachers else {}
    gradients = _method_gradients(passes, averaged_logits, state, batch, spec, collectives, key)
    networks, finite = _update_networks(passes, gradients, state, spec, collectives)
    new_state = dataclasses.replace(
        state,
        networks=networks,
        adapters=_update_adapters(gradients, state, spec),
        expert_steps=_count_expert_steps(state.expert_steps, gradients.output),
        memory=state.memory if gradients.output.memory is None else gradients.output.memory,
        step=state.step + 1,
    )
    if spec.skip_nonfinite:
        skipped_state = dataclasses.replace(state, step=state.step + 1)
        all_finite = jnp.all(jnp.stack([*finite.values()]))
        new_state = jax.tree.map(lambda new, old: jnp.where(all_finite, new, old), new_state, skipped_state)
    return new_state, _step_metrics(gradients, finite, state.step, spec)


def _forward_all(
    networks: Mapping[str, NetworkSpec],
    state: TrainState,
    batch: Batch,
    spec: StepSpec,
    collectives: Collectives,
    key: jax.Array,
) -> dict[str, ForwardPass]:
    """Runs the networks on this device's shard of the batch."""
    size = len(batch.labels)
    batch_positions = collectives.shard_offset(size) + jnp.arange(size, dtype=jnp.int32)
    return {
        name: forward(
            network,
            _with_full_params(state.networks[name], collectives),
            batch.images_of(name, network.nodes),
            batch_positions,
            fold_in_name(key, name),
            spec.num_microbatches,
        )
        for name, network in networks.items()
    }


def _averaged_logits(
    state: TrainState, batch: Batch, spec: StepSpec, collectives: Collectives, key: jax.Array
) -> dict[str, jax.Array]:
    """Runs the networks that learn with their averaged parameters; their running statistics do not change."""
    networks = {
        name: dataclasses.replace(network, features=()) for name, network in spec.networks.items() if not network.frozen
    }
    averaged = {name: dataclasses.replace(state.networks[name], params=state.networks[name].ema) for name in networks}
    passes = _forward_all(
        networks, dataclasses.replace(state, networks=averaged), batch, spec, collectives, fold_in_name(key, "averaged")
    )
    return {node: output.logits for run in passes.values() for node, output in run.outputs.items()}


def _method_gradients(
    passes: Mapping[str, ForwardPass],
    averaged_logits: Mapping[str, jax.Array],
    state: TrainState,
    batch: Batch,
    spec: StepSpec,
    collectives: Collectives,
    key: jax.Array,
) -> _MethodGradients:
    """Applies the method to the outputs on the global batch, and differentiates its losses there."""
    local_outputs = {
        node: jax.lax.stop_gradient(output)
        for forward_pass in passes.values()
        for node, output in forward_pass.outputs.items()
    }
    global_outputs, global_labels, global_indices = collectives.all_gather((local_outputs, batch.labels, batch.index))
    global_averaged_logits = collectives.all_gather(jax.lax.stop_gradient(averaged_logits))

    def total_loss(
        outputs: Mapping[str, NodeOutput], adapter_params: Mapping[str, Tree]
    ) -> tuple[jax.Array, tuple[MethodOutput, Mapping[str, jax.Array]]]:
        inputs = _method_inputs(
            outputs, global_averaged_logits, adapter_params, global_labels, global_indices, state, spec, key
        )
        output = spec.method(inputs, global_labels, spec.topology, spec.hyperparameters)
        return jnp.sum(jnp.stack([*output.losses.values()])), (output, inputs.cross_entropy)

    adapter_params = {name: collectives.all_gather_params(adapter.params) for name, adapter in state.adapters.items()}
    gradient_fn = jax.grad(total_loss, argnums=(0, 1), has_aux=True)
    (cotangents, adapter_gradients), (output, task_losses) = gradient_fn(global_outputs, adapter_params)
    top1 = {
        node: 100.0 * jnp.mean(top_k_correct(output.logits, global_labels)) for node, output in global_outputs.items()
    }
    return _MethodGradients(cotangents, adapter_gradients, output, task_losses, top1)


def _method_inputs(
    outputs: Mapping[str, NodeOutput],
    averaged_logits: Mapping[str, jax.Array],
    adapter_params: Mapping[str, Tree],
    labels: jax.Array,
    indices: jax.Array,
    state: TrainState,
    spec: StepSpec,
    key: jax.Array,
) -> MethodInputs:
    """Collects what the method sees: everything of the global batch."""
    return MethodInputs(
        logits={node: output.logits for node, output in outputs.items()},
        cross_entropy={
            node: jnp.mean(cross_entropy(output.logits, labels, spec.network_of[node].label_smoothing))
            for node, output in outputs.items()
        },
        frozen=spec.frozen,
        features={node: output.features for node, output in outputs.items()},
        adapters={
            name: _adapter_fn(spec.adapters[name], state.adapters[name].batch_stats, params)
            for name, params in adapter_params.items()
        },
        indices=indices,
        keys={name: fold_in_name(key, name) for name in adapter_params},
        epoch=state.step // spec.steps_per_epoch + 1,
        memory=state.memory,
        averaged_logits=averaged_logits,
    )


def _update_networks(
    passes: Mapping[str, ForwardPass],
    gradients: _MethodGradients,
    state: TrainState,
    spec: StepSpec,
    collectives: Collectives,
) -> tuple[dict[str, NetworkState], dict[str, jax.Array]]:
    """Returns every network after the step, and by node whether its loss and its network's gradient are finite."""
    new_networks: dict[str, NetworkState] = {}
    finite: dict[str, jax.Array] = {}
    for name, network in spec.networks.items():
        cotangents = {node: gradients.cotangents[node] for node in network.nodes}
        new_networks[name], finite_gradient = _update_network(
            network,
            state.networks[name],
            passes[name],
            cotangents=jax.tree.map(collectives.local_shard, cotangents),
            learning_rate=network.schedule(state.step),
            should_update=gradients.output.should_update.get(name),
            freeze_paused_stats=gradients.output.freeze_paused_stats,
            collectives=collectives,
        )
        finite |= {node: jnp.isfinite(gradients.output.losses[node]) & finite_gradient for node in network.nodes}
    return new_networks, finite


def _update_network(
    network: NetworkSpec,
    old: NetworkState,
    forward_pass: ForwardPass,
    *,
    cotangents: Mapping[str, NodeOutput],
    learning_rate: jax.Array | float,
    should_update: jax.Array | None,
    freeze_paused_stats: bool,
    collectives: Collectives,
) -> tuple[NetworkState, jax.Array | bool]:
    """Returns the network after the step, and whether its gradient is finite."""
    if network.frozen:
        return old, True
    with_new_stats = dataclasses.replace(old, batch_stats=collectives.pmean_batch_stats(forward_pass.batch_stats))

    def update() -> tuple[NetworkState, jax.Array]:
        # The loss is computed in float32; a bfloat16 network wants its cotangent in bfloat16.
        cast = jax.tree.map(lambda x, output: x.astype(output.dtype), cotangents, forward_pass.outputs)
        (gradient,) = forward_pass.pullback(cast)
        gradient = collectives.psum(gradient)
        return _apply_gradients(network, with_new_stats, gradient, learning_rate), _all_finite(gradient)

    def pause() -> tuple[NetworkState, jax.Array]:
        return old if freeze_paused_stats else with_new_stats, jnp.array(True)

    return update() if should_update is None else jax.lax.cond(should_update, update, pause)


def _update_adapters(gradients: _MethodGradients, state: TrainState, spec: StepSpec) -> dict[str, NetworkState]:
    """Returns every adapter after its optimizer step; adapters are never paused."""
    new_adapters = {}
    for name, gradient in gradients.adapters.items():
        adapter, old = spec.adapters[name], state.adapters[name]
        old = dataclasses.replace(old, batch_stats=gradients.output.adapter_stats.get(name, old.batch_stats))
        new_adapters[name] = _apply_gradients(adapter, old, gradient, adapter.schedule(state.step))
    return new_adapters


def _step_metrics(
    gradients: _MethodGradients, finite: Mapping[str, jax.Array], step: jax.Array, spec: StepSpec
) -> dict[str, jax.Array]:
    """Returns the scalar metrics that `train_step` names."""
    output = gradients.output
    metrics: dict[str, jax.Array] = {}
    for node in spec.topology.nodes:
        metrics[f"{node}/loss"] = output.losses[node]
        metrics[f"{node}/cross_entropy"] = gradients.task_losses[node]
        metrics[f"{node}/top1"] = gradients.top1[node]
        metrics[f"{node}/learning_rate"] = jnp.asarray(spec.network_of[node].schedule(step))
        metrics[finite_key(node)] = finite[node]
    metrics |= {f"{name}/loss": loss for name, loss in output.losses.items() if name not in spec.topology.nodes}
    for pair, switch in output.switches.items():
        metrics |= {f"{pair_name(pair)}/{field}": value for field, value in switch._asdict().items()}
    return merge_metrics(metrics, output.metrics)


def _count_expert_steps(expert_steps: Mapping[str, jax.Array], output: MethodOutput) -> dict[str, jax.Array]:
    """Adds this step to the counts of the pairs that are in expert mode."""
    counts = dict(expert_steps)
    for pair, switch in output.switches.items():
        counts[pair_name(pair)] += switch.expert.astype(jnp.int32)
    return counts


def _apply_gradients(
    network: NetworkSpec, old: NetworkState, gradient: Tree, learning_rate: jax.Array | float
) -> NetworkState:
    """Takes one optimizer step: params - learning_rate * updates."""
    updates, opt_state = network.optimizer.update(gradient, old.opt_state, old.params)
    params = jax.tree.map(lambda p, update: p - jnp.asarray(learning_rate, p.dtype) * update, old.params, updates)
    share: jax.Array | float = 1.0 - network.ema
    if network.ema_warmup:
        share = jnp.maximum(share, 1.0 / (old.updates + 1))
    ema = optax.incremental_update(params, old.ema, share) if network.ema else old.ema
    return dataclasses.replace(old, params=params, opt_state=opt_state, ema=ema, updates=old.updates + 1)


def _adapter_fn(adapter: NetworkSpec, batch_stats: Tree, params: Tree) -> AdapterFn:
    """Binds an adapter's variables: its inputs -> (its output, new running statistics)."""

    def apply(*inputs: jax.Array, frozen: bool = False) -> tuple[Tree, Tree]:
        variables = {"params": jax.lax.stop_gradient(params) if frozen else params, "batch_stats": batch_stats}
        output, mutated = adapter.module.apply(variables, *inputs, train=True, mutable=["batch_stats"])
        return output, mutated.get("batch_stats", {})

    return apply


def _with_full_params(network: NetworkState, collectives: Collectives) -> NetworkState:
    """Puts sharded parameters together for a forward pass."""
    return dataclasses.replace(network, params=collectives.all_gather_params(network.params))


def _all_finite(tree: Tree) -> jax.Array:
    """Returns a boolean scalar: all numbers of the tree are finite."""
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(tree)]))
