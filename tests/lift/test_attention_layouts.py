"""Attentions in other layouts and with something at their softmax, each on the smallest network that has it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import cutaway as cw
from cutaway.errors import InputError


class Attend(nn.Module):
    """Three heads of four over a stream of twelve, with `pattern` for the softmax."""

    def __init__(self, pattern: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.pattern = pattern
        self.q, self.k, self.v, self.o = (nn.Linear(12, 12) for _ in range(4))

    def heads(self, x: Tensor) -> list[Tensor]:
        return [layer(x).unflatten(-1, (3, 4)) for layer in (self.q, self.k, self.v)]

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.transpose(1, 2) for part in self.heads(x))
        assert self.pattern is not None
        return x + self.o((self.pattern(q @ k.mT) @ v).transpose(1, 2).flatten(2))


class TimeMajor(Attend):
    """[pos, batch, head, d] inside, whatever the input is."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(0, 1)
        q, k, v = self.heads(x)
        pattern = torch.einsum("ibhd,jbhd->bhij", q, k).softmax(-1)
        x = x + self.o(torch.einsum("bhij,jbhd->ibhd", pattern, v).flatten(2))
        return x.transpose(0, 1)


class KeysTurned(Attend):
    """Keys permuted to [batch, head, d, pos] at once."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.heads(x)
        pattern = (q.transpose(1, 2) @ k.permute(0, 2, 3, 1)).softmax(-1)
        return x + self.o((pattern @ v.transpose(1, 2)).transpose(1, 2).flatten(2))


class Turning(Attend):
    """Rotary embedding by complex numbers."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.heads(x)
        angles = torch.outer(torch.arange(float(x.shape[1])), torch.tensor([1, 0.1]))
        turn = torch.polar(torch.ones_like(angles), angles)[:, None]
        q, k = (
            torch.view_as_real(torch.view_as_complex(part.unflatten(-1, (2, 2))) * turn).flatten(-2) for part in (q, k)
        )
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        return x + self.o(((q @ k.mT).softmax(-1) @ v).transpose(1, 2).flatten(2))


class Image(Attend):
    """Attention over the places of an image whose channels come last."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.flatten(1, 2).transpose(1, 2) for part in self.heads(x))
        z = ((q @ k.mT).softmax(-1) @ v).transpose(1, 2).flatten(2)
        return x + self.o(z.unflatten(1, x.shape[1:3]))


class Windows(Attend):
    """Heads beside the examples on the first axis, and overlapping windows of keys on the second."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.transpose(1, 2).flatten(0, 1) for part in self.heads(x))
        q = q.unflatten(1, (2, 3))
        k, v = (part[:, [0, 1, 2, 3, 2, 3, 4, 5]].unflatten(1, (2, 4)) for part in (k, v))
        z = torch.einsum("bcxy,bcyd->bcxd", torch.einsum("bcxd,bcyd->bcxy", q, k).softmax(-1), v)
        return x + self.o(z.flatten(1, 2).unflatten(0, (-1, 3)).transpose(1, 2).flatten(2))


class Gated(Attend):
    """A gate of the stream on the pattern."""

    def __init__(self, pattern: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__(pattern)
        self.gate = nn.Linear(12, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.transpose(1, 2) for part in self.heads(x))
        pattern = (q @ k.mT).softmax(-1) * torch.sigmoid(self.gate(x))[:, None]
        return x + self.o((pattern @ v).transpose(1, 2).flatten(2))


def opened(module: nn.Module, x: Tensor) -> cw.Trace:
    """A recording in which the attention has its heads, and zeroing one does what it should."""
    made = cw.check(module, x)
    assert made.verified, str(made)
    trace = cw.open(module).record(x)
    assert {part.name: part.count for part in trace.lift().components()}["L0.attn"] == 3

    def silenced(layer: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (args[0] * (torch.arange(12) // 4 != 1),)

    parts = [part for part in module.modules() if isinstance(part, Attend)]
    handle = parts[0].o.register_forward_pre_hook(silenced)
    want = module(x)
    handle.remove()
    torch.testing.assert_close(trace.replay(cw.zero("L0.attn.h1")).logits, want)
    assert not torch.allclose(want, trace.logits)
    return trace


def network(attend: Attend) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 12), type(attend)(attend.pattern), nn.Linear(12, 5))


def compare(trace: cw.Trace, attend: Attend) -> None:
    """QK and OV of the second head against the weights."""
    q, k, v = (layer.weight[4:8] for layer in (attend.q, attend.k, attend.v))
    torch.testing.assert_close(cw.qk(trace, "L0.attn.h1").dense(), q.T @ k)
    torch.testing.assert_close(cw.ov(trace, "L0.attn.h1").dense(), v.T @ attend.o.weight[:, 4:8].T)


@pytest.mark.parametrize("batch", [2, 3, 5, 6])
def test_heads_are_told_from_examples(batch: int) -> None:
    module = network(TimeMajor())
    trace = opened(module, torch.randn(batch, 5, 12))
    assert trace.locate("L0.attn.q").axes == ("pos", "batch", "head", "neuron")
    assert trace["L0.attn.z[head=1, pos=-1]"].shape == (batch, 4)
    if batch != 5:
        compare(trace, module[1])
        return
    with pytest.raises(InputError, match="another number of examples"):  # as many as positions
        cw.qk(trace, "L0.attn")


def test_keys_may_lie_dimensions_first() -> None:
    module = network(KeysTurned())
    trace = opened(module, torch.randn(2, 5, 12))
    assert trace.locate("L0.attn.k").axes == ("batch", "head", "neuron", "pos")
    compare(trace, module[1])


def test_complex_numbers_turn_queries_and_keys() -> None:
    module = network(Turning())
    compare(opened(module, torch.randn(2, 5, 12)), module[1])


def test_channels_may_come_last_in_an_image() -> None:
    module = network(Image())
    compare(opened(module, torch.randn(2, 3, 4, 12)), module[1])


def test_overlapping_windows_have_heads_and_no_matrices() -> None:
    trace = opened(network(Windows()), torch.randn(2, 6, 12))
    assert trace.locate("L0.attn.q").axes == ("batch", "head", "window", "pos", "neuron")
    with pytest.raises(InputError, match="overlapping windows"):
        cw.qk(trace, "L0.attn")


def by_hand(scores: Tensor) -> Tensor:
    powers = (scores - scores.amax(-1, keepdim=True)).exp()
    return powers / (1 + powers.sum(-1, keepdim=True))


def renormalised(scores: Tensor) -> Tensor:
    pattern = scores.softmax(-1) + 1e-6
    return pattern / pattern.sum(-1, keepdim=True)


def sparse(scores: Tensor) -> Tensor:
    best, places = scores.topk(3, -1)
    return torch.full_like(scores, -1e9).scatter(-1, places, best).softmax(-1)


PATTERNS: dict[str, Callable[[Tensor], Tensor]] = {
    "maximum": lambda a: torch.max(a, torch.tensor(torch.finfo(a.dtype).min)).softmax(-1),
    "no nan": lambda a: torch.nan_to_num(a.softmax(-1)),
    "logarithm": lambda a: a.log_softmax(-1).exp(),
    "logsumexp": lambda a: (a - a.logsumexp(-1, keepdim=True)).exp(),
    "by hand": by_hand,
    "renormalised": renormalised,
    "sparse": sparse,
    "gate": lambda a: a.softmax(-1) * torch.sigmoid(a.mean(-1, keepdim=True)),
}


@pytest.mark.parametrize("name", PATTERNS)
def test_what_stands_at_the_softmax_hides_no_heads(name: str) -> None:
    module = network(Attend(PATTERNS[name]))
    x = torch.randn(2, 5, 12)
    trace = opened(module, x)
    compare(trace, module[1])
    pattern, values = trace["L0.attn.pattern"], trace["L0.attn.v"]
    torch.testing.assert_close(pattern @ values, trace["L0.attn.z"])


def test_a_gate_on_the_pattern_is_read() -> None:
    module = network(Gated())
    opened(module, torch.randn(2, 5, 12))
    net, x = cw.open(module), torch.randn(6, 5, 12)
    graph = cw.find_circuit(net.record(x), net.record(x + 1), cw.custom(lambda logits: logits[:, 0, 0])).graph
    edges = [graph.edge_name(*edge) for edge in graph.edges]
    assert any(edge.startswith("L0.act -> L0.attn") and edge.endswith("gate") for edge in edges)
