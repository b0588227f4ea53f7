"""Recurrent layers opened: steps, layers, directions and gates are those of a hand computation from the weights."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from entry import scatter
from torch import Tensor, nn

import cutaway as cw
from cutaway.run.trace import Trace
from zoo import error

BATCH, STEPS, WIDTH, UNITS = 3, 4, 6, 5
Change = Callable[[str, Tensor], Tensor]
LAYERS: dict[str, tuple[type[nn.RNNBase], dict[str, Any]]] = {
    "rnn": (nn.RNN, {}),
    "rnn relu": (nn.RNN, {"nonlinearity": "relu", "num_layers": 2}),
    "rnn both ways": (nn.RNN, {"bidirectional": True, "batch_first": True}),
    "gru": (nn.GRU, {"batch_first": True}),
    "gru without bias": (nn.GRU, {"bias": False, "batch_first": True}),
    "gru two layers both ways": (nn.GRU, {"num_layers": 2, "bidirectional": True}),
    "lstm": (nn.LSTM, {}),
    "lstm without bias": (nn.LSTM, {"bias": False}),
    "lstm two layers both ways": (nn.LSTM, {"num_layers": 2, "bidirectional": True, "batch_first": True}),
    "lstm projected": (nn.LSTM, {"proj_size": 3, "batch_first": True}),
    "lstm projected two layers both ways": (nn.LSTM, {"num_layers": 2, "bidirectional": True, "proj_size": 3}),
}
every = pytest.mark.parametrize("name", LAYERS)


class Layer(nn.Module):
    """One recurrent layer that begins with a given state; returns all it makes."""

    def __init__(self, kind: type[nn.RNNBase], options: dict[str, Any]) -> None:
        super().__init__()
        self.rnn = kind(WIDTH, UNITS, **options)
        rows = self.rnn.num_layers * (1 + self.rnn.bidirectional)
        self.hidden = nn.Parameter(torch.zeros(rows, 1, options.get("proj_size") or UNITS))
        self.cell = nn.Parameter(torch.zeros(rows, 1, UNITS))

    def forward(self, x: Tensor) -> Tensor:
        batch = x.shape[0 if self.rnn.batch_first else 1]
        states = [state.expand(-1, batch, -1).contiguous() for state in (self.hidden, self.cell)]
        with warnings.catch_warnings():  # torch says that oneDNN knows no projections
            warnings.simplefilter("ignore", UserWarning)
            out: Tensor = self.rnn(x, tuple(states) if isinstance(self.rnn, nn.LSTM) else states[0])[0]
        return out


@cache
def recorded(name: str) -> tuple[Layer, Tensor, Trace]:
    torch.manual_seed(0)
    module = Layer(*LAYERS[name])
    scatter(module)
    x = torch.randn(BATCH, STEPS, WIDTH) if module.rnn.batch_first else torch.randn(STEPS, BATCH, WIDTH)
    return module, x, cw.open(module).record(x)


def by_hand(module: Layer, x: Tensor, change: Change) -> Tensor:
    """The layer's output, step by step; `change` sees every value by the name of its site, and gives it back."""
    rnn = module.rnn
    series = list(x.unbind(1 if rnn.batch_first else 0))
    for layer in range(rnn.num_layers):
        ways = []
        for way in range(1 + rnn.bidirectional):
            number = layer * (1 + rnn.bidirectional) + way
            weights = {key: value.detach() for key, value in rnn.named_parameters()}
            end = f"_l{layer}{'_reverse' if way else ''}"
            own = {key.removesuffix(end): value for key, value in weights.items() if key.endswith(end)}
            hidden, cell = (state[number].detach().expand(BATCH, -1) for state in (module.hidden, module.cell))
            made = []
            for step, given in enumerate(series[::-1] if way else series):
                at = f"@{step}" if step else ""

                def note(what: str, value: Tensor, at: str = at, number: int = number) -> Tensor:
                    block, _, part = what.partition(".")
                    return change(f"L{number}.{block}{at}.{part}", value)

                hidden, cell = one_step(rnn, own, given, hidden, cell, note)
                made.append(hidden)
            ways.append(made[::-1] if way else made)
        series = [torch.cat(both, -1) for both in zip(*ways, strict=True)]
    return torch.stack(series, 1 if rnn.batch_first else 0)


def one_step(
    rnn: nn.RNNBase, own: dict[str, Tensor], given: Tensor, hidden: Tensor, cell: Tensor, note: Change
) -> tuple[Tensor, Tensor]:
    """A step of one layer in one direction, from torch's documentation of it."""
    inside = given @ own["weight_ih"].T + own.get("bias_ih", 0)
    back = hidden @ own["weight_hh"].T + own.get("bias_hh", 0)

    def gate(name: str, before: Tensor, bend: Callable[[Tensor], Tensor]) -> Tensor:
        return note(name, bend(note(f"{name}_pre", before)))

    if isinstance(rnn, nn.GRU):
        (ir, iz, inew), (hr, hz, hnew) = inside.chunk(3, -1), back.chunk(3, -1)
        r, z = gate("rnn.r", ir + hr, torch.sigmoid), gate("rnn.z", iz + hz, torch.sigmoid)
        new = gate("rnn.n", inew + r * hnew, torch.tanh)
        return note("rnn.out", (1 - z) * new + z * note("rnn.carry", hidden)), cell
    if isinstance(rnn, nn.LSTM):
        i, f, g, o = (inside + back).chunk(4, -1)
        i, f = gate("cell.i", i, torch.sigmoid), gate("cell.f", f, torch.sigmoid)
        g, o = gate("cell.g", g, torch.tanh), gate("rnn.o", o, torch.sigmoid)
        cell = note("cell.out", f * cell + i * g)
        hidden = note("rnn.out", o * torch.tanh(cell))
        return (note("rnn.state", hidden @ own["weight_hr"].T) if "weight_hr" in own else hidden), cell
    bend = torch.relu if rnn.mode == "RNN_RELU" else torch.tanh
    return note("rnn.out", bend(note("rnn.in", inside + back))), cell


@every
def test_every_value_is_readable_and_that_of_the_hand_computation(name: str) -> None:
    module, x, trace = recorded(name)
    seen: dict[str, Tensor] = {}

    def keep(site: str, value: Tensor) -> Tensor:
        seen[site] = value
        return value

    out = by_hand(module, x, keep)
    assert error(trace.logits, out) <= 1e-6
    layers = module.rnn.num_layers * (1 + module.rnn.bidirectional)
    assert len([site for site in seen if site.endswith("rnn.out") or ".rnn@" in site and ".out" in site]) == (
        layers * STEPS
    )
    for site, want in seen.items():
        if site.startswith(tuple(f"L{number}.rnn.carry" for number in range(layers))):
            continue  # the state that the run begins with is no activation
        assert error(trace[site], want) <= 1e-6, site
        assert trace.locate(site).axes == ("batch", "state"), site


@every
def test_an_edit_of_one_unit_at_one_step_is_that_of_the_unrolled_loop(name: str) -> None:
    module, x, trace = recorded(name)
    sites: dict[str, int] = {}
    by_hand(module, x, lambda site, value: sites.setdefault(site, value.shape[-1]) and value)
    layers = module.rnn.num_layers * (1 + module.rnn.bidirectional)
    for site, units in sites.items():
        number, step = int(site[1]), int(site.partition("@")[2].partition(".")[0] or 0)
        if number not in (0, layers - 1) or step not in (1, STEPS - 1) or site.endswith(("carry", ".in")):
            continue
        unit = units - 1

        def change(at: str, value: Tensor, site: str = site, unit: int = unit) -> Tensor:
            if at != site:
                return value
            column = torch.arange(value.shape[-1]) == unit
            return torch.where(column, value * -1.5 + 0.2, value)

        want = by_hand(module, x, change)
        replayed = trace.replay(cw.apply(f"{site}[state={unit}]", lambda value: value * -1.5 + 0.2))
        assert error(replayed.logits, want) <= 1e-6, site
        assert [fired.times for fired in replayed.receipt] == [1]


@pytest.mark.parametrize("name", ["gru", "lstm", "rnn both ways"])
def test_gradients_reach_units_through_time(name: str) -> None:
    module, x, trace = recorded(name)
    site = "L0.rnn@1.out"
    delta = torch.zeros(BATCH, UNITS, requires_grad=True)
    got = torch.autograd.grad(trace.replay(cw.apply(site, delta.add)).logits.square().sum(), delta)[0]
    want = torch.autograd.grad(
        by_hand(module, x, lambda at, value: value + delta if at == site else value).square().sum(), delta
    )[0]
    assert error(got, want) <= 1e-5


@pytest.mark.parametrize("square", [False, True])
def test_axes_are_named_in_time_major_and_in_batch_first_networks(square: bool) -> None:
    length = BATCH if square else STEPS
    for first in (False, True):
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GRU(WIDTH, UNITS, batch_first=first))
        sizes = (BATCH, length) if first else (length, BATCH)
        trace = cw.open(module).record(torch.randn(*sizes, WIDTH))
        names = ("batch", "pos") if first else ("pos", "batch")
        assert trace.locate("input").axes == (*names, "neuron")
        assert trace.locate("logits").axes[:2] == names
        assert trace.locate("L0.rnn@1.z").axes == ("batch", "state")
        assert trace["input[batch=1, pos=2]"].shape == (WIDTH,)
        axis = names.index("batch")
        mean = trace.replay(cw.mean("input"))
        want = trace["input"].mean(axis, keepdim=True).expand_as(trace["input"])
        assert error(mean["input"], want) == 0
        assert error(mean.logits, module(want)[0]) <= 1e-6
        mixed = trace.replay(cw.resample("input", seed=1))["input"].movedim(axis, 0)
        rows = list(trace["input"].movedim(axis, 0))
        assert all(any(torch.equal(row, other) for other in rows) for row in mixed)


class Latches(nn.Module):
    """Says whether both `a` (token 1) and `b` (token 2) were seen: two units hold one of them each, a third needs both.

    Units 3 to 5 are noise: they read tokens and each other, and outputs 2 and 3 read them.
    """

    def __init__(self, both_ways: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(5, 5)
        self.rnn = nn.RNN(5, 6, batch_first=True, bidirectional=both_ways)
        self.readout = nn.Linear(6 * (1 + both_ways), 4)
        with torch.no_grad():
            self.embed.weight.copy_(torch.eye(5))
            self.rnn.weight_ih_l0[:3] = 0
            self.rnn.weight_hh_l0.copy_(torch.block_diag(torch.zeros(3, 3), torch.randn(3, 3)))
            for unit, token in ((0, 1), (1, 2)):
                self.rnn.weight_ih_l0[unit, token] = 8
                self.rnn.weight_hh_l0[unit, unit] = 4
            self.rnn.weight_hh_l0[2, :2] = 3
            self.rnn.bias_ih_l0[:3] = torch.tensor([-0.5, -0.5, -3.0])
            self.rnn.bias_hh_l0[:3] = 0
            self.readout.weight[:2] = 0
            self.readout.weight[2:, :3] = 0
            self.readout.weight[0, 2], self.readout.weight[1, 2] = 2, -2

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.readout(self.rnn(self.embed(tokens))[0][:, -1])
        return logits


class GatedLatches(nn.Module):
    """The same with two LSTM layers: cells of the first hold what was seen, the second's first unit needs both."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(5, 5)
        self.rnn, self.readout = nn.LSTM(5, 3, num_layers=2, batch_first=True), nn.Linear(3, 4)
        rnn = self.rnn
        with torch.no_grad():
            self.embed.weight.copy_(torch.eye(5))
            for parameter in (rnn.weight_ih_l0, rnn.weight_hh_l0, rnn.weight_ih_l1, rnn.weight_hh_l1):
                for gate in parameter.chunk(4):
                    gate[:2] = 0
                    gate[:, :2] *= parameter is rnn.weight_ih_l0
            for layer, opens in ((0, -6.0), (1, -9.0)):
                for gate, bias in zip(range(4), (opens, 8.0 if layer == 0 else -8.0, 4.0, 4.0), strict=True):
                    getattr(rnn, f"bias_ih_l{layer}")[3 * gate : 3 * gate + 2] = bias
                    getattr(rnn, f"bias_hh_l{layer}")[3 * gate : 3 * gate + 2] = 0
            rnn.weight_ih_l0[0, 1] = rnn.weight_ih_l0[1, 2] = 12  # the input gates open for the tokens
            rnn.weight_ih_l1[0, :2] = 8  # and for both latches
            self.readout.weight.copy_(torch.tensor([[4.0, 0, 0], [-4.0, 0, 0], [0, 1, 1], [0, 1, -1]]))

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.readout(self.rnn(self.embed(tokens))[0][:, -1])
        return logits


def pairs(n: int = 12, length: int = 6) -> tuple[Tensor, Tensor]:
    """Strings with one `a` and one `b` before the last token, and the same ones with one of them replaced."""
    generator = torch.Generator().manual_seed(0)
    clean = torch.randint(3, 5, (n, length), generator=generator)
    corrupted = clean.clone()
    for row in range(n):
        places = torch.randperm(length - 2, generator=generator)[:2]
        clean[row, places] = torch.tensor([1, 2])
        corrupted[row, places] = clean[row, places]
        corrupted[row, places[row % 2]] = 3
    return clean, corrupted


PLANTED = {
    "embed -> L0.rnn.u0.in", "embed -> L0.rnn.u1.in", "L0.rnn.u0 -> L0.rnn.u0.in", "L0.rnn.u1 -> L0.rnn.u1.in",
    "L0.rnn.u0 -> L0.rnn.u2.in", "L0.rnn.u1 -> L0.rnn.u2.in", "L0.rnn.u2 -> logits",
}  # fmt: skip
GATED = {
    "embed -> L0.cell.u0.i", "embed -> L0.cell.u1.i", "L0.cell.u0 -> L0.cell.u0.carry",
    "L0.cell.u1 -> L0.cell.u1.carry", "L0.cell.u0 -> L0.rnn.u0.cell", "L0.cell.u1 -> L0.rnn.u1.cell",
    "L0.rnn.u0 -> L1.cell.u0.i", "L0.rnn.u1 -> L1.cell.u0.i", "L1.cell.u0 -> L1.rnn.u0.cell", "L1.rnn.u0 -> logits",
}  # fmt: skip


@pytest.mark.parametrize(
    ("build", "planted"),
    [(Latches, PLANTED), (lambda: Latches(True), PLANTED), (GatedLatches, GATED)],
    ids=["rnn", "rnn both ways", "lstm two layers"],
)
def test_a_planted_circuit_across_time_is_found_unit_by_unit(build: Callable[[], nn.Module], planted: set[str]) -> None:
    clean, corrupted = pairs()
    net = cw.open(build())
    runs = net.record(clean), net.record(corrupted)
    gaps = [(run.logits[:, 0] - run.logits[:, 1]) for run in runs]
    assert gaps[0].min() > gaps[1].max() + 4  # it does what was planted
    found = cw.find_circuit(*runs, cw.logit_difference(0, 1))
    assert abs(1 - found.faithfulness) <= 0.1
    assert set(found.edges) == planted
