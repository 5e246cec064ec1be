"""The official structures in plain PyTorch, written for these tests: same names, same order of layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


def conv(inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1, bias: bool = False) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=bias)


def pooled(x: Tensor) -> Tensor:
    return x.mean((2, 3))


class WideBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), conv(inputs, outputs, 3, bias=True)
        self.bn2, self.conv2 = nn.BatchNorm2d(outputs), conv(outputs, outputs, 3, stride, bias=True)
        changes = stride != 1 or inputs != outputs
        self.shortcut = nn.Sequential(*[conv(inputs, outputs, 1, stride, bias=True)] * changes)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.conv1(functional.relu(self.bn1(x)))
        return self.conv2(functional.relu(self.bn2(hidden))) + self.shortcut(x)


class WideResNet(nn.Module):
    def __init__(self, depth: int, width: int, classes: int, channels: int = 3) -> None:
        super().__init__()
        self.conv1 = conv(channels, 16, 3, bias=True)
        self.layer1, self.layer2, self.layer3 = stages(WideBlock, (depth - 4) // 6, width)
        self.bn1 = nn.BatchNorm2d(64 * width, momentum=0.9)
        self.linear = nn.Linear(64 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        return self.linear(pooled(functional.relu(self.bn1(x))))


class BasicBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(inputs, outputs, 3, stride), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = conv(outputs, outputs, 3), nn.BatchNorm2d(outputs)
        self.stride, self.side = stride, (outputs - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        shortcut = functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.side, self.side))
        return functional.relu(hidden + shortcut)


class ResNet(nn.Module):
    def __init__(self, depth: int, classes: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(3, 16, 3), nn.BatchNorm2d(16)
        self.layer1, self.layer2, self.layer3 = stages(BasicBlock, (depth - 2) // 6, 1)
        self.linear = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.bn1(self.conv1(x)))
        return self.linear(pooled(self.layer3(self.layer2(self.layer1(x)))))


def stages(block: Any, blocks: int, width: int) -> list[nn.Sequential]:
    made, inputs = [], 16
    for features, stride in ((16 * width, 1), (32 * width, 2), (64 * width, 2)):
        layers = [block(inputs, features, stride)] + [block(features, features, 1) for _ in range(blocks - 1)]
        made.append(nn.Sequential(*layers))
        inputs = features
    return made


class SeparableBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(inputs, inputs, 3, stride, groups=inputs), nn.BatchNorm2d(inputs)
        self.conv2, self.bn2 = conv(inputs, outputs, 1), nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x))))))


class MobileNet(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        widths = [32, 64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024]
        halving = {2, 4, 6, 12}
        self.conv1, self.bn1 = conv(3, 32, 3), nn.BatchNorm2d(32)
        self.layers = nn.Sequential(
            *(SeparableBlock(widths[i - 1], widths[i], 2 if i in halving else 1) for i in range(1, len(widths)))
        )
        self.linear = nn.Linear(1024, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(pooled(self.layers(functional.relu(self.bn1(self.conv1(x))))))


class InvertedResidual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inputs * expansion
        steps = [*unit(inputs, wide, 1), *unit(wide, wide, 3, stride, groups=wide), *unit(wide, outputs, 1)]
        self.conv, self.adds = nn.Sequential(*steps[:-1]), stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) + x if self.adds else self.conv(x)


class MobileNetV2(nn.Module):
    def __init__(self, width: float, classes: int) -> None:
        super().__init__()
        inputs = int(32 * width)
        self.conv1 = nn.Sequential(*unit(3, inputs, 3, 2))
        stages = []
        for expansion, features, blocks, first in (
            (1, 16, 1, 1),
            (6, 24, 2, 1),
            (6, 32, 3, 2),
            (6, 64, 4, 2),
            (6, 96, 3, 1),
            (6, 160, 3, 2),
            (6, 320, 1, 1),
        ):
            outputs, stage = int(features * width), []
            for block in range(blocks):
                stage.append(InvertedResidual(inputs, outputs, first if block == 0 else 1, expansion))
                inputs = outputs
            stages.append(nn.Sequential(*stage))
        self.blocks = nn.ModuleList(stages)
        self.conv2 = nn.Sequential(*unit(inputs, int(1280 * max(width, 1.0)), 1))
        self.classifier = nn.Sequential(nn.Linear(int(1280 * max(width, 1.0)), classes))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        for stage in self.blocks:
            x = stage(x)
        return self.classifier(pooled(self.conv2(x)))


def unit(inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    return [conv(inputs, outputs, size, stride, groups), nn.BatchNorm2d(outputs), nn.ReLU()]


def create(name: str, classes: int) -> nn.Module:
    """The network of that name with statistics and biases that are not the initial ones."""
    kind, *numbers = name.split("_")
    torch.manual_seed(len(name))
    if kind == "wrn":
        made: nn.Module = WideResNet(int(numbers[0]), int(numbers[1]), classes)
    elif kind == "mobilenetv2":
        made = MobileNetV2(float(numbers[0]), classes)
    else:
        made = MobileNet(classes) if kind == "mobilenet" else ResNet(int(kind.removeprefix("resnet")), classes)
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.bias.data, module.running_mean, module.running_var):
                assert tensor is not None
                tensor.uniform_(0.5, 1.5)
    return made
