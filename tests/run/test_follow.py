"""A second recording follows the first one's graph, and gives it up as soon as the network does something else."""

from __future__ import annotations

import random
import warnings

import numpy
import pytest
import torch
from torch import Tensor, nn

import cutaway as cw
from cutaway.run.follow import form
from zoo import ZOO, case, error

every = pytest.mark.parametrize("name", ZOO)


def certain(trace: cw.Trace) -> list[int]:
    """Kept values that are not views or parts of memory that nobody had written to."""
    graph = trace.graph
    blank = graph.cone({value for op in graph.ops if "empty" in op.name for value in op.outputs})
    return [value for value in trace.tape.kept if value not in blank and graph.values[value].op >= 0]


class Switched(nn.Module):
    """A network whose path depends on a function, an object, a number or the input."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.second = nn.Linear(6, 4)
        self.register_buffer("total", torch.zeros(6))
        self.act = torch.tanh
        self.options = type("Options", (), {})()
        self.options.write = False
        self.by_sign = False

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.first(x))
        if self.options.write:
            self.total += x.sum(0)
        if self.by_sign and x.sum() > 0:
            x = -x
        return self.second(x)


def opened() -> tuple[Switched, cw.Network, Tensor]:
    torch.manual_seed(0)
    module = Switched()
    x = torch.randn(3, 6)
    net = cw.open(module)
    net.record(x)
    return module, net, x


@every
def test_the_second_recording_is_the_first(name: str) -> None:
    found = case(name)
    key = form(*found.inputs())
    torch.manual_seed(3)
    args, kwargs = found.inputs()
    again = found.net.record(*args, **kwargs)
    if key in found.net._guides:
        assert again.graph is found.net._guides[key].tape.graph
    assert again.tape.kept.keys() == found.trace.tape.kept.keys()
    for value in certain(again):
        ours, want = again.tape.kept[value], found.trace.tape.kept[value]
        assert torch.equal(torch.nan_to_num(ours), torch.nan_to_num(want)), again.graph.site(value)


@every
def test_other_inputs_of_the_same_form_are_recorded_as_a_new_network_would(name: str) -> None:
    found = case(name)
    args, kwargs = found.other()
    torch.manual_seed(3)
    again = found.net.record(*args, **kwargs)
    module = found.entry.make()[0]
    args, kwargs = found.other()
    torch.manual_seed(3)
    anew = cw.open(module).record(*args, **kwargs)
    assert [again.graph.address(op) for op in again.graph.ops] == [anew.graph.address(op) for op in anew.graph.ops]
    for value in certain(anew):
        site = anew.graph.site(value)
        ours = again.tape.kept[again.graph.addresses[site]]
        assert torch.equal(torch.nan_to_num(ours), torch.nan_to_num(anew.tape.kept[value])), site


@every
def test_one_site_kept_is_that_site(name: str) -> None:
    found = case(name)
    made = certain(found.trace)
    value = made[len(made) // 2]
    site = found.trace.graph.site(value)
    torch.manual_seed(3)
    args, kwargs = found.inputs()
    lean = found.net.record(*args, keep=[site], **kwargs)
    value = lean.graph.addresses[site]
    assert value in lean.tape.kept
    assert set(lean.tape.kept) <= {value, *lean.graph.outputs, *lean.tape.inner}
    assert torch.equal(torch.nan_to_num(lean[site]), torch.nan_to_num(found.trace[site]))
    assert error(lean.logits, found.trace.logits) == 0.0


def test_most_networks_of_the_zoo_are_followed() -> None:
    followed = [name for name in ZOO if form(*case(name).inputs()) in case(name).net._guides]
    assert len(followed) > len(ZOO) // 2


def test_another_function_is_noticed() -> None:
    module, net, x = opened()
    module.act = torch.sigmoid
    trace = net.record(x)
    assert "/sigmoid.0" in trace.graph.addresses
    assert torch.equal(trace.logits, module(x))


@pytest.mark.parametrize("keep", ["all", "none", "first/linear.0"])
def test_a_change_inside_an_object_is_noticed_and_its_writes_are_undone(keep: str) -> None:
    module, net, x = opened()
    module.options.write = True
    trace = net.record(x, keep=keep)
    assert "/add_.0" in trace.graph.addresses
    assert not module.total.any()


@pytest.mark.parametrize("keep", ["all", "none", "first/linear.0"])
def test_a_branch_that_the_input_decides_is_noticed(keep: str) -> None:
    torch.manual_seed(0)
    module = Switched()
    module.by_sign = True
    net = cw.open(module)
    x = torch.randn(3, 6)
    lengths = {len(net.record(sign * x, keep=keep).graph.ops) for sign in (1.0, -1.0, 1.0)}
    assert len(lengths) == 2
    for sign in (1.0, -1.0):
        trace = net.record(sign * x, keep=keep)
        assert torch.equal(trace.logits, module(sign * x))
        assert torch.equal(trace["second"], module(sign * x))


def test_a_write_that_nobody_expected_is_undone() -> None:
    module, net, x = opened()
    calls = []

    def act(value: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) > 1:
            module.total.add_(1)
        return torch.tanh(value)

    module.act = act
    net.record(x)
    trace = net.record(x)
    assert not module.total.any()
    assert "/add_.0" in trace.graph.addresses


def test_an_error_on_the_way_is_told_as_ever_and_leaves_nothing() -> None:
    module, net, x = opened()
    calls = []

    def act(value: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) > 1:
            raise ValueError("no more")
        return torch.tanh(value)

    module.act = act
    net.record(x)
    for keep in ("all", "none", "first/linear.0"):
        with pytest.raises(cw.CutawayError, match="ValueError: no more"):
            net.record(x, keep=keep)
    assert not module.first._forward_hooks
    assert torch.backends.mha.get_fastpath_enabled()
    assert not torch.overrides._get_current_function_mode_stack()


def test_values_that_were_not_kept_are_made_again_from_this_run() -> None:
    module, net, x = opened()
    net.record(x, keep=["first/linear.0"])
    other = torch.randn(3, 6)
    lean = net.record(other, keep=["first/linear.0"])
    assert torch.equal(lean["first/linear.0"], module.first(other))
    assert torch.equal(lean["/tanh.0"], torch.tanh(module.first(other)))
    edited = lean.replay(cw.zero("/tanh.0"))
    assert torch.equal(edited.logits, module.second.bias.expand(3, 4))


SETTING = {"number": 1.0}
READS = {
    "a factor": lambda h: h * SETTING["number"],
    "a limit by keyword": lambda h: h.clamp(max=SETTING["number"]),
    "an axis": lambda h: h.flip(0 if SETTING["number"] == 1 else 1),
    "a slice": lambda h: h[:, : int(2 + SETTING["number"])].sum(1, keepdim=True) + h,
    "another function": lambda h: h.sin() if SETTING["number"] == 1 else h.cos(),
    "a dtype": lambda h: h.to(torch.float64 if SETTING["number"] == 1 else torch.float16).float(),
    "python's generator": lambda h: h * random.random(),
    "numpy's generator": lambda h: h * float(numpy.random.rand()),
}


@pytest.mark.parametrize("keep", ["all", "none", "first/linear.0"])
@pytest.mark.parametrize("what", READS)
def test_what_python_gives_to_calls_is_noticed(what: str, keep: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, net, x = opened()
    module.act = READS[what]
    net.record(x)
    monkeypatch.setitem(SETTING, "number", 2.0)
    random.seed(7), numpy.random.seed(7)
    trace = net.record(x, keep=keep)
    with torch.no_grad():
        want = module(x)
    random.seed(7), numpy.random.seed(7)
    torch.testing.assert_close(trace.logits, want, rtol=0, atol=0)
    with torch.no_grad():
        edited = module.second(READS[what](2 * module.first(x)))
    torch.testing.assert_close(trace.replay(cw.scale("first", 2.0)).logits, edited, rtol=0, atol=1e-6)


def test_a_graph_that_no_longer_holds_is_said_to() -> None:
    module, net, x = opened()
    module.act = READS["a factor"]
    net.record(x)
    SETTING["number"] = 2.0
    lean = net.record(x, keep="none")
    SETTING["number"] = 3.0
    try:
        with pytest.raises(cw.errors.DivergenceError, match="does something else now"):
            lean.replay(cw.scale("first", 2.0))
    finally:
        SETTING["number"] = 1.0


def test_a_compressed_sparse_input_is_recorded_and_looked_through_for_nan() -> None:
    class Neighbours(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, adjacency: Tensor, x: Tensor) -> Tensor:
            return self.layer(adjacency @ x)

    net, x = cw.open(Neighbours()), torch.randn(3, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls the layout a beta
        adjacency = torch.eye(3).to_sparse_csr()
        spoilt = torch.sparse_csr_tensor([0, 1, 2, 3], [0, 1, 2], [1.0, float("nan"), 1.0], (3, 3))
    for _ in range(2):
        assert torch.equal(net.record(adjacency, x).logits, net.module(adjacency, x))
    with pytest.raises(cw.errors.InputError, match="holds NaN"):
        net.record(spoilt, x)
