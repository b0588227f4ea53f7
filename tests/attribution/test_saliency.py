"""Saliency: exact where the answer is known, equal to plain autograd and plain forwards, complete where it says so."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import cutaway as cw
from cutaway.attribution.saliency import METHODS
from cutaway.errors import InputError, MetricError
from zoo import case, error

IMAGES, TOKENS = ("lenet", "resnet", "alexnet"), ("gru", "gru time-major", "gpt2", "llama", "mamba", "bert")
METRIC = cw.custom(lambda out: out.reshape(len(out), -1)[:, :2].sum(1), "first two")
DENSE = [name for name in METHODS if name != "grad-cam"]


@pytest.mark.parametrize("method", DENSE)
def test_exact_on_a_linear_network(method: str) -> None:
    torch.manual_seed(0)
    module, x = nn.Linear(6, 3), torch.randn(4, 6)
    found = cw.saliency(cw.open(module).record(x), cw.custom(lambda out: out[:, 1]), method).values
    slope = module.weight[1].detach().expand_as(x)
    assert error(found, slope if method in ("gradient", "smooth-grad") else slope * x) <= 1e-5


@pytest.mark.parametrize("name", [*IMAGES, "siren", "mixture", "spiking"])
def test_the_gradient_is_plain_autograds(name: str) -> None:
    found = case(name)
    x = found.args[0].clone().requires_grad_()
    slope = torch.autograd.grad(METRIC(case(name).entry.make()[0](x), found.net).sum(), x)[0]
    assert error(cw.saliency(found.trace, METRIC, "gradient").values, slope) <= 1e-5


@pytest.mark.parametrize("name", [*IMAGES, *TOKENS])
def test_integrated_gradients_are_complete(name: str) -> None:
    trace = case(name).trace
    found = cw.saliency(trace, METRIC, steps=300)
    assert found.facts["completeness"]["error"] <= 1e-3, found.facts
    assert found.values.shape[0] == 3 and (name in IMAGES or found.values.shape == (3, 7))


def test_occlusion_is_plain_forwards() -> None:
    found = case("lenet")
    module, x = found.entry.make()[0], found.args[0]
    got = cw.saliency(found.trace, METRIC, "occlusion", window=6, stride=6).values
    with torch.no_grad():
        before = METRIC(module(x), found.net)
        for row, column in ((0, 0), (6, 12), (12, 12)):
            hidden = x.clone()
            hidden[:, :, row : row + 6, column : column + 6] = 0
            lost = (before - METRIC(module(hidden), found.net))[:, None, None, None]
            assert error(got[:, :, row : row + 6, column : column + 6], lost.expand(3, 1, 6, 6)) <= 1e-5


def test_grad_cam_is_hooks() -> None:
    torch.manual_seed(0)
    last = nn.Conv2d(4, 5, 3)
    module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), last, nn.ReLU(), nn.Flatten(), nn.Linear(5 * 64, 3)).eval()
    x, kept = torch.randn(2, 1, 12, 12), []
    trace = cw.open(module).record(x)
    for site, part in (("", module[3]), ("2", last)):
        handle = part.register_forward_hook(lambda mod, args, out: kept.append(out))
        out = module(x.clone().requires_grad_())
        handle.remove()
        value = kept.pop()
        slope = torch.autograd.grad(METRIC(out, trace.net).sum(), value)[0]
        coarse = (slope.mean((2, 3), keepdim=True) * value).sum(1, keepdim=True).relu()
        want = F.interpolate(coarse, (12, 12), mode="bilinear", align_corners=False)[:, 0].detach()
        assert error(cw.saliency(trace, METRIC, "grad-cam", site=site).values, want) <= 1e-5


def test_nothing_is_touched_and_seeds_decide() -> None:
    found = case("gpt2")
    state, needs = torch.get_rng_state(), [part.requires_grad for part in found.module.parameters()]
    one, same, other = (cw.saliency(found.trace, METRIC, "smooth-grad", seed=seed).values for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert torch.equal(state, torch.get_rng_state())
    assert needs == [part.requires_grad for part in found.module.parameters()]
    assert all(part.grad is None for part in found.module.parameters())


def test_several_inputs_and_words() -> None:
    found = cw.saliency(case("siamese").trace, METRIC)
    assert set(found.maps) == {"input", "input1"}
    with pytest.raises(InputError, match="several maps"):
        _ = found.values
    assert " at " in str(cw.saliency(case("gpt2").trace, METRIC))


def test_what_cannot_be_asked() -> None:
    trace = case("lenet").trace
    with pytest.raises(InputError, match="no saliency method 'magic'"):
        cw.saliency(trace, METRIC, "magic")
    with pytest.raises(InputError, match="takes no option 'steps'"):
        cw.saliency(trace, METRIC, "gradient", steps=3)
    with pytest.raises(InputError, match="has shape"):
        cw.saliency(trace, METRIC, baseline=torch.zeros(5, 5))
    with pytest.raises(MetricError, match="no gradient|does not depend"):
        cw.saliency(trace, cw.custom(lambda out: out.detach().sum(1)), "gradient")
    with pytest.raises(InputError, match="no convolution"):
        cw.saliency(case("gpt2").trace, METRIC, "grad-cam")
