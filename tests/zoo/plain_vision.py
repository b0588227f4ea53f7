"""Zoo entries for networks on images and sound, as plain modules."""

from __future__ import annotations

import vision_modules as v
from entry import Entry, floats
from parts import parts

VISION: list[Entry] = [
    Entry("lenet", v.LeNet, lambda: floats(1, 18, 18), parts(5, conv=[4, 6], mlp=10)),
    Entry("resnet", lambda: v.ResNet().eval(), lambda: floats(3, 8, 8), parts(5, conv=[6] * 5, act=[6, 6]), 4),
    Entry(
        "resnet training", lambda: v.ResNet().train(), lambda: floats(3, 8, 8), parts(5, conv=[6] * 5, act=[6, 6]), 4,
    ),
    Entry("unet", v.UNet, lambda: floats(1, 8, 8), parts(2, conv=[4, 6, 4, 2])),
    Entry("alexnet", lambda: v.AlexNet().eval(), lambda: floats(3, 16, 16), parts(5, conv=[4, 6, 5], mlp=[12, 10])),
    Entry("alexnet training", v.AlexNet, lambda: floats(3, 16, 16), parts(5, conv=[4, 6, 5], mlp=[12, 10])),
    Entry(  # where a shortcut is a convolution, the ReLU after it bends the sum of two convolutions: one block
        "resnet-18", lambda: v.ResNet18().eval(), lambda: floats(3, 64, 64),
        parts(5, conv=[4, *[4] * 4, *[5] * 4, *[6] * 4, *[7] * 4], act=[4, 4, 5, 6, 7]), 10,
    ),
    Entry(
        "googlenet", lambda: v.GoogLeNet().eval(), lambda: floats(3, 8, 8),
        parts(5, conv=[4, 2, 3, 4, 2, 3, 2, 2, 3, 4, 2, 3, 2]),
    ),
    Entry(
        "densenet", lambda: v.DenseNet().eval(), lambda: floats(3, 8, 8),
        parts(5, conv=[4, 6, 3, 6, 3, 5, 6, 3], act=[4, 7, 10, 5, 8]),
    ),
    Entry(
        "convnext", v.ConvNeXt, lambda: floats(3, 8, 8), parts(5, norm=1, conv=[6, 8, 8], mlp=[24, 32]), 4,
    ),
    Entry(
        "unet of two levels", lambda: v.DeepUNet().eval(), lambda: floats(1, 8, 8),
        parts(2, conv=[3, 3, 4, 4, 5, 5, 4, 4, 4, 3, 3, 3, 2]),
    ),
    Entry("dcgan", lambda: v.Generator().eval(), lambda: floats(8, 1, 1), parts(3, conv=[7, 6, 3])),
    Entry("wgan critic", lambda: v.Critic().eval(), lambda: floats(1, 8, 8), parts(1, conv=[4, 6])),
    Entry("wgan critic training", v.Critic, lambda: floats(1, 8, 8), parts(1, conv=[4, 6])),
    Entry("mlp-mixer", v.Mixer, lambda: floats(3, 8, 8), parts(5, mlp=[10, 16, 10, 16]), 5),
    Entry("wavenet", v.WaveNet, lambda: floats(1, 9), parts(5, conv=[4, 4, 4, 6, 6, 5]), 2),
]  # fmt: skip
