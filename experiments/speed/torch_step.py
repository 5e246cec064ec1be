"""The step of SwitOKD in plain PyTorch, as fast as its eager mode goes; written for the comparison.

The decision is computed in every step and waited for, as the public code does, and then overruled by the mode that is
being measured. A paused teacher's forward pass still records its graph: the step learns only from it that it pauses.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclasses.dataclass(frozen=True)
class Star:
    """Networks and who teaches whom, by place.

    Attributes:
      networks: in the order of the places.
      optimizers: likewise.
      pairs: (teacher, student), switched; all other ordered pairs learn from each other.
    """

    networks: Sequence[nn.Module]
    optimizers: Sequence[torch.optim.Optimizer]
    pairs: Sequence[tuple[int, int]]


def distance(p: Tensor, q: Tensor) -> Tensor:
    """Mean over the batch of the L1 distance."""
    return (p - q).abs().sum(1).mean()


def expert(teacher: Tensor, student: Tensor, truth: Tensor) -> Tensor:
    """The switch of one pair, from probabilities."""
    of_teacher, of_student = distance(teacher, truth), distance(student, truth)
    delta = of_student - torch.exp(-of_teacher / (of_student + of_teacher)) * of_teacher
    return (distance(teacher, student) > delta) & (of_teacher < of_student)


def make_step(star: Star, *, autocast: torch.dtype | None = None) -> Callable[[Tensor, Tensor, bool], bool]:
    """A function (images, labels, paused) that trains all networks on a batch, and the teachers unless paused."""
    teachers = {teacher for teacher, _ in star.pairs}

    def step(images: Tensor, labels: Tensor, paused: bool) -> bool:
        with torch.autocast(images.device.type, autocast or torch.bfloat16, enabled=autocast is not None):
            logits = [network(images) for network in star.networks]
        logits = [z.float() for z in logits]
        spoken = [functional.softmax(z.detach(), 1) for z in logits]
        truth = functional.one_hot(labels, logits[0].shape[1]).to(spoken[0].dtype)
        decided = [bool(expert(spoken[t], spoken[s], truth)) for t, s in star.pairs]
        for i, (z, optimizer) in enumerate(zip(logits, star.optimizers, strict=True)):
            if paused and i in teachers:
                continue
            loss, log_p = functional.cross_entropy(z, labels), functional.log_softmax(z, 1)
            for j, other in enumerate(spoken):
                if j != i:
                    loss = loss + functional.kl_div(log_p, other, reduction="batchmean")
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        return any(decided)

    return step


def forward_flops(network: nn.Module, images: Tensor) -> int:
    """Two for each multiplication of convolutions and linear layers in a forward pass, for one image."""
    seen = 0

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal seen
        if isinstance(module, nn.Conv2d):
            size = module.kernel_size[0] * module.kernel_size[1] * module.in_channels // module.groups
            seen += 2 * size * output[0].numel()
        elif isinstance(module, nn.Linear):
            seen += 2 * module.in_features * output[0].numel()

    hooks = [module.register_forward_hook(count) for module in network.modules()]
    with torch.no_grad():
        network(images)
    for hook in hooks:
        hook.remove()
    return seen
