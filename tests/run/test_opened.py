"""Opened ops: their parts are what a computation by hand gives, and nothing is opened before somebody asks."""

from __future__ import annotations

import pytest
import torch
from entry import scatter
from torch import Tensor, nn
from torch.nn import functional as F

import cutaway as cw
from cutaway.errors import SiteError
from zoo import case, error

CLOSE = 1e-6


class Attend(nn.Module):
    """SDPA as a network would call it."""

    def __init__(self, **options) -> None:
        super().__init__()
        self.options, self.mix = options, nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.mix(x), self.mix(x).flip(2), torch.tanh(x)
        return F.scaled_dot_product_attention(q, k, v, **self.options) * 1.0


MASK = torch.zeros(5, 5).masked_fill(torch.ones(5, 5).triu(2) > 0, float("-inf"))
OPTIONS = {"plain": {}, "causal": {"is_causal": True}, "scaled": {"scale": 0.3}, "masked": {"attn_mask": MASK}}


@pytest.mark.parametrize("form", OPTIONS)
def test_pattern_of_fused_attention(form: str) -> None:
    torch.manual_seed(0)
    module = Attend(**OPTIONS[form])
    x = torch.randn(3, 2, 5, 8)
    trace = cw.open(module).record(x)
    address = "/scaled_dot_product_attention.0"
    assert not trace._tapes
    q, k = module.mix(x), module.mix(x).flip(2)
    scores = q @ k.mT * OPTIONS[form].get("scale", 8**-0.5) + OPTIONS[form].get("attn_mask", 0.0)
    if form == "causal":
        scores = scores.masked_fill(torch.ones(5, 5).triu(1) > 0, float("-inf"))
    site = next(line.address for line in trace.listing(f"{address}//") if "softmax" in line.address)
    pattern = trace[site]
    assert trace._tapes
    assert error(pattern.sum(-1), torch.ones(3, 2, 5)) <= CLOSE
    assert error(pattern, scores.softmax(-1)) <= CLOSE
    uniform = torch.full_like(pattern, 0.2)
    patched = trace.replay(cw.patch(site, uniform))
    assert error(patched.logits, uniform @ torch.tanh(x)) <= CLOSE
    assert patched.receipt[0].times == 1


def test_edits_inside_have_the_gradient_of_the_written_out_form() -> None:
    torch.manual_seed(0)
    module, x = Attend(is_causal=True), torch.randn(2, 2, 5, 8)
    trace = cw.open(module).record(x)
    site = next(
        line.address for line in trace.listing("/scaled_dot_product_attention.0//") if "softmax" in line.address
    )
    delta = torch.zeros(2, 2, 5, 5, requires_grad=True)
    weight = torch.randn(2, 2, 5, 8)
    got = torch.autograd.grad((trace.replay(cw.apply(site, lambda p: p + delta)).logits * weight).sum(), delta)[0]
    assert error(got, weight @ torch.tanh(x).mT) <= CLOSE


def test_nothing_is_opened_unless_asked() -> None:
    trace = case("gpt2").net.record(*case("gpt2").args, use_cache=False)
    before = len(trace.graph.ops)
    trace.lift()
    trace.replay(cw.zero("L1.attn.h2"), cw.scale("L0.mlp.out", 0.0))
    assert not trace._tapes
    assert len(trace.graph.ops) == before
    assert trace["L0.attn.pattern"].shape == (3, 4, 7, 7)
    assert len(trace._tapes) == 1
    assert len(trace.graph.ops) == before


def test_an_op_without_an_inside_says_so() -> None:
    trace = case("mlp").trace
    with pytest.raises(SiteError, match="There is no op"):
        trace["nowhere/softmax.3//bmm.0"]
    with pytest.raises(SiteError, match="has no inside"):
        trace["/relu.0//x.0" if "/relu.0" in trace.sites() else "1/relu.0//x.0"]


def recurrent(kind: type[nn.RNNBase], **options) -> tuple[nn.Module, Tensor, cw.Trace]:
    torch.manual_seed(0)
    module = kind(4, 3, batch_first=True, **options)
    scatter(module)
    x = torch.randn(2, 6, 4)

    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.out = module, nn.Linear(3 * (1 + module.bidirectional), 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.rnn(x)[0].mean(1))

    return module, x, cw.open(Last()).record(x)


def weights(module: nn.Module, x: Tensor, h: Tensor, suffix: str = "_l0") -> tuple[Tensor, Tensor]:
    get = dict(module.named_parameters())
    inward = F.linear(x, get[f"weight_ih{suffix}"], get[f"bias_ih{suffix}"])
    return inward, F.linear(h, get[f"weight_hh{suffix}"], get[f"bias_hh{suffix}"])


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_states_of_an_rnn(nonlinearity: str) -> None:
    module, x, trace = recurrent(nn.RNN, nonlinearity=nonlinearity)
    h = torch.zeros(2, 3)
    for step in range(6):
        inward, back = weights(module, x[:, step], h)
        h = getattr(torch, nonlinearity)(inward + back)
        assert error(trace[site("L0.rnn", step, "out")], h) <= CLOSE


def test_gates_and_states_of_a_gru() -> None:
    module, x, trace = recurrent(nn.GRU)
    h = torch.zeros(2, 3)
    for step in range(6):
        inward, back = weights(module, x[:, step], h)
        (ir, iz, inew), (hr, hz, hnew) = inward.chunk(3, 1), back.chunk(3, 1)
        assert error(trace[site("L0.rnn", step, "r_pre")], ir + hr) <= CLOSE
        assert error(trace[site("L0.rnn", step, "z_pre")], iz + hz) <= CLOSE
        r, z = torch.sigmoid(ir + hr), torch.sigmoid(iz + hz)
        assert error(trace[site("L0.rnn", step, "r")], r) <= CLOSE
        assert error(trace[site("L0.rnn", step, "z")], z) <= CLOSE
        before, h = h, (1 - z) * torch.tanh(inew + r * hnew) + z * h
        assert error(trace[site("L0.rnn", step, "out")], h) <= CLOSE
        if step:
            assert error(trace[site("L0.rnn", step, "carry")], before) <= CLOSE
    rows = {part.name: part for part in trace.lift().components()}
    assert set(rows["L0.rnn"].reads) == {"r", "z", "n", "carry"}


def test_gates_cells_and_states_of_an_lstm() -> None:
    module, x, trace = recurrent(nn.LSTM)
    h = c = torch.zeros(2, 3)
    for step in range(6):
        inward, back = weights(module, x[:, step], h)
        i, f, g, o = (inward + back).chunk(4, 1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        wanted = {"cell.i": torch.sigmoid(i), "cell.f": torch.sigmoid(f), "cell.g": torch.tanh(g), "cell.g_pre": g}
        wanted |= {"cell.out": c, "rnn.o": torch.sigmoid(o), "rnn.o_pre": o, "rnn.out": h}
        for name, want in wanted.items():
            part, port = name.split(".")
            assert error(trace[site(f"L0.{part}", step, port)], want) <= CLOSE, (step, name)


def test_a_state_edited_at_one_step_changes_what_follows() -> None:
    module, x, trace = recurrent(nn.GRU)
    edited = trace.replay(cw.zero("L0.rnn@2.u1"))
    assert torch.equal(edited["L0.rnn@1.out"], trace["L0.rnn@1.out"])
    h = trace["L0.rnn@2.out"].clone()
    h[:, 1] = 0
    for step in range(3, 6):
        h = module(x[:, step : step + 1], h[None])[1][0]
        assert error(edited[site("L0.rnn", step, "out")], h) <= CLOSE


def test_both_directions_and_layers() -> None:
    module, x, trace = recurrent(nn.GRU, num_layers=2, bidirectional=True)
    out = module(x)[0]
    states = {
        name: torch.stack([trace[site(name, step, "out")] for step in range(6)], 1) for name in ("L2.rnn", "L3.rnn")
    }
    assert error(states["L2.rnn"], out[..., :3]) <= CLOSE
    assert error(states["L3.rnn"].flip(1), out[..., 3:]) <= CLOSE


def site(block: str, step: int, port: str) -> str:
    return f"{block}@{step}.{port}" if step else f"{block}.{port}"
