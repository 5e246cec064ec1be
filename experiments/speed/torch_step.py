"""The train step of SwitOKD in plain PyTorch, as fast as eager mode allows; written for the comparison.

The decision is computed in every step and waited for, as the public code does, and is then replaced by the mode that
is measured. The forward pass of a paused teacher still records its graph: the step only knows after it that it pauses.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclasses.dataclass(frozen=True)
class Star:
    """Networks and their pairs, by index.

    Attributes:
      networks: by index.
      optimizers: of each network.
      pairs: indices (teacher, student) of the switched pairs; all other ordered pairs learn from each other.
    """

    networks: Sequence[nn.Module]
    optimizers: Sequence[torch.optim.Optimizer]
    pairs: Sequence[tuple[int, int]]


def distance(p: Tensor, q: Tensor) -> Tensor:
    """Returns the mean over the batch of the L1 distance of two distributions [batch, classes]."""
    return (p - q).abs().sum(1).mean()


def expert(teacher: Tensor, student: Tensor, one_hot: Tensor) -> Tensor:
    """Decides the mode of one pair from probabilities [batch, classes]: true for expert mode."""
    teacher_distance, student_distance = distance(teacher, one_hot), distance(student, one_hot)
    epsilon = torch.exp(-teacher_distance / (student_distance + teacher_distance))
    delta = student_distance - epsilon * teacher_distance
    return (distance(teacher, student) > delta) & (teacher_distance < student_distance)


def make_step(star: Star, *, autocast: torch.dtype | None = None) -> Callable[[Tensor, Tensor, bool], bool]:
    """Returns a function (images, labels, paused) that trains all networks on a batch, but teachers only unless paused.

    It returns whether a pair would be in expert mode.
    """
    teachers = {teacher for teacher, _ in star.pairs}

    def step(images: Tensor, labels: Tensor, paused: bool) -> bool:
        with torch.autocast(images.device.type, autocast or torch.bfloat16, enabled=autocast is not None):
            logits = [network(images) for network in star.networks]
        logits = [z.float() for z in logits]
        probabilities = [functional.softmax(z.detach(), 1) for z in logits]
        one_hot = functional.one_hot(labels, logits[0].shape[1]).to(probabilities[0].dtype)
        expert_modes = [bool(expert(probabilities[t], probabilities[s], one_hot)) for t, s in star.pairs]
        for i, (z, optimizer) in enumerate(zip(logits, star.optimizers, strict=True)):
            if paused and i in teachers:
                continue
            loss, log_p = functional.cross_entropy(z, labels), functional.log_softmax(z, 1)
            for j, other in enumerate(probabilities):
                if j != i:
                    loss = loss + functional.kl_div(log_p, other, reduction="batchmean")
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        return any(expert_modes)

    return step


def forward_flops(network: nn.Module, images: Tensor) -> int:
    """Counts the operations of a forward pass for one image: two for each multiplication in its layers with kernels."""
    total = 0

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        if isinstance(module, nn.Conv2d):
            size = module.kernel_size[0] * module.kernel_size[1] * module.in_channels // module.groups
            total += 2 * size * output[0].numel()
        elif isinstance(module, nn.Linear):
            total += 2 * module.in_features * output[0].numel()

    hooks = [module.register_forward_hook(count) for module in network.modules()]
    with torch.no_grad():
        network(images)
    for hook in hooks:
        hook.remove()
    return total
