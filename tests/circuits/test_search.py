"""Finding circuits: on networks whose mechanism is known, the mechanism is found, and little else."""

import json

import pytest
import torch
from networks import BEHAVING, gpt2_runs, organism_runs

import cutaway as cw
from cutaway.circuits.circuit import trimmed
from cutaway.errors import InputError, MetricError


def strong_truth(organism, share: float) -> set[str]:
    """Known edges whose resampling costs at least this share of the behaviour, by the organism's own measurement."""
    figures = organism.truth.figures
    whole = figures["logit_difference"] - figures["corrupted_logit_difference"]
    return {edge for edge in organism.truth.edges if figures["edge_effects"][edge]["resample"] > share * whole}


@pytest.mark.parametrize("name", BEHAVING)
def test_the_known_mechanism_is_found(name: str) -> None:
    clean, corrupted, metric, organism = organism_runs(name, n=24)
    found = cw.find_circuit(clean, corrupted, metric)
    assert abs(1 - found.faithfulness) <= 0.1
    assert strong_truth(organism, 0.3) <= set(found.edges)
    beyond = [edge for edge in found.edges if edge not in organism.truth.edges]
    assert len(beyond) <= 0.1 * len(found)


def test_nodes_of_the_known_mechanism_are_found() -> None:
    clean, corrupted, metric, _ = organism_runs("induction", n=24)
    found = cw.find_circuit(clean, corrupted, metric, level="node")
    assert found.nodes == ["embed", "L0.attn.h0", "L1.attn.h1"]


def test_positions_tell_where() -> None:
    clean, corrupted, metric, _ = organism_runs("induction", n=8)
    found = cw.find_circuit(clean, corrupted, metric, positions=True, refine=60)
    last = clean.logits.shape[1] - 1
    assert any(row["edge"] == "L1.attn.h1 -> logits" and row["position"] == last for row in found.table())
    assert abs(1 - found.faithfulness) <= 0.1


def test_the_same_search_gives_the_same_circuit() -> None:
    clean, corrupted, metric, _ = organism_runs("shapes", n=12)
    first, second = (cw.find_circuit(clean, corrupted, metric) for _ in range(2))
    assert first.edges == second.edges and first.faithfulness == second.faithfulness
    json.dumps(first.to_dict())
    assert str(len(first)) in str(first)


def test_dead_ends_are_trimmed() -> None:
    clean, corrupted, metric, _ = organism_runs("induction", n=4)
    graph = cw.find_circuit(clean, corrupted, metric).graph
    mask = torch.zeros(graph.shape(), dtype=torch.bool)

    def put(edge: str) -> None:
        writer, reader = edge.split(" -> ")
        mask[graph.readers.index(reader), graph.writers.index(writer)] = True

    put("embed -> L0.attn.h0.v")
    put("L0.attn.h2 -> logits")
    assert not trimmed(graph, mask).any()
    put("L0.attn.h0 -> logits")
    assert int(trimmed(graph, mask).sum()) == 2


def test_bad_questions_get_one_sentence() -> None:
    clean, corrupted, _ = gpt2_runs()
    with pytest.raises(InputError, match="no level 'layer'"):
        cw.find_circuit(clean, corrupted, cw.logit_difference(3, 4), level="layer")
    swapped = torch.cat([clean.args[0], corrupted.args[0]])
    back = torch.cat([corrupted.args[0], clean.args[0]])
    net = clean.net
    with pytest.raises(MetricError, match="does not distinguish"):
        cw.find_circuit(net.record(swapped), net.record(back), cw.logit_difference(3, 4))
    constant = cw.custom(lambda logits: logits[:, 0, 0] * float("nan"), name="broken")
    with pytest.raises(MetricError, match="NaN"):
        cw.find_circuit(clean, corrupted, constant)
