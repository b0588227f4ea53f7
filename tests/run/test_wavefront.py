"""On every network of the zoo: worlds carried together are what each is by itself."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cutaway.run.replay import execute, plan
from cutaway.run.sizes import Size, Unfit, sizes
from cutaway.run.trials import wavefront
from cutaway.run.wavefront import Patch, Wavefront
from zoo import ZOO, case

every = pytest.mark.parametrize("name", ZOO)
TRANSFORMERS = ["gpt2", "llama", "gpt-neox", "gemma2", "falcon", "bert"]


def spread(name: str, count: int = 3) -> tuple[list[int], int]:
    """Values spread over the run that lead to the output, and the output."""
    trace = case(name).trace
    graph = trace.graph
    target = next(value for value in graph.outputs if trace.tape.kept.get(value) is not None)
    above, waiting = set(), [target]
    while waiting:
        value = waiting.pop()
        if value not in above:
            above.add(value)
            if graph.values[value].op >= 0:
                waiting += graph.ops[graph.values[value].op].inputs
    driven = graph.cone(set(graph.inputs))
    good = [v for v in sorted(above & driven) if v != target and graph.values[v].dtype == "float32"]
    good = [v for v in good if graph.values[v].op >= 0 and bool(trace[graph.site(v)].isfinite().all())]
    return good[:: max(len(good) // count, 1)][:count], target


def front_of(name: str, position: int | None = None) -> tuple[Wavefront, list[int]]:
    found, target = spread(name)
    trace = case(name).trace
    try:
        return trace.wavefront(found, target, position, ())[0], found
    except Unfit as reason:
        pytest.skip(f"not carried together: {reason}")


def alone(front: Wavefront, patch: Patch) -> Tensor:
    steps = plan(front.tape, [], [front.target], [patch.value])
    return execute(front.tape, steps, given={patch.value: patch.new})[front.target]


def close(got: Tensor, want: Tensor) -> bool:
    finite = want[want.isfinite()]
    scale = finite.abs().max().item() if finite.numel() else 1.0
    return torch.allclose(got.float(), want.float(), rtol=0, atol=1e-5 * (scale or 1.0), equal_nan=True)


@every
@torch.no_grad()
def test_worlds_together_are_worlds_alone(name: str) -> None:
    front, found = front_of(name)
    patches = []
    for number, value in enumerate(found * 2):
        clean = front.clean(value, (0, front.sizes.length), 1)
        noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(number))
        patches.append(Patch(value, clean + noise))
    for got, patch in zip(front.run(patches), patches, strict=True):
        assert close(got, alone(front, patch))


@pytest.mark.parametrize("position", [-1, None])
@every
@torch.no_grad()
def test_positions_before_the_first_that_differs_are_left_out(name: str, position: int | None) -> None:
    front, found = front_of(name, position)
    length = front.sizes.length
    if length < 3:
        pytest.skip("no positions")
    start, patches = length // 2, []
    for number, value in enumerate(found):
        lay = front.sizes.lays[value]
        if not lay.by_position or lay.pos == lay.batch:
            continue
        new = front.clean(value, (0, length), 1).clone()
        late = new.narrow(lay.pos, start, length - start)
        late += torch.randn(late.shape, generator=torch.Generator().manual_seed(number))
        patches.append(Patch(value, new, start))
    if not patches:
        pytest.skip("no value has positions")
    lay = front.sizes.lays[front.target]
    for got, patch in zip(front.run(patches), patches, strict=True):
        want = alone(front, patch)
        if front.alone:
            want = want.narrow(lay.pos, length - 1, 1)
        assert close(got, want)


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_what_is_cut_is_what_can_be(name: str) -> None:
    front, _ = front_of(name, -1)
    graph = front.tape.graph
    names = {index: graph.ops[index].name for index in front.ops}
    assert any(names[index] in ("linear", "addmm") for index in front.by_position)
    mixing = {"scaled_dot_product_attention", "softmax"} & set(names.values())
    assert not any(names[index] in mixing for index in front.by_position)
    attention = [index for index, what in names.items() if what == "scaled_dot_product_attention"]
    causal = all(value in front.causal for index in attention for value in graph.ops[index].outputs)
    assert causal == (name != "bert") or not attention


def test_most_networks_are_carried_together() -> None:
    fits = []
    for name in ZOO:
        found, target = spread(name)
        trace = case(name).trace
        try:
            trace.wavefront(found, target, None, ())
            fits.append(name)
        except Unfit:
            continue
    assert len(fits) > 0.6 * len(ZOO), sorted(set(ZOO) - set(fits))


def test_a_size_is_told_from_a_number_that_happens_to_be_equal() -> None:
    trace = case("gpt2").trace
    found = sizes(trace, lambda run: run.tape)
    view = trace.graph.find("transformer.h.0.attn/view.0")[0]
    template = found.args[trace.graph.values[view].op]
    assert template is not None
    shape = template[0][1]
    assert shape[:2] == (Size(True, False), Size(False, True))
    assert all(isinstance(size, int) for size in shape[2:])


def test_a_network_that_mixes_examples_is_not_carried_together() -> None:
    trace = case("resnet training").trace
    found, target = spread("resnet training")
    with pytest.raises(Unfit):
        wavefront(trace.tape, sizes(trace, lambda run: run.tape), found, target)
