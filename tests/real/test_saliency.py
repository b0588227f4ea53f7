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
    """A white 5x5 square makes a one of any digit: it has far more of the mass than of the area, and speaks for one."""
    net = cw.open(opened(BadNet(), shared_data / "backdoor-badnet-mnist" / "badnet-MNIST.pth"))
    images, labels = mnist(shared_data, 20)
    images, labels = images[labels != 1][:8] * 2 - 1, labels[labels != 1][:8]
    triggered, rows = images.clone(), torch.arange(len(images))
    triggered[CORNER] = 1.0
    odds = cw.custom(lambda out: (out[:, 1] / out[rows, labels]).log(), "a one against the digit")
    found, clean = (cw.saliency(net.record(seen), odds, method, baseline=-1.0).values for seen in (triggered, images))
    area = 25 / 784
    assert shares(found).min() > 5 * area and shares(clean).mean() < area, (shares(found), shares(clean))
    assert (found[CORNER].flatten(1).sum(1) > 0).all()


def test_a_digit_is_its_ink(shared_data: Path) -> None:
    net = cw.open(opened(LeNet5(), shared_data / "vision-lenet-mnist" / "lenet.pth"))
    images, labels = mnist(shared_data, 12)
    images = nn.functional.pad(images, (2, 2, 2, 2))
    metric = cw.logit(labels.tolist())
    found = cw.saliency(net.record(images), metric)
    assert found.facts["completeness"]["error"] <= 0.05
    ink = images > 0
    assert found.values[ink].any() and not found.values[~ink].any()  # against black, what is black says nothing
    alone = torch.where(found.values > 0, images, 0.0)  # the ink that speaks for the digit
    rest = torch.where(found.values < 0, images, 0.0)
    with torch.no_grad():
        kept, lost = metric(net.module(alone), net), metric(net.module(rest), net)
    assert (kept > lost).all()
