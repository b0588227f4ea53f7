"""Receipts, keep-policies, divergence, changed weights, and what edits do together."""

from __future__ import annotations

import pytest
import torch
from entry import scatter
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import cutaway as cw
from cutaway.errors import DivergenceError, InputError, SiteError
from cutaway.run.interventions import put, take
from zoo import ZOO, case, error


def fresh(name: str) -> tuple[nn.Module, cw.Network, cw.Trace]:
    module, args, kwargs = ZOO[name].make()
    net = cw.open(module)
    return module, net, net.record(*args, **kwargs)


# ---- receipts and sites


def test_receipts_say_what_fired_and_by_how_much() -> None:
    trace = case("mlp").trace
    both = trace.replay(cw.zero("L0.mlp.n3"), cw.add("L1.mlp.out", torch.full((8,), 2.0)))
    assert [(fired.site, fired.kind, fired.times) for fired in both.receipt] == [
        ("L0.mlp.out[neuron=3]", "zero", 1), ("L1.mlp.out", "add", 1),
    ]  # fmt: skip
    assert both.receipt[0].change == pytest.approx(trace["L0.mlp.n3"].abs().max().item())
    assert both.receipt[1].change == pytest.approx(2.0)


def test_an_edit_that_cannot_reach_the_target_says_so() -> None:
    trace = case("mlp").trace
    part = trace.replay(cw.zero("L1.mlp.out"), until=["L0.mlp.out"])
    assert part.receipt[0].times == 0
    assert "does not reach" in part.receipt[0].note
    assert torch.equal(part.output[0], trace["L0.mlp.out"])


@pytest.mark.parametrize(
    "site", ["L9.mlp.out", "nowhere", "L0.mlp.out[head=1]", "L0.mlp.n10", "0[neuron=-11]", "0[1=50:60]"]
)
def test_a_site_that_matches_nothing_is_an_error_everywhere(site: str) -> None:
    found = case("mlp")
    for use in (
        lambda: found.trace[site],
        lambda: found.trace.replay(cw.zero(site)),
        lambda: found.net.record(*found.args, interventions=[cw.zero(site)]),
        lambda: found.trace.replay(until=[site]),
    ):
        with pytest.raises(SiteError):
            use()


def test_edits_add_up_and_the_order_is_that_of_a_run() -> None:
    found = case("tied")
    after, before = cw.add("down", torch.ones(8)), cw.scale("down/linear.0", 3.0)
    chained = found.trace.replay(before).replay(after)
    together = found.trace.replay(before, after)
    swapped = found.trace.replay(after, before)
    live = found.net.record(*found.args, interventions=[after, before])
    assert torch.equal(chained.logits, together.logits)
    assert error(live.logits, together.logits) <= 1e-6
    assert error(swapped.logits, together.logits) <= 1e-6
    assert torch.equal(together["down"], found.trace["down"] * 3 + 1)
    assert len(chained.interventions) == 2


def test_until_gives_the_parts_asked_for() -> None:
    trace = case("gpt2").trace
    got = trace.replay(cw.zero("L0.attn.h1"), until=["L1.attn.z[head=2]", "logits[pos=-1]", "L1.attn.pattern"])
    full = trace.replay(cw.zero("L0.attn.h1"))
    for value, site in zip(got.output, ["L1.attn.z[head=2]", "logits[pos=-1]", "L1.attn.pattern"], strict=True):
        assert error(value, full[site]) <= 1e-6, site


# ---- edits and their arguments


def test_resampling_takes_other_rows() -> None:
    trace = case("mlp").trace
    value, drawn = trace["L0.mlp.out"], trace.replay(cw.resample("L0.mlp.out", seed=1))["L0.mlp.out"]
    rows = [int((value == row).all(1).nonzero()[0, 0]) for row in drawn]
    assert all(row != place for place, row in enumerate(rows))
    single = case("mlp").net.record(torch.randn(1, 6))
    with pytest.raises(InputError, match="no other row"):
        single.replay(cw.resample("L0.mlp.out"))
    pool = case("mlp").net.record(torch.randn(50, 6))
    seen = {tuple(single.replay(cw.resample("L0.mlp.out", pool, seed=s))["L0.mlp.out"][0].tolist()) for s in range(60)}
    assert len(seen) > 25
    assert seen <= {tuple(row) for row in pool["L0.mlp.out"].tolist()}


def test_arguments_that_do_not_fit() -> None:
    trace = case("mlp").trace
    other = case("mlp").net.record(torch.randn(5, 6))
    for edit in (
        cw.patch("L0.mlp.out", torch.zeros(4, 7)),
        cw.patch("L0.mlp.out", other),
        cw.add("L0.mlp.out", torch.zeros(9)),
        cw.project_out("L0.mlp.out", torch.zeros(10)),
        cw.project_out("L0.mlp.out", torch.ones(4)),
        cw.apply("L0.mlp.out", lambda value: torch.zeros(2, 2)),
    ):
        with pytest.raises(InputError):
            trace.replay(edit)


def test_projecting_out_dependent_directions_removes_only_their_span() -> None:
    trace = case("mlp").trace
    direction = torch.randn(10)
    one = trace.replay(cw.project_out("L0.mlp.out", direction))["L0.mlp.out"]
    two = trace.replay(cw.project_out("L0.mlp.out", torch.stack([direction, 2 * direction])))["L0.mlp.out"]
    assert error(two, one) <= 1e-5
    assert (one @ direction).abs().max() <= 1e-5


VALUES = st.lists(st.integers(1, 4), min_size=1, max_size=4)


@given(VALUES, st.data())
@settings(deadline=None, max_examples=60)
def test_put_puts_back_what_take_took(shape: list[int], data: st.DataObject) -> None:
    value = torch.arange(torch.Size(shape).numel(), dtype=torch.float32).view(shape)
    where = []
    for size in shape:
        number = st.integers(-size, size - 1)
        few = st.lists(st.integers(0, size - 1), min_size=1, max_size=size, unique=True).map(tuple)
        ends = st.tuples(st.integers(0, size - 1), st.integers(1, size))
        cut = ends.map(lambda pair: slice(min(pair), max(max(pair), min(pair) + 1)))
        where.append(data.draw(st.one_of(st.just(slice(None)), number, few, cut)))
    part = take(value, tuple(where), keep=True)
    assert torch.equal(put(value, tuple(where), part), value)
    assert torch.equal(take(value, tuple(where)).flatten(), part.flatten())
    index = tuple(
        [item] if isinstance(item, int) else list(item) if isinstance(item, tuple) else item for item in where
    )
    expected = value.clone()
    axes = [torch.arange(size)[item].flatten() for size, item in zip(shape, index, strict=True)]
    for place in torch.cartesian_prod(*axes).view(-1, len(shape)):
        expected[tuple(place)] = -1
    assert torch.equal(put(value, tuple(where), torch.full_like(part, -1.0)), expected)


# ---- what is kept


def test_keep_policies_keep_what_they_say() -> None:
    found = case("gpt2 eager")
    kept = found.net.record(*found.args, keep=["*softmax*", "L1.mlp.out", "transformer.h.0/add.*"], use_cache=False)
    sites = {kept.graph.site(value) for value in kept.tape.kept if value not in kept.graph.outputs}
    named = {kept.locate("L1.mlp.out").address}
    softmaxes = {f"transformer.h.{layer}.attn/softmax.0" for layer in (0, 1)}
    assert sites - named == softmaxes | {"transformer.h.0/add.0", "transformer.h.0/add.1"}
    assert named <= sites
    assert torch.equal(kept["L1.attn.z"], found.trace["L1.attn.z"])
    for nothing in ("nothing/here.0", "*nothing*"):
        with pytest.raises(SiteError, match="No site"):
            found.net.record(*found.args, keep=[nothing], use_cache=False)


# ---- divergence


def test_another_branch_is_run_live_and_says_so() -> None:
    module, net, trace = fresh("branching")
    args = trace.args
    same = trace.replay(cw.scale("a", 0.9))
    assert not same.live
    edit = cw.add("a", torch.full((6,), -1e3))
    moved = trace.replay(edit, cw.scale("a/linear.0", 1.0))
    turned = trace.replay(cw.apply("/tanh.0", lambda value: value - 9))
    assert turned.live
    assert not trace.live
    h = torch.tanh(module.a(args[0])) - 9 + 3
    assert error(turned.logits, module.c(h.abs()) * 5) <= 1e-6
    assert [fired.times for fired in turned.receipt] == [1]
    again = turned.replay(cw.scale("c", 2.0))
    assert again.live
    assert error(again.logits, turned.logits * 2) <= 1e-6
    assert torch.equal(turned["c"] * 5, turned.logits)
    part = trace.replay(cw.apply("/tanh.0", lambda value: value - 9), until=["a"])
    assert torch.equal(part.output[0], trace["a"])
    assert moved.logits.shape == trace.logits.shape


def test_a_value_read_as_a_number_guards_the_replay() -> None:
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x)
            return self.b(h) * h.max().item() + sum(h[0].tolist())

    module = Reads()
    x = torch.randn(3, 6)
    trace = cw.open(module).record(x)
    edited = trace.replay(cw.scale("a", 2.0))
    h = module.a(x) * 2
    assert edited.live
    assert error(edited.logits, module.b(h) * h.max().item() + sum(h[0].tolist())) <= 1e-6


# ---- weights


def test_changed_weights_are_noticed() -> None:
    def optimiser(module: nn.Module) -> None:
        with torch.no_grad():
            module.up.weight.add_(0.1)

    def data(module: nn.Module) -> None:
        module.up.weight.data.mul_(2)

    def replaced(module: nn.Module) -> None:
        module.up.weight = nn.Parameter(torch.randn(16, 8))

    def loaded(module: nn.Module) -> None:
        module.load_state_dict({name: value + 1 for name, value in module.state_dict().items()})

    for change in (optimiser, data, replaced, loaded):
        module, net, trace = fresh("tied")
        lean = net.record(*trace.args, keep="none")
        change(module)
        for use in (
            lambda trace=trace: trace.replay(cw.zero("L0.mlp.out")),
            lambda lean=lean: lean["L0.mlp.out"],
            lambda net=net, trace=trace: net.record(*trace.args),
        ):
            with pytest.raises(DivergenceError, match="changed since"):
                use()
        again = cw.open(module).record(*trace.args)
        assert torch.equal(again.logits, module(*trace.args))


def test_changed_buffers_are_noticed() -> None:
    module, _, trace = fresh("resnet")
    trace.replay(cw.scale("block1", 2.0))
    module.block2.bn1.running_mean.add_(1)
    with pytest.raises(DivergenceError, match="running_mean"):
        trace.replay(cw.scale("block1", 2.0))


def test_running_the_network_that_writes_buffers_does_not_spoil_its_traces() -> None:
    module, net, trace = fresh("stateful")
    want = trace.replay(cw.scale("a", 0.5)).logits
    module(*trace.args)
    assert torch.equal(trace.replay(cw.scale("a", 0.5)).logits, want)


# ---- odd corners


def test_several_outputs_of_one_op_are_edited_live_too() -> None:
    class Split(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = nn.Linear(6, 9)

        def forward(self, x: Tensor) -> Tensor:
            a, b, c = self.mix(x).chunk(3, 1)
            return a * b + c

    net = cw.open(Split())
    x = torch.randn(4, 6)
    trace = net.record(x)
    for port in range(3):
        edit = cw.scale(f"/chunk.0:{port}", 0.5)
        live, replayed = net.record(x, interventions=[edit]), trace.replay(edit)
        assert live.receipt[0].times == replayed.receipt[0].times == 1
        assert error(live.logits, replayed.logits) <= 1e-6
        assert error(replayed.logits, trace.logits) > 1e-3


def test_a_patch_is_not_written_into_by_what_follows() -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.relu = nn.Linear(6, 6), nn.ReLU(inplace=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.relu(self.a(x)) * 2

    net = cw.open(InPlace())
    trace, source = net.record(torch.randn(2, 6)), torch.randn(2, 6)
    kept = source.clone()
    for run in (trace.replay(cw.patch("a", source)), net.record(*trace.args, interventions=[cw.patch("a", source)])):
        assert torch.equal(run.logits, kept.relu() * 2)
        assert torch.equal(source, kept)


def test_work_in_another_thread_is_noted() -> None:
    import threading

    class Threaded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            h, found = self.a(x), []
            worker = threading.Thread(target=lambda: found.append(torch.tanh(h)))
            worker.start()
            worker.join()
            return self.b(found[0])

    trace = cw.open(Threaded()).record(torch.randn(3, 6))
    assert any("made by no recorded call" in problem for problem in trace.tape.problems)


def test_views_of_every_layout_follow_a_write() -> None:
    class Layouts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Conv2d(3, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x).to(memory_format=torch.channels_last) * 1
            wide, rows = y.permute(0, 2, 3, 1), y[:, :, 1]
            wide[..., 0] += 1
            rows.mul_(2)
            return y.sum((2, 3)) + wide[:, 0, 0] + rows.sum(2)

    module = Layouts()
    scatter(module)
    x = torch.randn(2, 3, 4, 4)
    net = cw.open(module)
    trace = net.record(x)
    assert torch.equal(trace.logits, module(x))
    assert not trace.tape.problems
    delta = torch.zeros(2, 4, 4, 4, requires_grad=True)
    weight = torch.randn(2, 4)
    handle = module.a.register_forward_hook(lambda mod, args, out: out + delta)
    want = torch.autograd.grad((module(x) * weight).sum(), delta)[0]
    handle.remove()
    replayed = trace.replay(cw.apply("a", lambda value: value + delta))
    assert error(torch.autograd.grad((replayed.logits * weight).sum(), delta)[0], want) <= 1e-6


def test_folded_heads_and_positions_have_axes_of_their_own() -> None:
    bloom, opt = case("bloom").trace, case("opt").trace
    z = bloom["L0.attn.z"]
    assert bloom.graph.values[bloom.graph.find(bloom.locate("L0.attn.z").address)[0]].shape == (12, 7, 8)
    assert z.shape == (3, 4, 7, 8)
    averaged = bloom.replay(cw.mean("L0.attn.z"))["L0.attn.z"]
    assert error(averaged, z.mean(0, keepdim=True).expand_as(z)) <= 1e-6
    silent = bloom.replay(cw.zero("L0.attn.h2.z[batch=1]"))["L0.attn.z"]
    assert not silent[1, 2].any()
    assert int((silent != z).any(-1).sum()) == 7
    assert opt["L0.mlp.out"].shape == (3, 7, 48)
    last = opt.replay(cw.zero("L0.mlp.out[pos=-1]"))["L0.mlp.out"]
    assert torch.equal(last[:, :-1], opt["L0.mlp.out"][:, :-1])
    assert not last[:, -1].any()


def test_a_sweep_over_folded_sites_patches_the_places_that_it_says() -> None:
    from cutaway.attribution.sweep import patch_sweep

    found = case("bloom")
    other = found.net.record(*found.other()[0], use_cache=False)
    metric = cw.logit_difference(1, 2)
    swept = patch_sweep(found.trace, other, metric, ["L0.attn.z"], axis="head")
    for head in range(4):
        site = f"L0.attn.z[head={head}]"
        want = metric(found.trace.replay(cw.patch(site, other)).logits, found.net)
        assert error(swept.metric[0, head], want) <= 1e-5
