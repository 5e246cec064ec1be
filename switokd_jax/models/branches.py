"""Networks with branches: copies of the last stages and the classifier behind one shared trunk.

Sources: Song and Chai 2018 (arXiv 1805.11761, CL-ILR) and Zhu et al. 2018 (arXiv 1806.04606, ONE). The trunk and one
branch together are an ordinary network, with the ordinary names of its parameters.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from switokd_jax.models.layers import Layers, sow_feature

TRUNK = "trunk"


@dataclasses.dataclass(frozen=True)
class Part:
    """Some of a network's stages, which are counted from 1 as those of the features 'stage1', 'stage2', ... are.

    Attributes:
      first: first stage; that of 1 takes images, and every later one the output of the stage before it.
      last: last stage; None for a part that ends with the classifier.
    """

    first: int = 1
    last: int | None = None

    @property
    def has_stem(self) -> bool:
        """The part starts with the layers before the first stage."""
        return self.first == 1

    @property
    def has_classifier(self) -> bool:
        """The part ends with the layers after the last stage."""
        return self.last is None

    def stages(self, count: int) -> range:
        """Stages of the part, in a network of `count` stages.

        >>> [*Part(first=2).stages(3)], [*Part(last=1).stages(3)]
        ([2, 3], [1])
        """
        return range(self.first, (count if self.last is None else self.last) + 1)


class Branches(nn.Module):
    """A network whose last stages and classifier exist several times behind one trunk.

    Its parameters are {'trunk', 'branch1', 'branch2', ...}; `split_variables` makes ordinary networks of them.

    Attributes:
      network: the ordinary network; it has the attributes `part` and `stage_count`.
      count: number of branches.
      first: first stage, from 2, that every branch has for itself.
      mean_gradient: the trunk gets the mean of the branches' gradients (CL-ILR), not their sum.
      layers: options of its layers.
    """

    network: nn.Module
    count: int
    first: int
    mean_gradient: bool = False
    layers: Layers = Layers()

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> tuple[jax.Array, ...]:
        """Maps images [batch, height, width, channels] to logits [batch, num_classes] of each branch.

        Or images [batch, branches, height, width, channels], a view of each example for every branch: the trunk runs on
        all of them. The mean over the pixels of the trunk's output is the feature 'trunk_pooled'.
        """
        batch, has_views = x.shape[0], x.ndim == 5

        def run(name: str, part: Part, x: jax.Array) -> jax.Array:
            output: jax.Array = self.network.clone(parent=self, name=name, layers=self.layers, part=part)(
                x, train=train
            )
            return output

        x = run(TRUNK, Part(last=self.first - 1), x.reshape(-1, *x.shape[2:]) if has_views else x)
        if self.mean_gradient:
            x = scale_gradient(x, 1.0 / self.count)
        sow_feature(self, "trunk_pooled", jnp.mean(x, axis=(1, 2)))
        return tuple(
            run(name, Part(first=self.first), view_of_branch(x, batch, i) if has_views else x)
            for i, name in enumerate(branch_names(self))
        )


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def scale_gradient(x: jax.Array, factor: float) -> jax.Array:
    """Returns x; the gradient that flows back through it is multiplied by the factor.

    >>> float(jax.grad(lambda x: scale_gradient(x, 0.25) ** 2)(3.0))
    1.5
    """
    del factor
    return x


scale_gradient.defvjp(lambda x, factor: (x, None), lambda factor, _, cotangent: (cotangent * factor,))


def view_of_branch(x: jax.Array, batch: int, branch: int) -> jax.Array:
    """Returns what belongs to a branch's own view.

    Args:
      x: [batch * views, ...], the views of an example one after another; or [batch, ...], which all branches share.
      batch: number of examples.
      branch: index of the branch, and of its view.

    Returns:
      [batch, ...].

    >>> view_of_branch(jnp.arange(6), batch=3, branch=1).tolist(), view_of_branch(jnp.arange(3), 3, 1).tolist()
    ([1, 3, 5], [0, 1, 2])
    """
    return x if x.shape[0] == batch else x.reshape(batch, -1, *x.shape[1:])[:, branch]


def branch_names(module: Any) -> tuple[str, ...]:
    """Names of a module's branches; none for an ordinary network.

    >>> from switokd_jax import models
    >>> branch_names(models.create("resnet8", 10)), branch_names(models.create("resnet8", 10, branches=2))
    ((), ('branch1', 'branch2'))
    """
    return tuple(f"branch{i}" for i in range(1, module.count + 1)) if isinstance(module, Branches) else ()


def saved_branches(params: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the branches that a tree of parameters belongs to; none for that of an ordinary network.

    >>> saved_branches({"trunk": {}, "branch1": {}, "branch2": {}}), saved_branches({"trunk": {}, "linear": {}})
    (('branch1', 'branch2'), ())
    """
    names = tuple(f"branch{i}" for i in range(1, len(params)))
    return names if {*params} == {TRUNK, *names} else ()


def with_branches(network: Any, count: int, branch_from: str = "", *, mean_gradient: bool = False) -> Branches:
    """Gives a network several branches.

    Args:
      network: an ordinary network of a CNN family.
      count: number of branches, at least 2.
      branch_from: first stage that is copied, 'stage2' or later; '' for the last one.
      mean_gradient: see `Branches`.

    Raises:
      ValueError: if the network cannot be cut, or not there.
    """
    if not hasattr(network, "part"):
        raise ValueError(f"{type(network).__name__} cannot have branches; take one of the CNN families")
    stages = [f"stage{i}" for i in range(2, network.stage_count + 1)]
    if branch_from and branch_from not in stages:
        raise ValueError(f"branches cannot start at {branch_from!r}; choose from {', '.join(stages)}")
    first = int((branch_from or stages[-1]).removeprefix("stage"))
    return Branches(network, count, first, mean_gradient, network.layers)


def single_networks(module: Any) -> list[Any]:
    """Ordinary networks that a module consists of: the module itself, or one for each branch."""
    return [module.network] * module.count if isinstance(module, Branches) else [module]


def split_logits(module: Any, logits: Any) -> tuple[jax.Array, ...]:
    """Returns the logits [batch, classes] of each of the `single_networks`, from what the module returns."""
    return tuple(logits) if isinstance(module, Branches) else (logits,)


def split_collection(module: Any, tree: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns for each of the `single_networks` its parameters, statistics or features.

    Args:
      module: a network, with branches or without.
      tree: a collection of its variables; those of the trunk belong to every branch.
    """
    if not isinstance(module, Branches):
        return [dict(tree)]
    names = branch_names(module)
    shared = {name: value for name, value in tree.items() if name not in (TRUNK, *names)}
    return [{**shared, **of_branch(tree, name)} for name in names]


def split_variables(module: Any, variables: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the variables {'params', 'batch_stats'} of each of the `single_networks`."""
    collections = {kind: split_collection(module, tree) for kind, tree in variables.items()}
    return [dict(zip(collections, trees, strict=True)) for trees in zip(*collections.values(), strict=True)]


def of_branch(tree: Mapping[str, Any], branch: str) -> dict[str, Any]:
    """Merges the parts of the trunk and of a branch: the collection of an ordinary network.

    >>> of_branch({"trunk": {"conv1": 0}, "branch1": {"linear": 1}, "branch2": {"linear": 2}}, "branch2")
    {'conv1': 0, 'linear': 2}
    """
    return {**tree.get(TRUNK, {}), **tree.get(branch, {})}
