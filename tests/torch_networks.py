"""Networks of the official structure in plain PyTorch, with the official names and order of layers."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


def conv(inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1, bias: bool = False) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=bias)


def global_avg_pool(x: Tensor) -> Tensor:
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
        return self.linear(global_avg_pool(functional.relu(self.bn1(x))))


class BasicBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(inputs, outputs, 3, stride), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = conv(outputs, outputs, 3), nn.BatchNorm2d(outputs)
        self.stride, self.pad = stride, (outputs - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        shortcut = functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.pad, self.pad))
        return functional.relu(hidden + shortcut)


class ResNet(nn.Module):
    def __init__(self, depth: int, classes: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(3, 16, 3), nn.BatchNorm2d(16)
        self.layer1, self.layer2, self.layer3 = stages(BasicBlock, (depth - 2) // 6, 1)
        self.linear = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.bn1(self.conv1(x)))
        return self.linear(global_avg_pool(self.layer3(self.layer2(self.layer1(x)))))


def stages(block: Any, blocks: int, width: int) -> list[nn.Sequential]:
    sequentials, inputs = [], 16
    for features, stride in ((16 * width, 1), (32 * width, 2), (64 * width, 2)):
        layers = [block(inputs, features, stride)] + [block(features, features, 1) for _ in range(blocks - 1)]
        sequentials.append(nn.Sequential(*layers))
        inputs = features
    return sequentials


class RepDistillerWideBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), conv(inputs, outputs, 3, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(outputs), conv(outputs, outputs, 3)
        self.convShortcut = conv(inputs, outputs, 1, stride) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        active = functional.relu(self.bn1(x))
        hidden = self.conv2(functional.relu(self.bn2(self.conv1(active))))
        return hidden + (x if self.convShortcut is None else self.convShortcut(active))


class RepDistillerWideResNet(nn.Module):
    def __init__(self, depth: int, width: int, classes: int) -> None:
        super().__init__()
        self.conv1 = conv(3, 16, 3)
        for stage, layer in enumerate(stages(RepDistillerWideBlock, (depth - 4) // 6, width)):
            block = nn.Module()
            block.layer = layer
            self.add_module(f"block{stage + 1}", block)
        self.bn1, self.fc = nn.BatchNorm2d(64 * width), nn.Linear(64 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        for stage in (1, 2, 3):
            x = self.get_submodule(f"block{stage}.layer")(x)
        return self.fc(global_avg_pool(functional.relu(self.bn1(x))))


class RepDistillerResNet(nn.Module):
    def __init__(self, depth: int, width: int, classes: int) -> None:
        super().__init__()
        inputs = 32 if width == 4 else 16
        self.conv1, self.bn1 = conv(3, inputs, 3), nn.BatchNorm2d(inputs)
        for stage in (1, 2, 3):
            layer, features = [], 8 * width * 2**stage
            for block in range((depth - 2) // 6):
                stride = 2 if stage > 1 and not block else 1
                layer.append(ProjectedBlock(inputs, features, stride, False, "downsample"))
                inputs = features
            self.add_module(f"layer{stage}", nn.Sequential(*layer))
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.bn1(self.conv1(x)))
        for stage in (1, 2, 3):
            x = self.get_submodule(f"layer{stage}")(x)
        return self.fc(global_avg_pool(x))


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
        strided = {2, 4, 6, 12}
        self.conv1, self.bn1 = conv(3, 32, 3), nn.BatchNorm2d(32)
        self.layers = nn.Sequential(
            *(SeparableBlock(widths[i - 1], widths[i], 2 if i in strided else 1) for i in range(1, len(widths)))
        )
        self.linear = nn.Linear(1024, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(global_avg_pool(self.layers(functional.relu(self.bn1(self.conv1(x))))))


class InvertedResidual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        expanded = inputs * expansion
        layers = [*conv_norm_relu(inputs, expanded, 1), *conv_norm_relu(expanded, expanded, 3, stride, groups=expanded)]
        layers += conv_norm_relu(expanded, outputs, 1)
        self.conv, self.residual = nn.Sequential(*layers[:-1]), stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) + x if self.residual else self.conv(x)


class MobileNetV2(nn.Module):
    def __init__(self, width: float, classes: int) -> None:
        super().__init__()
        inputs = int(32 * width)
        self.conv1 = nn.Sequential(*conv_norm_relu(3, inputs, 3, 2))
        stages = []
        for expansion, features, blocks, stage_stride in (
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
                stage.append(InvertedResidual(inputs, outputs, stage_stride if block == 0 else 1, expansion))
                inputs = outputs
            stages.append(nn.Sequential(*stage))
        self.blocks = nn.ModuleList(stages)
        self.conv2 = nn.Sequential(*conv_norm_relu(inputs, int(1280 * max(width, 1.0)), 1))
        self.classifier = nn.Sequential(nn.Linear(int(1280 * max(width, 1.0)), classes))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        for stage in self.blocks:
            x = stage(x)
        return self.classifier(global_avg_pool(self.conv2(x)))


class ProjectedBlock(nn.Module):
    """Block of the networks for ImageNet; 'downsample' or 'shortcut' is the name of the projection."""

    def __init__(self, inputs: int, features: int, stride: int, bottleneck: bool, shortcut: str) -> None:
        super().__init__()
        outputs = 4 * features if bottleneck else features
        first, last = (1, 1) if bottleneck else (3, 3)
        self.conv1, self.bn1 = conv(inputs, features, first, 1 if bottleneck else stride), nn.BatchNorm2d(features)
        if bottleneck:
            self.conv2, self.bn2 = conv(features, features, 3, stride), nn.BatchNorm2d(features)
            self.conv3, self.bn3 = conv(features, outputs, last), nn.BatchNorm2d(outputs)
        else:
            self.conv2, self.bn2 = conv(features, outputs, last), nn.BatchNorm2d(outputs)
        projected = stride != 1 or inputs != outputs
        parts = [conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs)] if projected else []
        self.add_module(shortcut, nn.Sequential(*parts))
        self.bottleneck, self.projection = bottleneck, [self.get_submodule(shortcut)]

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        if self.bottleneck:
            hidden = self.bn3(self.conv3(functional.relu(hidden)))
        return functional.relu(hidden + self.projection[0](x))


class ProjectedResNet(nn.Module):
    def __init__(self, depth: int, classes: int, imagenet: bool) -> None:
        super().__init__()
        blocks, bottleneck = {18: [2, 2, 2, 2], 34: [3, 4, 6, 3], 50: [3, 4, 6, 3]}[depth], depth == 50
        self.conv1 = conv(3, 64, 7, 2) if imagenet else conv(3, 64, 3)
        self.bn1, inputs, shortcut = nn.BatchNorm2d(64), 64, "downsample" if imagenet else "shortcut"
        for stage, count in enumerate(blocks):
            features, layer = 64 * 2**stage, []
            for block in range(count):
                stride = 2 if stage and not block else 1
                layer.append(ProjectedBlock(inputs, features, stride, bottleneck, shortcut))
                inputs = features * (4 if bottleneck else 1)
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layer))
        self.head = "fc" if imagenet else "linear"
        self.add_module(self.head, nn.Linear(inputs, classes))
        self.pool = nn.MaxPool2d(3, 2, 1) if imagenet else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(functional.relu(self.bn1(self.conv1(x))))
        for stage in range(1, 5):
            x = self.get_submodule(f"layer{stage}")(x)
        return self.get_submodule(self.head)(global_avg_pool(x))


class TinyBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.left = nn.Sequential(*conv_norm_relu(inputs, outputs, 3, stride), *conv_norm_relu(outputs, outputs, 3)[:2])
        changes = stride != 1 or inputs != outputs
        self.shortcut = nn.Sequential(*conv_norm_relu(inputs, outputs, 1, stride)[:2] if changes else [])

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.left(x) + self.shortcut(x))


class TinyResNet34(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv1, inputs = nn.Sequential(*conv_norm_relu(3, 64, 3)), 64
        for stage, count in enumerate([3, 4, 6, 3]):
            outputs, layer = 64 * 2**stage, []
            for block in range(count):
                layer.append(TinyBlock(inputs, outputs, 2 if stage and not block else 1))
                inputs = outputs
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layer))
        self.fc = nn.Linear(512, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        for stage in range(1, 5):
            x = self.get_submodule(f"layer{stage}")(x)
        return self.fc(global_avg_pool(x))


class TinyInvertedResidual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        expanded = inputs * expansion
        layers: list[nn.Module] = [conv_norm_relu6(inputs, expanded, 1)] if expansion != 1 else []
        layers += [conv_norm_relu6(expanded, expanded, 3, stride, expanded)]
        layers += [conv(expanded, outputs, 1), nn.BatchNorm2d(outputs)]
        self.conv, self.residual = nn.Sequential(*layers), stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.residual else self.conv(x)


class TinyMobileNetV2(nn.Module):
    """MobileNetV2 of width 1.4 only, with its rounded channels written out."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        blocks: list[nn.Module] = [conv_norm_relu6(3, 48, 3, 2)]
        inputs = 48
        for expansion, outputs, num_blocks, stride in (
            (1, 24, 1, 1),
            (6, 32, 2, 2),
            (6, 48, 3, 2),
            (6, 88, 4, 2),
            (6, 136, 3, 1),
            (6, 224, 3, 2),
            (6, 448, 1, 1),
        ):
            for block in range(num_blocks):
                blocks.append(TinyInvertedResidual(inputs, outputs, stride if not block else 1, expansion))
                inputs = outputs
        self.features = nn.Sequential(*blocks, conv_norm_relu6(inputs, 1792, 1))
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1792, classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(global_avg_pool(self.features(x)))


class Vgg(nn.Module):
    def __init__(self, depth: int, classes: int) -> None:
        super().__init__()
        repeats = {8: [1, 1, 1, 1, 1], 13: [2, 2, 2, 2, 2], 16: [2, 2, 3, 3, 3]}[depth]
        inputs = 3
        for block, (count, features) in enumerate(zip(repeats, [64, 128, 256, 512, 512], strict=True)):
            layers: list[nn.Module] = []
            for _ in range(count):
                layers += [conv(inputs, features, 3, bias=True), nn.BatchNorm2d(features), nn.ReLU()]
                inputs = features
            self.add_module(f"block{block}", nn.Sequential(*layers))
        hidden = [nn.Dropout(), nn.Linear(512, 512), nn.ReLU()] * (2 if depth == 16 else 0)
        hidden = [nn.Linear(512, 512) if isinstance(layer, nn.Linear) else layer for layer in hidden]
        last = nn.Linear(512, classes)
        self.classifier: nn.Module = nn.Sequential(*hidden, last) if hidden else last

    def forward(self, x: Tensor) -> Tensor:
        for block in range(5):
            x = self.get_submodule(f"block{block}")(x)
            if block < 3:  # the fourth pools images of 64 pixels only
                x = functional.max_pool2d(x, 2)
        return self.classifier(global_avg_pool(x))


class VitBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn, self.mlp, self.heads = nn.Module(), nn.Module(), heads
        self.attn.qkv, self.attn.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp.fc1, self.mlp.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        parts = self.get_submodule("attn.qkv")(self.norm1(x)).reshape(batch, tokens, 3, self.heads, -1)
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(2, 3) / (width / self.heads) ** 0.5).softmax(-1)
        out = (weights @ v).transpose(1, 2).reshape(batch, tokens, width)
        x = x + self.get_submodule("attn.proj")(out)
        hidden = functional.gelu(self.get_submodule("mlp.fc1")(self.norm2(x)))
        return x + self.get_submodule("mlp.fc2")(hidden)


class Vit(nn.Module):
    def __init__(self, width: int, heads: int, classes: int) -> None:
        super().__init__()
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(3, width, 4, 4)
        self.cls_token, self.pos_embed = nn.Parameter(torch.randn(1, 1, width)), nn.Parameter(torch.randn(1, 65, width))
        self.blocks = nn.Sequential(*(VitBlock(width, heads) for _ in range(12)))
        self.norm, self.head = nn.LayerNorm(width, eps=1e-6), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.get_submodule("patch_embed.proj")(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), 1, -1), patches], 1) + self.pos_embed
        return self.head(self.norm(self.blocks(x))[:, 0])


class SwinAttention(nn.Module):
    """Attention over the full map, with a mask in place of windows and their shift."""

    def __init__(self, width: int, heads: int, window: int, shift: int) -> None:
        super().__init__()
        self.heads, self.window, self.shift = heads, window, shift
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.relative_position_bias_table = nn.Parameter(torch.randn((2 * window - 1) ** 2, heads))

    def forward(self, x: Tensor) -> Tensor:
        batch, side, _, width = x.shape
        positions = torch.cartesian_prod(torch.arange(side), torch.arange(side))
        window = (positions - self.shift).div(self.window, rounding_mode="floor")
        offsets = (positions[:, None] - positions).clamp(1 - self.window, self.window - 1) + self.window - 1
        bias = self.relative_position_bias_table[offsets[..., 0] * (2 * self.window - 1) + offsets[..., 1]]
        q, k, v = self.qkv(x).reshape(batch, side * side, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        logits = q @ k.transpose(2, 3) / (width / self.heads) ** 0.5 + bias.permute(2, 0, 1)
        other_window = (window[:, None] != window).any(-1)
        weights = logits.masked_fill(other_window, float("-inf")).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(x.shape))


class SwinBlock(nn.Module):
    def __init__(self, width: int, heads: int, window: int, shift: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = SwinAttention(width, heads, window, shift)
        fc1, fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.mlp = nn.Sequential(OrderedDict(fc1=fc1, act=nn.GELU(), fc2=fc2))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class SwinPatchMerging(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.reduction = nn.LayerNorm(4 * width), nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, side, _, width = x.shape
        merged = x.reshape(batch, side // 2, 2, side // 2, 2, width).permute(0, 1, 3, 4, 2, 5)
        return self.reduction(self.norm(merged.reshape(batch, side // 2, side // 2, 4 * width)))


class Swin(nn.Module):
    """Swin transformer for images of 32 pixels."""

    def __init__(self, depths: list[int], classes: int) -> None:
        super().__init__()
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, 96, 2, 2), "norm": nn.LayerNorm(96)})
        stages = []
        for stage, depth in enumerate(depths):
            width, heads, window = 96 * 2**stage, 3 * 2**stage, min(4, 16 // 2**stage)
            shift = 2 if stage < 2 else 0
            blocks = [SwinBlock(width, heads, window, shift * (block % 2)) for block in range(depth)]
            parts = {"downsample": SwinPatchMerging(width // 2)} if stage else {}
            stages.append(nn.Sequential(OrderedDict(**parts, blocks=nn.Sequential(*blocks))))
        self.layers = nn.Sequential(*stages)
        self.norm, self.head = nn.LayerNorm(768), nn.ModuleDict({"fc": nn.Linear(768, classes)})

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed["norm"](self.patch_embed["proj"](x).permute(0, 2, 3, 1))
        return self.head["fc"](self.norm(self.layers(x)).mean((1, 2)))


def conv_norm_relu6(inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(*conv_norm_relu(inputs, outputs, size, stride, groups)[:2], nn.ReLU6())


def conv_norm_relu(inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    return [conv(inputs, outputs, size, stride, groups), nn.BatchNorm2d(outputs), nn.ReLU()]


def create(name: str, classes: int) -> nn.Module:
    """Creates the network of that name with random statistics, and scales and biases of norms."""
    torch.manual_seed(len(name))
    network = structure(name, classes)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.bias.data, module.running_mean, module.running_var):
                assert tensor is not None
                tensor.uniform_(0.5, 1.5)
        if isinstance(module, nn.LayerNorm):
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.uniform_(0.5, 1.5)
    return network


def structure(name: str, classes: int) -> nn.Module:
    family, *rest = name.split("_")
    if rest[-1:] == ["rd"] and family == "wrn":
        return RepDistillerWideResNet(int(rest[0]), int(rest[1]), classes)
    if rest == ["rd"] or family.endswith("x4"):
        blocks, _, wide = family.removeprefix("resnet").partition("x")
        return RepDistillerResNet(int(blocks), 4 if wide else 1, classes)
    if family == "wrn":
        return WideResNet(int(rest[0]), int(rest[1]), classes)
    if family == "mobilenetv2":
        return TinyMobileNetV2(classes) if rest == ["tiny", "1.4"] else MobileNetV2(float(rest[0]), classes)
    if family == "mobilenet":
        return MobileNet(classes)
    if family == "vit":
        return Vit(384, 6, classes)
    if family == "swin":
        return Swin([2, 2, {"tiny": 6, "small": 18}[rest[0]], 2], classes)
    if family.startswith("vgg"):
        return Vgg(int(family.removeprefix("vgg")), classes)
    depth = int(family.removeprefix("resnet"))
    if rest == ["tiny"]:
        return TinyResNet34(classes)
    return ProjectedResNet(depth, classes, not rest) if depth in (18, 34, 50) else ResNet(depth, classes)
