"""What a user does with values, inputs and edits must not change what was recorded, nor pass in silence."""

import math

import pytest
import torch
from torch import nn

import cutaway as cw
from cutaway import organisms
from cutaway.errors import InputError, ModelError, SiteError


@pytest.fixture
def trace() -> cw.Trace:
    return cw.open("induction").record(organisms.load("induction").pairs(3, seed=0).clean)


def test_writing_into_what_was_read_or_edited_changes_nothing(trace: cw.Trace) -> None:
    before = trace["L0.attn.z"]
    trace["L0.attn.z"].zero_()
    edited = trace.replay(cw.apply("L0.attn.z", lambda value: value.zero_()))
    assert edited.receipt[0].change > 0
    torch.testing.assert_close(edited.logits, trace.replay(cw.zero("L0.attn.z")).logits)
    assert torch.equal(trace["L0.attn.z"], before)


def test_writing_into_an_input_afterwards_changes_nothing() -> None:
    module, inputs = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.randn(2, 3)
    trace = cw.open(module).record(inputs, keep="none")
    inputs.zero_()
    torch.testing.assert_close(trace.replay(cw.scale("0", 1.0)).logits, trace.logits)


def test_a_tensor_given_as_the_mean_is_used(trace: cw.Trace) -> None:
    edited = trace.replay(cw.mean("L0.attn.h0", torch.full((16,), 2.0)), until="L0.attn.h0")
    assert bool((edited.output[0] == 2).all())


def test_a_change_to_nan_is_on_the_receipt(trace: cw.Trace) -> None:
    assert math.isnan(trace.replay(cw.apply("L0.attn.h0", lambda value: value * math.nan)).receipt[0].change)


def test_the_output_called_logits_is_the_main_one() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.outer = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            hidden = self.inner(x).relu()
            return {"hidden": hidden, "logits": self.outer(hidden)}

    run = cw.open(Two()).record(torch.randn(5, 3))
    assert run.logits.shape == (5, 2) and run["logits"].shape == (5, 2)
    assert run.lift().unembed == ("param:outer.weight", 2)


def test_a_live_edit_of_a_module_leaves_a_graph_that_lifts(trace: cw.Trace) -> None:
    live = trace.net.record(*trace.args, interventions=[cw.scale("embed", 0.5)])
    torch.testing.assert_close(live.logits, trace.replay(cw.scale("embed", 0.5)).logits)
    assert not live.tape.problems
    assert live["L1.attn.z"].shape == trace["L1.attn.z"].shape


def test_a_block_is_a_site_by_its_name() -> None:
    run = cw.open("indirect-object").record(organisms.load("indirect-object").pairs(2, seed=0).clean)
    assert torch.equal(run["L1.mlp"], run["L1.mlp.out"]) and torch.equal(run["L1.attn"], run["L1.attn.z"])


@pytest.mark.parametrize(
    "edit",
    [
        cw.patch("L0.attn.h0", [1, 2]),
        cw.patch("L0.attn.h0", None),
        cw.add("L0.attn.h0", [1.0]),
        cw.scale("L0.attn.h0", "2"),
        cw.project_out("L0.attn.h0", [1.0]),
        cw.apply("L0.attn.h0", lambda value: None),
        cw.zero("L0.attn.h0", basis="heads"),
        cw.scale("input:0", 0.5),
    ],
)
def test_edits_that_cannot_be_made_get_one_sentence(trace: cw.Trace, edit: cw.Intervention) -> None:
    with pytest.raises(InputError) as caught:
        trace.replay(edit)
    assert "\n" not in str(caught.value)


def test_other_kinds_of_argument(trace: cw.Trace) -> None:
    with pytest.raises(SiteError, match="site is text"):
        trace[0]
    with pytest.raises(InputError, match="takes interventions"):
        trace.replay("L0.attn.h0")
    with pytest.raises(ModelError, match="no tokenizer"):
        cw.open(nn.Linear(2, 2), tokenizer={"a": 0})


def test_a_state_of_zeros_is_no_step() -> None:
    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell, self.read = nn.GRUCell(3, 4), nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            state = x.new_zeros(len(x), 4)
            for step in range(x.shape[1]):
                state = self.cell(x[:, step], state)
            return self.read(state)

    parts = cw.open(Loop()).record(torch.randn(2, 5, 3)).lift().components()
    states = [part for part in parts if part.kind == "state"]
    assert [(part.name, part.count, part.calls) for part in states] == [("L0.rnn", 4, 5)]


def test_every_edit_works_in_a_basis(trace: cw.Trace) -> None:
    """In the identity basis each edit is the plain one; in one direction it moves the value along that alone."""
    eye = cw.Directions(torch.eye(16))
    site, vector = "L0.attn.h0", torch.linspace(-1, 1, 16)
    for edit, arguments in ((cw.add, (vector,)), (cw.resample, ()), (cw.project_out, (vector,)), (cw.mean, ())):
        plain, inside = edit(site, *arguments), edit(site, *arguments, basis=eye)
        first, second = (trace.replay(what, until=site).output[0] for what in (plain, inside))
        torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-5)
    along = cw.add(site, torch.tensor([2.0]), basis=cw.Directions(vector[None]))
    moved = trace.replay(along, until=site).output[0] - trace[site]
    torch.testing.assert_close(moved, (2 * vector).expand_as(moved), rtol=1e-4, atol=1e-5)
