"""The trained image classifiers and the face detector, written from their descriptions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LeNet5(nn.Module):
    """LeNet-5 on 32x32 images: the last convolution sees everything, so the head reads one number a channel."""

    def __init__(self) -> None:
        super().__init__()
        self.convnet = nn.ModuleDict(
            {"c1": nn.Conv2d(1, 6, 5), "c3": nn.Conv2d(6, 16, 5), "c5": nn.Conv2d(16, 120, 5)}
        )
        self.fc = nn.ModuleDict({"f6": nn.Linear(120, 84), "f7": nn.Linear(84, 10)})

    def forward(self, images: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.convnet["c1"](images)), 2)
        x = F.max_pool2d(F.relu(self.convnet["c3"](x)), 2)
        x = F.relu(self.convnet["c5"](x)).flatten(1)
        return self.fc["f7"](F.relu(self.fc["f6"](x)))


class BadNet(nn.Module):
    """Two convolutions with average pooling, two linear layers, probabilities at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(nn.Conv2d(1, 16, 5), nn.ReLU(), nn.AvgPool2d(2))
        self.conv2 = nn.Sequential(nn.Conv2d(16, 32, 5), nn.ReLU(), nn.AvgPool2d(2))
        self.fc1 = nn.Sequential(nn.Linear(512, 512), nn.ReLU())
        self.fc2 = nn.Sequential(nn.Linear(512, 10), nn.Softmax(-1))

    def forward(self, images: Tensor) -> Tensor:
        x = self.conv2(self.conv1(images))
        return self.fc2(self.fc1(x.view(-1, x.shape[1] * x.shape[2] * x.shape[3])))


class CaptumCNN(nn.Module):
    """One ReLU and one pooling module, each used several times."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 5), nn.Conv2d(6, 16, 5)
        self.pool, self.relu = nn.MaxPool2d(2), nn.ReLU()
        self.fc1, self.fc2, self.fc3 = nn.Linear(400, 120), nn.Linear(120, 84), nn.Linear(84, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = self.pool(self.relu(self.conv1(images)))
        x = self.pool(self.relu(self.conv2(x))).view(-1, 400)
        return self.fc3(self.relu(self.fc2(self.relu(self.fc1(x)))))


class TinyVGG(nn.Module):
    """Four convolutions of ten channels; the dense layer reads the activation with channels last."""

    def __init__(self) -> None:
        super().__init__()
        for name, width in (("1_1", 3), ("1_2", 10), ("2_1", 10), ("2_2", 10)):
            self.add_module(f"conv_{name}", nn.Conv2d(width, 10, 3))
        self.output = nn.Linear(1690, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = images
        for stage in ("1", "2"):
            for place in ("1", "2"):
                x = F.relu(self.get_submodule(f"conv_{stage}_{place}")(x), inplace=True)
            x = F.max_pool2d(x, 2)
        return self.output(x.permute(0, 2, 3, 1).flatten(1))


class BasicBlock(nn.Module):
    """Two convolutions and a shortcut without parameters: every second pixel, and channels of zeros around."""

    def __init__(self, width: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, out, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(out), nn.BatchNorm2d(out)
        self.extra = (out - width) // 2

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        shortcut = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.extra, self.extra)) if self.extra else x
        out += shortcut
        return F.relu(out)


class ResNet20(nn.Module):
    """The CIFAR residual network of 20 layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        for stage, (width, out) in enumerate(((16, 16), (16, 32), (32, 64)), 1):
            first = BasicBlock(width, out, 1 if stage == 1 else 2)
            self.add_module(f"layer{stage}", nn.Sequential(first, *(BasicBlock(out, out, 1) for _ in range(2))))
        self.linear = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(images)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(F.avg_pool2d(x, x.shape[-1]).flatten(1))


def _normed(width: int, out: int, size: int) -> list[nn.Module]:
    return [nn.Conv2d(width, out, size, padding=size // 2), nn.BatchNorm2d(out), nn.ReLU()]


class InceptionBlock(nn.Module):
    """Four branches side by side: 1x1, 1x1 then 3x3, 1x1 then 5x5, and a maximum then 1x1."""

    def __init__(self, width: int, narrow: tuple[int, int], out: Sequence[int]) -> None:
        super().__init__()
        self.conv_1x1 = nn.Sequential(*_normed(width, out[0], 1))
        self.conv_3x3 = nn.Sequential(*_normed(width, narrow[0], 1), *_normed(narrow[0], out[1], 3))
        self.conv_5x5 = nn.Sequential(*_normed(width, narrow[1], 1), *_normed(narrow[1], out[2], 5))
        self.max_pool = nn.Sequential(nn.MaxPool2d(3, 1, 1), *_normed(width, out[3], 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.conv_1x1(x), self.conv_3x3(x), self.conv_5x5(x), self.max_pool(x)], 1)


INCEPTION = (
    (64, (32, 16), (16, 32, 8, 8)),
    (64, (32, 16), (24, 48, 12, 12)),
    None,
    (96, (32, 16), (24, 48, 12, 12)),
    (96, (32, 16), (16, 48, 16, 16)),
    (96, (32, 16), (16, 48, 16, 16)),
    (96, (32, 16), (32, 48, 24, 24)),
    None,
    (128, (48, 16), (32, 64, 16, 16)),
    (128, (48, 16), (32, 64, 16, 16)),
)


class GoogLeNet(nn.Module):
    """Eight Inception blocks, a maximum before the third and the seventh."""

    def __init__(self) -> None:
        super().__init__()
        self.input_net = nn.Sequential(*_normed(3, 64, 3))
        blocks = [nn.MaxPool2d(3, 2, 1) if row is None else InceptionBlock(*row) for row in INCEPTION]
        self.inception_blocks = nn.Sequential(*blocks)
        self.output_net = nn.Sequential(nn.AdaptiveAvgPool2d((1, 1)), nn.Flatten(), nn.Linear(128, 10))

    def forward(self, images: Tensor) -> Tensor:
        return self.output_net(self.inception_blocks(self.input_net(images)))


DARKNET = (16, 32, 16, 128, 16, 128, 32, 256, 32, 256, 64, 512, 64, 512, 128, 1000)


class TinyDarknet(nn.Module):
    """Sixteen convolutions, 3x3 and 1x1 in turn after the second; classes are read off as the mean of a map each."""

    def __init__(self) -> None:
        super().__init__()
        width = 3
        for place, out in enumerate(DARKNET, 1):
            size = 1 if place > 2 and width > out or place == 16 else 3
            self.add_module(f"conv{place}", nn.Conv2d(width, out, size, padding=size // 2, bias=place == 16))
            if place < 16:
                self.add_module(f"bn{place}", nn.BatchNorm2d(out, eps=1e-3))
            width = out

    def forward(self, images: Tensor) -> Tensor:
        x = images
        for place in range(1, 16):
            x = F.leaky_relu(self.get_submodule(f"bn{place}")(self.get_submodule(f"conv{place}")(x)), 0.1)
            if place in (1, 2, 6, 10):
                x = F.max_pool2d(x, 2)
        return self.conv16(x).mean((2, 3))


class BlazeBlock(nn.Module):
    """A depthwise and a pointwise convolution beside a shortcut, which is pooled and widened by zeros when needed."""

    def __init__(self, width: int, out: int, stride: int = 1) -> None:
        super().__init__()
        self.stride, self.extra = stride, out - width
        depthwise = nn.Conv2d(width, width, 3, stride, 1 if stride == 1 else 0, groups=width)
        self.convs = nn.Sequential(depthwise, nn.Conv2d(width, out, 1))

    def forward(self, x: Tensor) -> Tensor:
        inner = x
        if self.stride == 2:
            inner = F.pad(x, (0, 2, 0, 2))
            x = F.max_pool2d(x, 2)
        if self.extra:
            x = F.pad(x, (0, 0, 0, 0, 0, self.extra))
        return F.relu(self.convs(inner) + x, inplace=True)


FACE_WIDTHS = (24, 24, 28, 32, 36, 42, 48, 56, 64, 72, 80, 88)  # before and after each block of the fine scale
FACE_STRIDES = ((28, 32), (42, 48), (88, 96))  # the blocks that halve the image


class BlazeFace(nn.Module):
    """Scores [batch, 896, 1] and boxes with key points [batch, 896, 16] of anchors on two scales."""

    def __init__(self) -> None:
        super().__init__()
        steps = [
            BlazeBlock(*pair, 2 if pair in FACE_STRIDES else 1)
            for pair in zip(FACE_WIDTHS, FACE_WIDTHS[1:], strict=False)
        ]
        self.backbone1 = nn.Sequential(nn.Conv2d(3, 24, 5, 2), nn.ReLU(inplace=True), *steps)
        self.backbone2 = nn.Sequential(BlazeBlock(88, 96, 2), *(BlazeBlock(96, 96) for _ in range(4)))
        self.classifier_8, self.classifier_16 = nn.Conv2d(88, 2, 1), nn.Conv2d(96, 6, 1)
        self.regressor_8, self.regressor_16 = nn.Conv2d(88, 32, 1), nn.Conv2d(96, 96, 1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        fine = self.backbone1(F.pad(images, (1, 2, 1, 2)))
        coarse = self.backbone2(fine)

        def rows(value: Tensor, width: int) -> Tensor:
            return value.permute(0, 2, 3, 1).reshape(len(value), -1, width)

        scores = torch.cat([rows(self.classifier_8(fine), 1), rows(self.classifier_16(coarse), 1)], 1)
        return scores, torch.cat([rows(self.regressor_8(fine), 16), rows(self.regressor_16(coarse), 16)], 1)
