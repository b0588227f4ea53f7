"""Networks, tokenizers and users that would lead to wrong numbers: something says so each time."""

from __future__ import annotations

import math
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import cutaway as cw
from cutaway.errors import CutawayError, DivergenceError, InputError, SiteError


class Two(nn.Module):
    def __init__(self, between: Callable[[Tensor], Tensor] = torch.relu) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 2)
        self.between = between

    def forward(self, given: Tensor) -> Tensor:
        return self.b(self.between(self.a(given)))


def x() -> Tensor:
    torch.manual_seed(1)
    return torch.randn(3, 6)


def infinite(h: Tensor) -> Tensor:
    return (h * 0) / (h * 0) * torch.tensor([[0.0], [1.0], [1.0]]) + h


def from_the_system(h: Tensor) -> Tensor:
    return h * (1 + os.urandom(1)[0] + 256 * os.urandom(1)[0])


def other_precision(h: Tensor) -> Tensor:
    torch.set_default_dtype(torch.float64)
    return h


def from_another_program(h: Tensor) -> Tensor:
    out = subprocess.run([sys.executable, "-S", "-c", "print(2)"], capture_output=True, check=True).stdout
    return h * int(out)


def from_another_process(h: Tensor) -> Tensor:
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    process = context.Process(target=lambda: queue.put(2.0))
    process.start()
    found = queue.get()
    process.join()
    return h * found


REMEMBERED: dict[tuple[int, ...], Tensor] = {}


def from_a_stale_cache(h: Tensor) -> Tensor:
    return h + REMEMBERED.setdefault(tuple(h.shape), h.detach().clone())


HOSTILE: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "NaN in the middle": (infinite, "the output holds NaN, first made at '/div.0'"),
    "numbers from the system": (from_the_system, "output"),
    "a switch of torch": (other_precision, "default dtype changed"),
    "a number from another program": (from_another_program, "starts another process"),
    "a number from another process": (from_another_process, "starts another process"),
    "a cache outside the module": (from_a_stale_cache, "edits"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_network_is_noticed(name: str) -> None:
    assert cw.check(Two(), x()).verified
    between, says = HOSTILE[name]
    try:
        found = cw.check(Two(between), x())
    finally:
        torch.set_default_dtype(torch.float32)
        REMEMBERED.clear()
    assert not found.verified
    off = [what for what, error in found.errors.items() if error is not None and error > 1e-5]
    assert says in "\n".join([*off, *found.problems]), str(found)


def test_dropout_that_was_left_on_is_noted() -> None:
    module = nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.5), nn.Linear(6, 2))
    on, off = cw.check(module.train(), x()), cw.check(module.eval(), x())
    assert on.verified and off.verified
    assert any("training mode (eval() turns dropout off)" in note for note in on.notes)
    assert not off.notes
    assert "note: the network draws random numbers" in str(on)


def test_an_edit_to_nan_is_on_its_receipt() -> None:
    trace = cw.open(Two()).record(x())
    assert math.isnan(trace.replay(cw.apply("a", lambda value: value * math.nan)).receipt[0].change)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda trace: trace.net.record(x(), keep=3), "keep= takes .*, not 3"),
        (lambda trace: cw.check(Two(), x(), expected={"L0.mlp": 7}), "expected of 'L0.mlp' is 7"),
        (lambda trace: cw.scale("a", math.nan), "factor for 'a' is NaN"),
        (lambda trace: trace.replay(cw.apply("a", lambda value: 1 / 0)), "'a' cannot be made: .*ZeroDivisionError"),
        (lambda trace: trace.replay(cw.apply("a", lambda value: value[:1])), r"'a' gave a value of shape \(1, 6\)"),
        (lambda trace: cw.custom(lambda out: 1 / 0)(trace.logits, trace.net), "custom metric.*ZeroDivisionError"),
    ],
)
def test_bad_arguments_get_one_sentence(wrong: Callable[[cw.Trace], Any], says: str) -> None:
    with pytest.raises(CutawayError, match=says) as caught:
        wrong(cw.open(Two()).record(x()))
    assert "\n" not in str(caught.value)


def test_the_same_weights_loaded_again_are_no_change() -> None:
    module = nn.Sequential(Two(), nn.BatchNorm1d(2)).eval()
    trace = cw.open(module).record(x())
    module.load_state_dict({name: tensor.clone() for name, tensor in module.state_dict().items()})
    assert torch.equal(trace.replay(cw.scale("0.a", 1.0)).logits, trace.logits)
    assert torch.equal(trace.net.record(x()).logits, trace.logits)
    with torch.no_grad():
        module[0].a.weight.view(-1)[5] += 1  # not among the numbers that a seal looks at
    with pytest.raises(DivergenceError, match="'0.a.weight' changed"):
        trace.replay(cw.scale("0.a", 1.0))


def test_a_trace_is_shown_in_one_line() -> None:
    trace = cw.open(Two()).record(x())
    assert repr(trace) == "Trace('Two', 3 ops, inputs (3, 6))"
    live = trace.net.run_live(trace, [cw.zero("a")])
    assert repr(live) == "Trace('Two', 4 ops, inputs (3, 6); zero a; run live)"


def test_every_edit_has_a_receipt_in_its_order() -> None:
    trace = cw.open(Two()).record(x())
    edits = [cw.scale("b", 2.0), cw.zero("a[0=1]"), cw.scale("/relu.0", 0.5)]
    live = trace.net.record(x(), interventions=edits)
    for found in (trace.replay(*edits), live):
        assert [(fired.site, fired.times) for fired in found.receipt] == [("b", 1), ("a[0=1]", 1), ("/relu.0", 1)]
        assert all(fired.change > 0 for fired in found.receipt)


def test_a_receipt_says_when_an_edit_was_not_reached() -> None:
    class Skipping(Two):
        def forward(self, given: Tensor) -> Tensor:
            h = self.a(given)
            return self.b(h) if h.sum() < 1e3 else h[:, :2]

    trace = cw.open(Skipping()).record(x())
    found = trace.replay(cw.add("a", torch.full((6,), 1e3)), cw.zero("b"))
    assert found.live
    assert [fired.times for fired in found.receipt] == [1, 0]
    assert "changed nothing" in found.receipt[1].note


def test_a_site_that_matches_nothing_is_an_error_with_near_names() -> None:
    trace = cw.open(Two()).record(x())
    with pytest.raises(SiteError, match="/relu.0"):
        trace.replay(cw.zero("/relu.1"))


class Padding:
    """A tokenizer of the tokenizers library with padding on, as `enable_padding` leaves it."""

    class Encoded:
        def __init__(self, ids: list[int], mask: list[int]) -> None:
            self.ids, self.attention_mask = ids, mask

    def __init__(self, left: bool) -> None:
        self.left = left

    def encode(self, text: str) -> Any:
        ids = [1 + int(word) for word in text.split()]
        pad = [0] * (4 - len(ids))
        ones = [1] * len(ids)
        return self.Encoded([*pad, *ids] if self.left else [*ids, *pad], [*pad, *ones] if self.left else [*ones, *pad])

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(str(place - 1) for place in ids)


@pytest.mark.parametrize("left", [True, False])
def test_a_tokenizer_that_pads_is_refused(left: bool) -> None:
    net = cw.open(nn.Embedding(9, 3), tokenizer=Padding(left))
    assert net.record("1 2 3 4").logits.shape == (1, 4, 3)
    with pytest.raises(InputError, match="The tokenizer pads"):
        net.record(["1 2", "3 4"])


def test_texts_of_other_lengths_are_never_padded() -> None:
    net = cw.open(nn.Embedding(3, 2), tokenizer=["a", "b", "c"])
    with pytest.raises(InputError, match="padding would change"):
        net.record(["a b", "c"])


def test_texts_go_through_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    net = cw.open(nn.Sequential(nn.Embedding(3, 6), Two()), tokenizer=["a", "b", "c"])
    assert cw.check(net, ["a b", "c a"]).verified
    monkeypatch.setattr(net, "encode", lambda texts: torch.tensor([[0, 0, 1], [0, 2, 0]]))
    assert any("other inputs than those given" in text for text in cw.check(net, ["a b", "c a"]).problems)


def test_a_batch_gives_every_row_what_it_gets_alone() -> None:
    net, rows = cw.open(Two()), x()
    together = net.record(rows)
    edited = together.replay(cw.zero("a[1=2]"))
    for place, row in enumerate(rows):
        alone = net.record(row[None])
        torch.testing.assert_close(alone.logits[0], together.logits[place])
        torch.testing.assert_close(alone.replay(cw.zero("a[1=2]")).logits[0], edited.logits[place])


def test_a_check_is_data() -> None:
    import json

    found = cw.check(Two(), x(), expected={"input": (1, 1), "L0.mlp": (6, 1), "unembed": (2, 1)})
    record = json.loads(json.dumps(found.record(), allow_nan=False))
    assert record["ok"] and record["expected"] == record["found"]
    assert cw.check(Two(), x(), expected={"L0.mlp": (5, 1)}).record()["ok"] is False
    assert cw.check(Two(), x()).record()["expected"] is None


def test_a_network_that_cannot_be_lifted_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    net = cw.open(Two())

    def fails(trace: cw.Trace) -> Any:
        raise SiteError("nothing there\nat all")

    monkeypatch.setattr(net, "lifter", fails)
    found = cw.check(net, x())
    assert found.parity == found.replay_error == 0 and found.found is None
    assert found.problems == ("its components could not be found: nothing there",)
    assert not found.record()["ok"]
