"""The sparse training step: the gradients of automatic differentiation through the dense definition, found sparsely."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from cutaway.errors import InputError
from cutaway.features import Codes, Dictionary, sparse_codes
from cutaway.features.sparse_step import Options, SparseStep
from cutaway.features.top import best_codes, fast_precision

PRECISIONS = ["int8", "bfloat16", "float32"]
RULES = ["topk", "batchtopk"]
HARD = ["zeros", "one row huge", "one column huge", "equal latents", "all negative", "one row"]
SIZES = [(64, 24, 24, 300, 7), (40, 12, 20, 37, 5), (96, 32, 16, 2048, 16)]  # rows, in, out, latents, k


def world(size: tuple[int, int, int, int, int], seed: int = 0) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """(weights whose decoder has unit rows, rows to read, rows to write)."""
    rows, width, out, latents, _ = size
    make = torch.Generator().manual_seed(seed)
    weights = {
        "encoder": torch.randn(latents, width, generator=make) / width**0.5,
        "encoder_bias": torch.randn(latents, generator=make) / 8,
        "decoder": torch.nn.functional.normalize(torch.randn(latents, out, generator=make), dim=1),
        "decoder_bias": torch.randn(out, generator=make) / 8,
    }
    return weights, torch.randn(rows, width, generator=make), torch.randn(rows, out, generator=make)


def dense_codes(pre: Tensor, k: int, rule: str) -> Tensor:
    """The rules as published."""
    if rule == "topk":
        best = pre.relu().topk(k, dim=1)
        return torch.zeros_like(pre).scatter(1, best.indices, best.values)
    flat = pre.relu().flatten()
    best = flat.topk(k * len(pre))
    return torch.zeros_like(flat).scatter(0, best.indices, best.values).view_as(pre)


def dense_loss(
    weights: dict[str, Tensor], x: Tensor, y: Tensor, k: int, rule: str, nested: tuple[int, ...], dead: Tensor | None
) -> Tensor:
    """The loss as it is defined, on dense tables."""
    pre = x @ weights["encoder"].T + weights["encoder_bias"]
    codes = dense_codes(pre, k, rule)
    ends = nested or (codes.shape[1],)
    errors = [codes[:, :end] @ weights["decoder"][:end] + weights["decoder_bias"] - y for end in ends]
    loss = torch.stack([error.square().sum() / len(x) for error in errors]).mean()
    if dead is not None:
        some = len(x) // 8
        left = -errors[-1][:some].detach()
        extra = dense_codes(pre[:some, dead], min(x.shape[1] // 2, len(dead)), "topk") @ weights["decoder"][dead]
        loss = loss + (extra - left).square().sum() / some / 32
    return loss


def dense_gradients(
    weights: dict[str, Tensor], x: Tensor, y: Tensor, k: int, rule: str, *more: Any
) -> dict[str, Tensor]:
    """Gradients by autograd, the decoder's without what changes its rows' lengths."""
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in weights.items()}
    nested, dead = more or ((), None)
    found = torch.autograd.grad(dense_loss(leaves, x, y, k, rule, nested, dead), list(leaves.values()))
    gradients = dict(zip(leaves, found, strict=True))
    rows = weights["decoder"]
    gradients["decoder"] = gradients["decoder"] - (gradients["decoder"] * rows).sum(1, keepdim=True) * rows
    return gradients


def close(found: Tensor, expected: Tensor, share: float = 1e-5) -> bool:
    return bool((found - expected).norm() <= share * expected.norm())


def made(weights: dict[str, Tensor], k: int, rule: str = "topk", **options: Any) -> SparseStep:
    return SparseStep(
        **{name: tensor.clone() for name, tensor in weights.items()}, k=k, rule=rule, options=Options(**options)
    )  # type: ignore[arg-type]


def moments(step: SparseStep) -> dict[str, Tensor]:
    """The first moments by parameter; after one step a tenth of the gradients."""
    return {name.removesuffix(".first"): t for name, t in step.state().items() if name.endswith(".first")}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("size", SIZES)
def test_the_best_are_those_of_the_dense_table(size: tuple[int, int, int, int, int], rule: str, precision: str) -> None:
    weights, x, _ = world(size)
    best = best_codes(x, weights["encoder"], weights["encoder_bias"], size[4], rule=rule, precision=precision)
    expected = dense_codes(x @ weights["encoder"].T + weights["encoder_bias"], size[4], rule)
    assert torch.equal(best.codes.dense() > 0, expected > 0)
    assert torch.allclose(best.codes.dense(), expected, atol=1e-5)
    assert best.least == pytest.approx(float(expected[expected > 0].min()), abs=1e-5)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    "case", ["zeros", "one row huge", "one column huge", "equal latents", "all negative", "one row"]
)
def test_rows_that_are_hard_to_search_give_the_same(case: str, rule: str) -> None:
    weights, x, _ = world(SIZES[2])
    encoder, bias = weights["encoder"], weights["encoder_bias"]
    if case == "zeros":
        x[::2] = 0
    if case == "one row huge":
        x[3] *= 1e4
    if case == "one column huge":
        x[:, 2] *= 1e4
    if case == "equal latents":
        encoder[1:] = encoder[:1]
    if case == "all negative":
        bias -= 100
    if case == "one row":
        x = x[:1]
    best = best_codes(x, encoder, bias, 16, rule=rule, precision="int8")
    expected = dense_codes(x @ encoder.T + bias, 16, rule)
    found = best.codes.dense()
    assert torch.allclose(found.sum(1), expected.sum(1), rtol=1e-4, atol=1e-4)
    if case not in ("equal latents", "one row huge", "one column huge"):  # where rounding decides between equals
        assert torch.equal(found > 0, expected > 0)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("parts", [1, 3])
def test_gradients_are_those_of_autograd(size: tuple[int, int, int, int, int], rule: str, parts: int) -> None:
    weights, x, y = world(size)
    nested = () if parts == 1 else (size[3] // 8, size[3] // 2, size[3])
    step = made(weights, size[4], rule, nested=nested)
    report = step.step(x, y, 1e-3)
    for name, expected in dense_gradients(weights, x, y, size[4], rule, nested, None).items():
        assert close(moments(step)[name] * 10, expected), name
    whole = dense_loss(weights, x, y, size[4], rule, (), None)
    assert report.loss == pytest.approx(float(whole), rel=1e-5)
    assert report.fvu == pytest.approx(float(whole) * len(y) / float((y - y.mean(0)).square().sum()), rel=1e-4)
    codes = dense_codes(x @ weights["encoder"].T + weights["encoder_bias"], size[4], rule)
    assert torch.equal(report.fired, (codes > 0).sum(0))
    assert report.l0 == pytest.approx(float((codes > 0).sum(1).double().mean()))


def test_dead_latents_learn_from_the_error_that_is_left() -> None:
    size = SIZES[0]
    weights, x, y = world(size)
    dead = torch.tensor([3, 50, 299])
    weights["encoder_bias"][dead] = -3.0  # never among the best, yet positive for some rows when alone
    weights["encoder"][dead] *= 4
    weights["encoder"][dead, :] *= (x @ weights["encoder"][dead].T).abs().amax(0)[:, None].reciprocal() * 3.2
    step = made(weights, size[4], dead_after=len(x))
    first = step.step(x, y, 1e-3)
    alone = (first.fired == 0).nonzero()[:, 0]
    assert set(dead.tolist()) <= set(alone.tolist()) and first.dead == 0
    now, before = {name: tensor.clone() for name, tensor in step.weights().items()}, moments(step)
    assert step.step(x, y, 1e-3).dead == len(alone)
    for name, expected in dense_gradients(now, x, y, size[4], "topk", (), alone).items():
        assert close(moments(step)[name] - 0.9 * before[name], 0.1 * expected, 1e-4), name
    moved = (step.weights()["encoder"][alone] - now["encoder"][alone]).abs().sum(1)
    assert bool((moved > 0).any())


@pytest.mark.parametrize("rule", RULES)
def test_steps_are_those_of_dense_adam(rule: str) -> None:
    size = SIZES[0]
    weights, _, _ = world(size)
    step = made(weights, size[4], rule)
    dense = {name: tensor.clone() for name, tensor in weights.items()}
    adam = torch.optim.Adam(dense.values(), lr=1e-3)
    for seed in range(10):
        _, x, y = world(size, seed + 1)
        for name, gradient in dense_gradients(dense, x, y, size[4], rule).items():
            dense[name].grad = gradient
        adam.step()
        dense["decoder"] /= dense["decoder"].norm(dim=1, keepdim=True)
        step.step(x, y, 1e-3)
    for name, expected in dense.items():
        assert close(step.weights()[name] - weights[name], expected - weights[name], 0.02), name
    assert torch.allclose(step.weights()["decoder"].norm(dim=1), torch.ones(size[3]))


@pytest.mark.parametrize("rule", RULES)
def test_the_loss_falls_and_a_restored_state_goes_on_the_same(rule: str) -> None:
    size = SIZES[0]
    weights, x, _ = world(size)
    step, other = made(weights, 7, rule, dead_after=200), made(weights, 7, rule, dead_after=200)
    losses = [step.step(x, x, 3e-3).loss for _ in range(5)]
    other.restore(step.state())
    losses += [step.step(x, x, 3e-3).loss for _ in range(30)]
    again = [other.step(x, x, 3e-3).loss for _ in range(30)]
    assert losses[-1] < losses[0] / 2
    assert again == losses[5:]
    assert all(torch.equal(step.state()[name], tensor) for name, tensor in other.state().items())


def test_the_threshold_is_what_batchtopk_keeps_on_average() -> None:
    size = SIZES[2]
    weights, _, _ = world(size)
    step = made(weights, size[4], "batchtopk")
    for seed in range(5):
        _, x, _ = world(size, seed + 1)
        step.step(x, torch.zeros(len(x), size[2]), 0.0)
    x = torch.cat([world(size, seed)[1] for seed in range(10, 30)])
    fires = (x @ weights["encoder"].T + weights["encoder_bias"]) > step.threshold
    assert float(fires.sum(1).double().mean()) == pytest.approx(size[4], rel=0.1)


def test_where_few_numbers_are_far_larger_a_more_exact_search_goes_on() -> None:
    size = SIZES[2]
    weights, x, y = world(size)
    x[:, 2] *= 100
    step, other = made(weights, size[4], precision="int8"), made(weights, size[4], precision="float32")
    reports = [step.step(x, y, 0.0) for _ in range(2)]
    assert reports[0].redone > 0.1 >= reports[1].redone and step.precision == "bfloat16"
    assert torch.equal(reports[1].fired, other.step(x, y, 0.0).fired)
    other.restore(step.state())
    assert other.precision == "bfloat16"


def test_what_is_not_finite_changes_nothing() -> None:
    weights, x, y = world(SIZES[0])
    step = made(weights, 7)
    before = step.state()
    x[3, 4] = float("nan")
    with pytest.raises(InputError, match="not finite"):
        step.step(x, y, 1e-3)
    assert all(torch.equal(tensor, before[name]) for name, tensor in step.state().items())


@pytest.mark.parametrize(
    ("k", "nested", "told"), [(0, (), "k is 0"), (301, (), "k is 301"), (3, (5, 4, 300), "Nested"), (3, (5,), "Nested")]
)
def test_sizes_that_cannot_be_are_refused(k: int, nested: tuple[int, ...], told: str) -> None:
    weights, _, _ = world(SIZES[0])
    with pytest.raises(InputError, match=told):
        made(weights, k, nested=nested)


def test_the_fast_precision_is_one_of_them() -> None:
    assert fast_precision("cpu") in PRECISIONS


def dictionary(activation: str, latents: int = 700, width: int = 24) -> Dictionary:
    make = torch.Generator().manual_seed(0)
    weights = {
        "encoder": torch.randn(latents, width, generator=make) / width**0.5,
        "decoder": torch.randn(latents, width, generator=make),
        "encoder_bias": torch.randn(latents, generator=make) / 8 - 1.9,
        "center": torch.randn(width, generator=make) / 8,
    }
    extra = {name: torch.rand(latents, generator=make) for name in ("threshold", "scale", "magnitude_bias")}
    return Dictionary("made", activation, weights, 9, extra)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("per_row", ["", "standard"])
@pytest.mark.parametrize("activation", ["topk", "relu", "jumprelu", "gated"])
def test_codes_that_are_searched_are_the_dense_ones(
    activation: str, per_row: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sparse_codes, "fast_precision", lambda device: precision)
    made, rows = dictionary(activation).but(per_row=per_row), torch.randn(200, 24, generator=torch.manual_seed(1))
    dense, codes = made.encode(rows), made.codes(rows)
    assert 0 < codes.l0 < 0.05 * made.latents
    assert codes.offsets[-1] == len(codes.latents) and bool((codes.values != 0).all())
    assert float(((codes.dense() != 0) != (dense != 0)).sum()) <= 1  # rounding decides at the very edge
    assert torch.allclose(codes.dense(), dense, atol=1e-4)
    assert torch.equal(codes.latents, Codes.of(codes.dense()).latents)


def test_codes_are_not_searched_where_that_does_not_serve() -> None:
    made, rows = dictionary("relu"), torch.randn(200, 24, generator=torch.manual_seed(1))
    encoder, bias = made.weights["encoder"], made.weights["encoder_bias"]
    search = partial(sparse_codes.searched, activation="relu", k=0, extra={})
    assert search(rows, encoder, bias) is not None
    assert search(rows, encoder, bias + 3) is None  # half of all fire
    assert search(rows[:5], encoder, bias) is None
    assert search(rows, encoder[:50], bias[:50]) is None
    assert search(rows.double(), encoder.double(), bias.double()) is None
    assert search(rows.requires_grad_(), encoder, bias) is None
