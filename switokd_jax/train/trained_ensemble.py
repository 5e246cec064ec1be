"""The ensemble of all networks of a run, read from its workdir as one classifier.

It is the method's own (`Method.ensemble`: ONE's gate, FFL's fused features, PCL's classifier), or the mean probability.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from switokd_jax.analysis import trained_network
from switokd_jax.data import dataset, transforms
from switokd_jax.data.normalization import Preprocess
from switokd_jax.errors import UserError
from switokd_jax.forward import NodeOutput, apply_network
from switokd_jax.interop.stablehlo import ModelInfo
from switokd_jax.methods import MethodInputs
from switokd_jax.metrics import mean_log_probabilities
from switokd_jax.models.layers import layers_of
from switokd_jax.parallel import mesh
from switokd_jax.state import Tree
from switokd_jax.train import run_spec
from switokd_jax.workdir import provenance, restore
from switokd_jax.workdir.layout import Workdir

NAME = "ensemble"


@dataclasses.dataclass(frozen=True, eq=False)
class TrainedEnsemble:
    """All networks of a run, and the method's modules, with all that they need to classify images.

    Attributes:
      model_info: 'ensemble', its models, the classes and the image shape.
      run: the static parts.
      variables: {'params', 'batch_stats'} float32 by network and by adapter.
      preprocess: scale and normalization of pixels.
      uses_centre_crop: see `trained_network.TrainedNetwork`.
    """

    model_info: ModelInfo
    run: run_spec.RunSpec
    variables: Mapping[str, Mapping[str, Tree]]
    preprocess: Preprocess
    uses_centre_crop: bool = False

    def logits(self, images: Any) -> jax.Array:
        """Computes logits [batch, classes] float32 of images [batch, height, width, channels] uint8.

        The function can be traced.
        """
        outputs: dict[str, NodeOutput] = {}
        for name, network in self.run.networks.items():
            in_evaluation = dataclasses.replace(network, frozen=True)
            pixels = transforms.normalize(images, self.preprocess, layers_of(network.module).dtype)
            outputs |= apply_network(in_evaluation, self.variables["networks"][name], pixels)[0]
        logits = {node: outputs[node].logits for node in self.run.topology.nodes}
        if self.run.method.ensemble is None:
            return mean_log_probabilities([*logits.values()]).astype(jnp.float32)
        inputs = MethodInputs(
            logits=logits,
            cross_entropy={},
            features={node: output.features for node, output in outputs.items()},
            adapters={name: self._adapter(name) for name in self.run.adapters},
        )
        ensemble, _ = self.run.method.ensemble(inputs, self.run.topology, self.run.config.hyperparameters)
        return jnp.asarray(ensemble, jnp.float32)

    def _adapter(self, name: str) -> Any:
        """Binds the trained variables of a module, in evaluation mode."""

        def apply(*inputs: jax.Array) -> tuple[Any, Any]:
            return self.run.adapters[name].module.apply(self.variables["adapters"][name], *inputs, train=False), {}

        return apply


Classifier = trained_network.TrainedNetwork | TrainedEnsemble


def read_classifier(workdir: str | Path, name: str, version: str) -> Classifier:
    """Reads a network of a run, or its ensemble for the name 'ensemble', unless that is a network's.

    Raises:
      UserError: naming the folder, network or file at fault.
    """
    is_ensemble = name == NAME and name not in trained_network.read_config(Path(workdir).expanduser()).network_of
    return read(workdir, version) if is_ensemble else trained_network.read(workdir, name, version)


def read(workdir: str | Path, version: str = "latest") -> TrainedEnsemble:
    """Reads the ensemble of a run.

    Args:
      workdir: workdir of the run.
      version: checkpoint to read: 'latest' or a saved step.

    Raises:
      UserError: naming the folder or file at fault; for 'best', since every network has its best step by itself.
    """
    folder = Path(workdir).expanduser()
    if version != "latest" and not version.isdigit():
        raise UserError(f"an ensemble has no {version!r} checkpoint, each network has its own; give --which=latest")
    config, data = trained_network.read_config(folder), provenance.read_dataset_info(Workdir(folder))
    preprocess = Preprocess.from_json(data["preprocess"])
    # Only what shapes the networks and modules matters here.
    config = dataclasses.replace(
        config,
        dtype="float32" if config.dtype == "float64" else config.dtype,  # float64 has to be enabled in JAX
        gradient_accumulation=1,
        parallelism="jit",
        sharding="replicated",
    )
    classes, shape = tuple(data["classes"]), tuple(data["image_shape"])
    run = run_spec.make(
        config, dataset.DatasetInfo(len(classes), shape, config.batch_size, preprocess), mesh.one_device()
    )
    state = restore.load_state(folder, int(version) if version.isdigit() else None)
    variables = {
        kind: {
            name: jax.tree.map(jnp.float32, restore.evaluation_variables(saved))
            for name, saved in (state.get(kind) or {}).items()
        }
        for kind in ("networks", "adapters")
    }
    models = dict.fromkeys(config.networks[name].model for name in run.networks)
    return TrainedEnsemble(
        model_info=ModelInfo(NAME, ", ".join(models), classes, shape),
        run=run,
        variables=variables,
        preprocess=preprocess,
        uses_centre_crop=config.data.image_size > 0,
    )
