"""Small networks for images, written by hand."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm


class LeNet(nn.Module):
    """Convolutions with in-place ReLU, pooling, two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 4, 3),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(4, 6, 3),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
        )
        self.classify = nn.Sequential(nn.Flatten(), nn.Linear(54, 10), nn.ReLU(inplace=True), nn.Linear(10, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.features(x))


class ResBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        y += x
        return self.relu(y)


class ResNet(nn.Module):
    """Two residual blocks with batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True))
        self.block1, self.block2 = ResBlock(6), ResBlock(6)
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block2(self.block1(self.stem(x)))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


class UNet(nn.Module):
    """One level down, one up, a skip by concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.middle = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 6, 3, padding=1)
        self.up, self.out = nn.ConvTranspose2d(6, 4, 2, stride=2), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        kept = F.relu(self.down(x))
        deep = F.relu(self.middle(F.max_pool2d(kept, 2)))
        return self.out(torch.cat([F.relu(self.up(deep)), kept], 1))


class AlexNet(nn.Module):
    """Convolutions with in-place ReLU, then dropout before linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2),
            nn.Conv2d(4, 6, 3, padding=1), nn.ReLU(inplace=True),
            nn.Conv2d(6, 5, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        )  # fmt: skip
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.classifier = nn.Sequential(
            nn.Dropout(), nn.Linear(20, 12), nn.ReLU(inplace=True),
            nn.Dropout(), nn.Linear(12, 10), nn.ReLU(inplace=True), nn.Linear(10, 5),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.pool(self.features(x)), 1))


class BasicBlock(nn.Module):
    """Two convolutions and a shortcut, which is a convolution where the shape changes."""

    def __init__(self, wide: int, out: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(wide, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out)
        self.conv2, self.bn2 = nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or wide != out:
            self.downsample = nn.Sequential(nn.Conv2d(wide, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        kept = x if self.downsample is None else self.downsample(x)
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += kept
        return self.relu(out)


class ResNet18(nn.Module):
    """The stem and the eight blocks of ResNet-18, narrow."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 4, 7, 2, 3, bias=False), nn.BatchNorm2d(4)
        self.relu, self.maxpool = nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)
        widths = [(4, 4, 1), (4, 5, 2), (5, 6, 2), (6, 7, 2)]
        self.layers = nn.ModuleList(nn.Sequential(BasicBlock(*w), BasicBlock(w[1], w[1])) for w in widths)
        self.fc = nn.Linear(7, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for layer in self.layers:
            x = layer(x)
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


def _convolution(wide: int, out: int, size: int) -> nn.Sequential:
    norm = nn.BatchNorm2d(out, eps=1e-3)
    return nn.Sequential(nn.Conv2d(wide, out, size, padding=size // 2, bias=False), norm, nn.ReLU(inplace=True))


class Inception(nn.Module):
    """Four branches side by side: 1x1, 3x3, twice 3x3, and a pooled one."""

    def __init__(self, wide: int) -> None:
        super().__init__()
        self.one = _convolution(wide, 2, 1)
        self.three = nn.Sequential(_convolution(wide, 3, 1), _convolution(3, 4, 3))
        self.five = nn.Sequential(_convolution(wide, 2, 1), _convolution(2, 3, 5))
        self.pooled = nn.Sequential(nn.MaxPool2d(3, 1, 1), _convolution(wide, 2, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.one(x), self.three(x), self.five(x), self.pooled(x)], 1)


class GoogLeNet(nn.Module):
    """A stem and two inception blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first, self.second = _convolution(3, 4, 3), Inception(4), Inception(11)
        self.fc = nn.Linear(11, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(F.max_pool2d(self.first(self.stem(x)), 2))
        return self.fc(F.dropout(F.adaptive_avg_pool2d(x, 1).flatten(1), 0.2, self.training))


class DenseLayer(nn.Module):
    """Norm, ReLU and 1x1 convolution on all that came before; norm, ReLU and 3x3 convolution to a few new channels."""

    def __init__(self, wide: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(wide), nn.Conv2d(wide, 6, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(6), nn.Conv2d(6, 3, 3, padding=1, bias=False)

    def forward(self, features: list[Tensor]) -> Tensor:
        x = self.conv1(F.relu(self.norm1(torch.cat(features, 1)), inplace=True))
        return self.conv2(F.relu(self.norm2(x), inplace=True))


class DenseNet(nn.Module):
    """A stem, two dense layers, a transition, one dense layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _convolution(3, 4, 3)
        self.layers = nn.ModuleList([DenseLayer(4), DenseLayer(7), DenseLayer(5)])
        self.norm, self.conv, self.last = nn.BatchNorm2d(10), nn.Conv2d(10, 5, 1, bias=False), nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        for layer in self.layers[:2]:
            features.append(layer(features))
        x = F.avg_pool2d(self.conv(F.relu(self.norm(torch.cat(features, 1)))), 2)
        x = F.relu(self.last(torch.cat([x, self.layers[2]([x])], 1)))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


class ConvNeXtBlock(nn.Module):
    """Depthwise convolution, norm over channels, MLP on each place, layer scale, residual."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise, self.norm = nn.Conv2d(width, width, 7, padding=3, groups=width), nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.scale = nn.Parameter(torch.full((width,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        return x + (self.scale * self.down(F.gelu(self.up(y)))).permute(0, 3, 1, 2)


class ChannelNorm(nn.Module):
    """Layer norm over the channels of an image."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNeXt(nn.Module):
    """Patches, a block, a halving, a block."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 2, 2), ChannelNorm(6))
        self.first, self.second = ConvNeXtBlock(6), ConvNeXtBlock(8)
        self.halve = nn.Sequential(ChannelNorm(6), nn.Conv2d(6, 8, 2, 2))
        self.norm, self.fc = nn.LayerNorm(8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.halve(self.first(self.stem(x))))
        return self.fc(self.norm(x.mean((-2, -1))))


class DeepUNet(nn.Module):
    """Two levels down and up, two convolutions on each, transposed convolutions, skips by concatenation."""

    def __init__(self) -> None:
        super().__init__()

        def twice(wide: int, out: int) -> nn.Sequential:
            return nn.Sequential(_convolution(wide, out, 3), _convolution(out, out, 3))

        self.down1, self.down2, self.middle = twice(1, 3), twice(3, 4), twice(4, 5)
        self.up2, self.join2 = nn.ConvTranspose2d(5, 4, 2, 2), twice(8, 4)
        self.up1, self.join1 = nn.ConvTranspose2d(4, 3, 2, 2), twice(6, 3)
        self.out = nn.Conv2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.down1(x)
        second = self.down2(F.max_pool2d(first, 2))
        x = self.up2(self.middle(F.max_pool2d(second, 2)))
        x = self.up1(self.join2(torch.cat([second, x], 1)))
        return self.out(self.join1(torch.cat([first, x], 1)))


class Generator(nn.Module):
    """DCGAN's generator: transposed convolutions with batch norm from noise to an image."""

    def __init__(self) -> None:
        super().__init__()
        self.main = nn.Sequential(
            nn.ConvTranspose2d(8, 7, 4, 1, 0, bias=False), nn.BatchNorm2d(7), nn.ReLU(True),
            nn.ConvTranspose2d(7, 6, 4, 2, 1, bias=False), nn.BatchNorm2d(6), nn.ReLU(True),
            nn.ConvTranspose2d(6, 3, 4, 2, 1, bias=False), nn.Tanh(),
        )  # fmt: skip

    def forward(self, noise: Tensor) -> Tensor:
        return self.main(noise)


class Critic(nn.Module):
    """A WGAN critic with spectral norm, whose power iteration writes buffers in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = spectral_norm(nn.Conv2d(1, 4, 3, 2, 1))
        self.conv2 = spectral_norm(nn.Conv2d(4, 6, 3, 2, 1))
        self.score = spectral_norm(nn.Linear(24, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.conv2(F.leaky_relu(self.conv1(x), 0.2)), 0.2)
        return self.score(x.flatten(1))


class MixerBlock(nn.Module):
    """An MLP over the places, then an MLP over the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(8), nn.LayerNorm(8)
        self.places = nn.Sequential(nn.Linear(4, 10), nn.GELU(), nn.Linear(10, 4))
        self.channels = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.places(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channels(self.norm2(x))


class Mixer(nn.Module):
    """MLP-Mixer: patches, two blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.blocks = nn.Conv2d(3, 8, 4, 4), nn.Sequential(MixerBlock(), MixerBlock())
        self.norm, self.fc = nn.LayerNorm(8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.norm(self.blocks(self.patches(x).flatten(2).transpose(1, 2))).mean(1))


class WaveNet(nn.Module):
    """Dilated causal convolutions with gates; residual and skip ways out of each."""

    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Conv1d(1, 4, 1)
        self.filters = nn.ModuleList(nn.Conv1d(4, 4, 2, dilation=2**layer) for layer in range(2))
        self.gates = nn.ModuleList(nn.Conv1d(4, 4, 2, dilation=2**layer) for layer in range(2))
        self.on = nn.ModuleList(nn.Conv1d(4, 4, 1) for _ in range(2))
        self.skips = nn.ModuleList(nn.Conv1d(4, 6, 1) for _ in range(2))
        self.end = nn.Sequential(nn.ReLU(), nn.Conv1d(6, 6, 1), nn.ReLU(), nn.Conv1d(6, 5, 1))

    def forward(self, x: Tensor) -> Tensor:
        x, total = self.start(x), 0
        for layer in range(2):
            padded = F.pad(x, (2**layer, 0))
            z = torch.tanh(self.filters[layer](padded)) * torch.sigmoid(self.gates[layer](padded))
            x, total = x + self.on[layer](z), total + self.skips[layer](z)
        return self.end(total)
