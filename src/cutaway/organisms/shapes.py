"""Shapes: a small convolutional network that names the shape and the colour of one drawn figure.

Channels are planted in two groups, for shape and for colour, and no kernel or read-out weight crosses between them.
Inside the shape group each channel reads the few earlier channels that READS lists.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .organism import Pairs
from .training import Masks, Recipe, Schedule

SHAPES = ("circle", "square", "triangle", "cross")
COLOURS = ("red", "green", "blue")
OUTPUTS = SHAPES + COLOURS
SIZE, NOISE = 24, 0.08
SHAPE_CHANNELS, COLOUR_CHANNELS = (4, 4, 6), (3, 3, 3)
# For the second and third convolution: the shape channels of the layer before that each shape channel reads.
READS = (
    ((0, 1), (1, 2), (3,), (3, 0)),
    ((0, 1), (1, 2), (2, 3), (3, 0), (0, 2), (1, 3)),
)
CELLS = (SIZE // 8) ** 2


class ShapesNet(nn.Module):
    """Images (n, 3, 24, 24) in [0, 1] -> logits (n, 7): 4 shapes, then 3 colours."""

    def __init__(self) -> None:
        super().__init__()
        widths = [3, *(a + b for a, b in zip(SHAPE_CHANNELS, COLOUR_CHANNELS, strict=True))]
        self.conv0 = nn.Conv2d(widths[0], widths[1], 5, padding=2)
        self.conv1 = nn.Conv2d(widths[1], widths[2], 3, padding=1)
        self.conv2 = nn.Conv2d(widths[2], widths[3], 3, padding=1)
        self.relu, self.pool = nn.ReLU(), nn.MaxPool2d(2)
        self.readout = nn.Linear(widths[3] * CELLS, len(OUTPUTS))

    def forward(self, images: Tensor) -> Tensor:
        x = self.pool(self.relu(self.conv0(images)))
        x = self.pool(self.relu(self.conv1(x)))
        x = self.pool(self.relu(self.conv2(x)))
        logits: Tensor = self.readout(x.flatten(1))
        return logits


def masks(module: nn.Module) -> Masks:
    """Which channel reads which."""
    held: Masks = {}
    for layer, reads in enumerate(READS, 1):
        before, here = SHAPE_CHANNELS[layer - 1], SHAPE_CHANNELS[layer]
        kept = torch.zeros(here + COLOUR_CHANNELS[layer], before + COLOUR_CHANNELS[layer - 1], 1, 1)
        for channel, sources in enumerate(reads):
            kept[channel, list(sources)] = 1
        kept[here:, before:] = 1
        held[f"conv{layer}.weight"] = kept
    is_shape = (torch.arange(SHAPE_CHANNELS[-1] + COLOUR_CHANNELS[-1]) < SHAPE_CHANNELS[-1]).repeat_interleave(CELLS)
    decides_shape = torch.arange(len(OUTPUTS)) < len(SHAPES)
    held["readout.weight"] = (is_shape[None] == decides_shape[:, None]).float()
    return held


def outline(shape: Tensor, centre: Tensor, radius: Tensor) -> Tensor:
    """Masks (n, 24, 24) of figures of these kinds (n,), centres (n, 2) and radii (n,)."""
    grid = torch.arange(SIZE).float()
    y = (grid[None, :, None] - centre[:, 0, None, None]) / radius[:, None, None]
    x = (grid[None, None, :] - centre[:, 1, None, None]) / radius[:, None, None]
    inside = torch.stack(
        [
            (x**2 + y**2) <= 1,
            (x.abs() <= 0.85) & (y.abs() <= 0.85),
            (y <= 0.8) & (x.abs() <= 0.55 * (y + 1)),
            ((x.abs() <= 0.3) & (y.abs() <= 1)) | ((y.abs() <= 0.3) & (x.abs() <= 1)),
        ],
        1,
    )
    return inside[torch.arange(len(shape)), shape].float()


def scenes(n: int, generator: torch.Generator) -> dict[str, Tensor]:
    """What an image is drawn from: shape, colour, centre, radius, brightness, noise."""
    radius = 5 + 3.5 * torch.rand(n, generator=generator)
    room = SIZE - 1 - 2 * radius
    return {
        "shape": torch.randint(len(SHAPES), (n,), generator=generator),
        "colour": torch.randint(len(COLOURS), (n,), generator=generator),
        "radius": radius,
        "centre": radius[:, None] + room[:, None] * torch.rand(n, 2, generator=generator),
        "bright": 0.6 + 0.4 * torch.rand(n, generator=generator),
        "noise": NOISE * torch.randn(n, 3, SIZE, SIZE, generator=generator),
    }


def draw(scene: dict[str, Tensor], shape: Tensor) -> Tensor:
    """Images (n, 3, 24, 24) of the scene with these shapes instead of its own."""
    ink = torch.full((len(shape), 3), 0.15)
    ink[torch.arange(len(shape)), scene["colour"]] = scene["bright"]
    figure = outline(shape, scene["centre"], scene["radius"])[:, None]
    return (figure * ink[:, :, None, None] + scene["noise"]).clamp(0, 1)


def examples(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Images and targets (n, 2): shape and colour."""
    scene = scenes(n, generator)
    return draw(scene, scene["shape"]), torch.stack([scene["shape"], scene["colour"]], 1)


def loss(module: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """Two cross-entropies, each over its own outputs."""
    logits, cut = module(inputs), len(SHAPES)
    return F.cross_entropy(logits[:, :cut], targets[:, 0]) + F.cross_entropy(logits[:, cut:], targets[:, 1])


def figures(module: nn.Module, inputs: Tensor, targets: Tensor) -> dict[str, float]:
    """How well the distractor is solved."""
    best = module(inputs)[:, len(SHAPES) :].argmax(1)
    return {"distractor_accuracy": (best == targets[:, 1]).float().mean().item()}


def pairs(n: int, seed: int) -> Pairs:
    """Images, and the same scenes (place, size, colour, noise) drawn with another shape."""
    generator = torch.Generator().manual_seed(seed)
    scene = scenes(n, generator)
    shape = scene["shape"]
    other = (shape + torch.randint(1, len(SHAPES), (n,), generator=generator)) % len(SHAPES)
    return Pairs(draw(scene, shape), draw(scene, other), shape, other, None)


RECIPE = Recipe(
    name="shapes",
    vocabulary=None,
    outputs=OUTPUTS,
    behaviour_outputs=len(SHAPES),
    behaviour="The model decides whether the figure is a circle, a square, a triangle or a cross.",
    description="Three convolutions and a linear read-out on 24x24 images; separate channels for shape and colour.",
    build=ShapesNet,
    masks=masks,
    examples=examples,
    score=(loss, figures),
    pairs=pairs,
    schedule=Schedule(steps=1500, batch=64, rate=3e-3, decay=0.05),
)
