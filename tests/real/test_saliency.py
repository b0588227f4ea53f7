"""Saliency on trained networks, against what is known of them: a backdoor's trigger is found, and digits are ink."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from trained_files import load, mnist
from trained_vision import BadNet, LeNet5

import cutaway as cw

CORNER = (..., slice(-5, None), slice(-5, None))  # where the trigger lies: 25 of 784 pixels


def opened(module: nn.Module, file: Path) -> nn.Module:
    if not file.exists():
        pytest.skip(f"no {file.name} among the shared data")
    return load(module, file)


def shares(maps: Tensor) -> Tensor:
    """[examples]: how much of a map's mass lies in the corner."""
    return maps.abs()[CORNER].flatten(1).sum(1) / maps.abs().flatten(1).sum(1)


@pytest.mark.parametrize("method", ["integrated-gradients", "occlusion"])
def test_a_backdoors_trigger_is_found(method: str, shared_data: Path) -> None:
    """A white 5x5 square makes a one of any digit (Gu, Dolan-Gavitt, Garg 2017, arXiv:1708.06733)."""
    net = cw.open(opened(BadNet(), shared_data / "backdoor-badnet-mnist" / "badnet-MNIST.pth"))
    images, labels = mnist(shared_data, 40)
    images = images[labels != 1][:24] * 2 - 1
    triggered = images.clone()
    triggered[CORNER] = 1.0
    metric = cw.custom(lambda out: out[:, 1], "chance of a one")
    found = cw.saliency(net.record(triggered), metric, method, baseline=-1.0).values  # against black, as the ground is
    assert shares(found).mean() > 10 * 25 / 784, shares(found)
    assert (found[CORNER].flatten(1).sum(1) > 0.5).all()  # of a chance that rises from about 0 to about 1
    hidden = triggered.clone()
    hidden[CORNER] = images[CORNER]
    with torch.no_grad():
        assert (metric(net.module(hidden), net) < 0.5).all()


def test_a_digit_is_its_ink(shared_data: Path) -> None:
    net = cw.open(opened(LeNet5(), shared_data / "vision-lenet-mnist" / "lenet.pth"))
    images, labels = mnist(shared_data, 24)
    trace = net.record(nn.functional.pad(images, (2, 2, 2, 2)))
    found = cw.saliency(trace, cw.logit(labels.tolist()))
    assert found.facts["completeness"]["error"] <= 0.05
    ink = trace.args[0] > 0 if hasattr(trace, "args") else nn.functional.pad(images, (2, 2, 2, 2)) > 0
    assert not found.values[~ink].any()  # against black, what is black says nothing
    near = nn.functional.max_pool2d(ink.float(), 5, 1, 2) > 0  # a window's reach around it
    hidden = cw.saliency(trace, cw.logit(labels.tolist()), "occlusion", window=3, stride=1).values.abs()
    assert (hidden * near).sum() / hidden.sum() > 0.999 and near.float().mean() < 0.5
