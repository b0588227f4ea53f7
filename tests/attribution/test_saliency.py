"""Saliency: exact where the answer is known, equal to plain autograd and plain forwards, complete where it says so."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import cutaway as cw
from cutaway.attribution.saliency import METHODS
from cutaway.errors import InputError, MetricError
from zoo import case, error

IMAGES, TOKENS = ("lenet", "resnet", "alexnet"), ("gru", "gru time-major", "gpt2", "llama", "mamba", "bert")
SLOW = ("resnet", "alexnet", "gru time-major", "llama", "bert", "mamba")
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


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in (*IMAGES, *TOKENS)]
)
def test_integrated_gradients_are_complete(name: str) -> None:
    trace = case(name).trace
    found = cw.saliency(trace, METRIC, steps=300)
    assert found.facts["completeness"]["error"] <= 1e-3, found.facts
    assert found.values.shape[0] == 3 and (name in IMAGES or found.values.shape == (3, 7))


class Straight(nn.Module):
    """Rounds, and says that rounding has the slope of the identity."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + (x.round() - x).detach()


@pytest.mark.parametrize(
    ("name", "gradients", "of", "most"),
    [
        ("autocast and no_grad", "through detach and no_grad", "each example", 0.01),  # bfloat16 inside
        ("graph", "the network's own", "all examples together", 0.01),  # examples are nodes
        ("view writes", "through detach and no_grad", "all examples together", 0.1),  # jumps at a threshold
        pytest.param("jamba", "the network's own", "each example", 0.01, marks=pytest.mark.slow),
    ],
)
def test_gradients_that_the_network_cuts_off_are_led_through(name: str, gradients: str, of: str, most: float) -> None:
    found = cw.saliency(case(name).trace, METRIC, steps=32)
    assert found.facts["gradients"] == gradients and found.facts["completeness"]["of"].startswith(of)
    assert found.facts["completeness"]["error"] <= most, found.facts


def test_led_through_gradients_are_those_of_the_function() -> None:
    found = case("autocast and no_grad")
    module, x = found.entry.make()[0], found.args[0].clone().requires_grad_()
    h = torch.tanh(module.a(x))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        g = torch.relu(module.b(h))
    out = module.c(g.float() * torch.sigmoid(module.b(h)) + h)
    slope = torch.autograd.grad(METRIC(out, found.net).sum(), x)[0]
    assert error(cw.saliency(found.trace, METRIC, "gradient", through=True).values, slope) <= 1e-5


def test_a_straight_through_estimate_is_kept_and_a_network_without_gradients_has_some() -> None:
    x = torch.tensor([[0.3, 2.2, 3.8]])
    found = cw.saliency(cw.open(Straight()).record(x), cw.custom(lambda out: out.sum(1)))
    assert found.facts["gradients"] == "the network's own" and error(found.values, x) <= 1e-5
    module = nn.Linear(3, 2)
    closed = nn.Module()
    closed.forward = torch.no_grad()(module.forward)
    trace = cw.open(closed).record(x)
    with pytest.raises(MetricError, match="through=True"):
        cw.saliency(trace, cw.custom(lambda out: out[:, 0]), "gradient")
    assert error(cw.saliency(trace, cw.custom(lambda out: out[:, 0])).values, module.weight[:1].detach() * x) <= 1e-5


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
    for method, options, said in (
        ("smooth-grad", {"noise": math.nan}, "noise is a finite number of at least 0, and nan"),
        ("smooth-grad", {"noise": -1.0}, "noise is a finite number of at least 0, and -1.0"),
        ("smooth-grad", {"samples": 2.5}, "samples is a whole number of at least 1, and 2.5"),
        ("smooth-grad", {"seed": "x"}, "seed is a whole number, and 'x'"),
        ("gradient", {"through": 1}, "through is True or False, and 1"),
        ("occlusion", {"window": "a"}, "window 'a' does not fit"),
        ("integrated-gradients", {"steps": 0}, "steps is a whole number of at least 1, and 0"),
    ):
        with pytest.raises(InputError, match=said):
            cw.saliency(trace, METRIC, method, **options)
    with pytest.raises(InputError, match="has shape"):
        cw.saliency(trace, METRIC, baseline=torch.zeros(5, 5))
    with pytest.raises(MetricError, match="no gradient|does not depend"):
        cw.saliency(trace, cw.custom(lambda out: out.detach().sum(1)), "gradient")
    with pytest.raises(InputError, match="no convolution"):
        cw.saliency(case("gpt2").trace, METRIC, "grad-cam")
