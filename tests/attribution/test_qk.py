"""QK attribution: the table adds up to the recorded score on every attention, and names what is known to matter."""

from __future__ import annotations

import pytest
import torch

import cutaway as cw
from cutaway import organisms
from cutaway.errors import InputError, SiteError
from zoo import ZOO, case, error

ATTENDING = [name for name, entry in ZOO.items() if any(part.endswith(".attn") for part in entry.expected)]
KINDS = (  # plain, rotary and grouped, capped, relative bias, sinks, both ways, of images, in windows
    "gpt2 eager", "llama", "gemma2", "t5", "gpt-oss", "bert", "vit", "swin",
)  # fmt: skip


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name not in KINDS)) for name in ATTENDING]
)
def test_the_table_adds_up_to_the_recorded_score(name: str) -> None:
    trace = case(name).trace
    block = next(block for block in reversed(trace.lift().blocks) if block.kind == "attention" and not block.step)
    head = f"{block.name}.h{block.slots.count - 1}"
    found = cw.explain_attention(trace, head)
    assert found.error <= 1e-4, (found.error, found.score)
    contrast = cw.explain_attention(trace, head, against="mean")
    assert (contrast.table.sum((1, 2)) - contrast.score).abs().max() <= 1e-4 * found.score.abs().max().clamp(min=1.0)


@pytest.fixture(scope="module")
def induction() -> cw.Trace:
    return cw.open("induction").record(organisms.load("induction").pairs(16, seed=0).clean)


def test_an_induction_heads_key_is_the_previous_token_head(induction: cw.Trace) -> None:
    found = cw.explain_attention(induction, "L1.attn.h1", against="mean")
    query, key, value = found.top(1)[0]
    assert (query, key) == ("embed", "L0.attn.h0") and value > 0
    assert value >= 0.8 * float(found.score.mean())
    assert max(found.edges(), key=lambda name: found.edges()[name]) in (
        "L0.attn.h0 -> L1.attn.h1.k", "embed -> L1.attn.h1.q"
    )  # fmt: skip


def test_cutting_an_edge_changes_the_score_by_what_the_table_says(induction: cw.Trace) -> None:
    found = cw.explain_attention(induction, "L1.attn.h1", key="pattern")
    pattern = induction["L1.attn.pattern[head=1, query=-1]"]
    into = cw.virtual_weights(induction, "L1.attn.h1.k", "embed").matrix  # there are no norms: the projection itself
    wrote = induction["L0.attn.result"][:, :, 0] @ into
    edited = induction.replay(cw.apply("L1.attn.k[head=1]", lambda k: k - wrote[:, None]))
    before, after = (run["L1.attn.scores[head=1, query=-1]"] for run in (induction, edited))
    lost = (torch.where(pattern > 0, before - after, 0.0) * pattern).sum(1)
    column = found.key_sources.index("L0.attn.h0")
    assert error(found.table[:, :, column].sum(1), lost) <= 1e-4


def test_a_circuits_edges_into_the_head_are_those_that_the_table_names(induction: cw.Trace) -> None:
    pairs = organisms.load("induction").pairs(16, seed=0)
    corrupted = induction.net.record(pairs.corrupted)
    circuit = cw.find_circuit(induction, corrupted, cw.logit_difference(pairs.correct, pairs.wrong))
    found = cw.explain_attention(induction, "L1.attn.h1", against="mean")
    beside = found.beside(circuit.edges)
    assert "L0.attn.h0 -> L1.attn.h1.k" in beside["both"]
    into = {edge for edge in circuit.edges if edge.endswith(("L1.attn.h1.q", "L1.attn.h1.k"))}
    assert {*beside["both"], *beside["circuit"]} == into and not into & {*beside["table"]}
    assert max(map(abs, beside["circuit"].values()), default=0.0) < max(map(abs, beside["both"].values()))


def test_what_cannot_be_asked(induction: cw.Trace) -> None:
    with pytest.raises(SiteError, match="no head"):
        cw.explain_attention(induction, "L1.attn")
    with pytest.raises(InputError, match="no query 40"):
        cw.explain_attention(induction, "L1.attn.h1", query=40)
    with pytest.raises(InputError, match="does not see key 9"):
        cw.explain_attention(induction, "L1.attn.h1", query=3, key=9)
    with pytest.raises(InputError, match="not 'most'"):
        cw.explain_attention(induction, "L1.attn.h1", key="most")
