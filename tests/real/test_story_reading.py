"""What docs/reading.md says about the story model: statements of strings and xrefs, each checked by a patch or an edit.

Reading looks at weights, or at one run; the checks run the network changed. Where a check has a control, it is another
unit's statement.
"""

from pathlib import Path

import pytest
import torch

import cutaway as cw
from cutaway.reading import build_index, contributed, strings

GIRL = "Mia and Max went to the zoo. Mia gave the ball to"
BOY = "Mia and Max went to the zoo. Max gave the ball to"
NEURONS = 172


@pytest.fixture(scope="module")
def net(shared_data: Path) -> cw.Network:
    folder = shared_data / "lm-stories260k" / "hf"
    if not folder.is_dir():
        pytest.skip(f"no story model at {folder}")
    return cw.open(folder, name="stories260K")


def test_the_head_that_says_he_against_she_decides_between_his_and_her(net: cw.Network) -> None:
    """strings: L4.attn.h2's OV writes he against she. Patched from the boy's run, it alone moves the answer so."""
    girl, boy = net.record(GIRL), net.record(BOY)
    (says,) = strings(girl, side="ov writes").rows(site="L4.attn.h2", side="ov writes")
    assert [entry["entry"] for entry in says["top"][:2]] == [" He", " his"]
    assert {" she", " She", " her"} <= {entry["entry"] for entry in says["low"]}
    her, his = net.token_id(" her"), net.token_id(" his")

    def ahead(logits: torch.Tensor) -> float:
        return float(logits[0, -1, her] - logits[0, -1, his])

    whole = ahead(girl.logits) - ahead(boy.logits)
    patched = [girl.replay(cw.patch(f"L4.attn.h{head}", boy)).logits for head in range(8)]
    moved = [(ahead(girl.logits) - ahead(logits)) / whole for logits in patched]
    assert moved[2] > 0.8 and max(abs(share) for head, share in enumerate(moved) if head != 2) < 0.1
    fallen = (patched[2] - girl.logits)[0, -1].topk(3, largest=False).indices
    assert {net.token_text(int(token)) for token in fallen} == {" she", " She", " her"}


def test_what_a_neuron_writes_is_what_rises_when_it_is_pushed(net: cw.Network) -> None:
    """strings: the six entries of each neuron of the last MLP, against the six tokens that rise most."""
    trace = net.record("Once upon a time, there was a little girl named")
    rows = {row["site"]: row for row in strings(trace, side="writes").rows(site="L4.mlp", top=None)}
    names = [f"L4.mlp.n{neuron}" for neuron in range(NEURONS)]
    said = [{entry["id"] for entry in rows[name]["top"]} for name in names]
    pushed = [(trace.replay(cw.add(name, torch.tensor(3.0))).logits - trace.logits)[0, -1] for name in names]
    rising = [set(logits.topk(6).indices.tolist()) for logits in pushed]
    hits = sum(len(words & up) for words, up in zip(said, rising, strict=True)) / NEURONS
    control = sum(len(words & up) for words, up in zip(said, rising[57:] + rising[:57], strict=True)) / NEURONS
    assert hits > 4.5 and control < 0.5


def test_who_reads_a_head_most_is_who_moves_most_when_it_is_patched(net: cw.Network) -> None:
    """xrefs, static: of 172 gates, n136, n70 and n96 read L4.attn.h2 most; they move most, in this order."""
    girl, boy = net.record(GIRL), net.record(BOY)
    readers = [row.name for row in build_index(girl).readers_of("L4.attn.h2", 1000) if row.port == "gate"]
    assert readers[:3] == ["L4.mlp.n136.gate", "L4.mlp.n70.gate", "L4.mlp.n96.gate"]
    moved = (girl.replay(cw.patch("L4.attn.h2", boy))["L4.mlp.pre"] - girl["L4.mlp.pre"])[0, -1].abs()
    assert moved.topk(3).indices.tolist() == [136, 70, 96]
    assert float(moved[136] / moved.median()) > 5


def test_a_neurons_share_of_a_logit_is_what_zeroing_it_takes_away(net: cw.Network) -> None:
    """xrefs, dynamic: shares of the logit of " Lily" against what the logit loses; the norm may rescale the rest."""
    trace = net.record("Once upon a time, there was a little girl named")
    lily = net.token_id(" Lily")
    assert int(trace.logits[0, -1].argmax()) == lily
    rows = [row for row in contributed(trace, f"logits[vocab={lily}, pos=-1]", 2000).rows if "L4.mlp" in row.name]
    before = float(trace.logits[0, -1, lily])
    lost = [1 - float(trace.replay(cw.zero(row.name)).logits[0, -1, lily]) / before for row in rows]
    shares = torch.tensor([row.share for row in rows])
    assert [row.name for row in rows[:2]] == ["L4.mlp.n138", "L4.mlp.n163"]
    assert max(range(len(lost)), key=lambda place: lost[place]) == 0 and abs(lost[0] - float(shares[0])) < 0.03
    assert float(torch.corrcoef(torch.stack([shares, torch.tensor(lost)]))[0, 1]) > 0.9
