"""Saliency on a LeNet-like network: how far maps are from captum's, and CPU seconds, where captum is installed.

    python benchmarks/saliency.py [--rounds 5] [--examples 16] [--json]

Random weights, 28x28 images, one thread, a recording made before. The same steps, windows and baselines: integrated
gradients by 50 points of Gauss-Legendre quadrature from zero, occlusion of 4x4 windows with stride 2, GradCAM of the
last convolution stretched to the image. captum runs in this interpreter, so install it beside cutaway.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from rows import Row, row, show
from torch import Tensor, nn

import cutaway as cw

try:
    from captum import attr
except ImportError:  # then our figures stand alone
    attr = None

COMMAND = "python benchmarks/saliency.py"
OPTIONS = {
    "integrated-gradients": {"steps": 50, "within": float("inf"), "baseline": 0.0},
    "occlusion": {"window": 4, "stride": 2, "baseline": 0.0},
    "grad-cam": {"site": "3"},  # the convolution itself, as in captum; ours is after what bends it otherwise
}  # fmt: skip


def lenet() -> nn.Sequential:
    """LeNet-5's shape on 28x28 images."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10),
    ).eval()  # fmt: skip


def captums(module: nn.Sequential, images: Tensor, target: Tensor) -> dict[str, Callable[[], Tensor]]:
    """captum's methods with the same options."""

    def grad_cam() -> Tensor:
        found = attr.LayerGradCam(module, module[3]).attribute(images, target, relu_attributions=True)
        return nn.functional.interpolate(found, images.shape[2:], mode="bilinear", align_corners=False)[:, 0]

    return {
        "integrated-gradients": lambda: attr.IntegratedGradients(module).attribute(images, 0.0, target, n_steps=50),
        "occlusion": lambda: attr.Occlusion(module).attribute(
            images, (1, 4, 4), (1, 2, 2), 0.0, target, perturbations_per_eval=64
        ),
        "grad-cam": grad_cam,
    }


def measured(run: Callable[[], Tensor], rounds: int) -> tuple[list[float], Tensor]:
    """CPU milliseconds of each round after a first one, and the map."""
    found, times = run().detach(), []
    for _ in range(rounds):
        start = time.process_time()
        run()
        times.append(1000 * (time.process_time() - start))
    return times, found


def rows(rounds: int, examples: int) -> list[Row]:
    """Two rows a method: the largest difference relative to captum's largest value, and the time."""
    module = lenet()
    images = torch.rand(examples, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        target = module(images).argmax(1)
    trace = cw.open(module).record(images)
    metric = cw.custom(lambda out: out.gather(1, target[:, None])[:, 0], "logit of the class")
    cw.saliency(trace, metric, "gradient")  # lifts the recording
    peers = captums(module, images, target) if attr else {}
    found = []
    for method, options in OPTIONS.items():
        times, ours = measured(lambda: cw.saliency(trace, metric, method, **options).values, rounds)  # noqa: B023
        shown = {}
        if method in peers:
            others, theirs = measured(peers[method], rounds)
            shown = {"captum": round(statistics.median(others), 3)}
            apart = float((ours - theirs).abs().max() / theirs.abs().max())
            found.append(row(f"{method}: difference from captum", [1e6 * apart], "millionths", 100.0, COMMAND))
        found.append(row(method, times, "ms of CPU", None, COMMAND, shown))
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--examples", type=int, default=16)
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    show(rows(chosen.rounds, chosen.examples), chosen.json)


if __name__ == "__main__":
    main()
