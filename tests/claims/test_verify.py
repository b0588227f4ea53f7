"""Verdicts: supported for the known mechanism, not supported for chance, and a stored claim can be tested again."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from networks import BEHAVING, organism_runs

import cutaway as cw
from cutaway.claims.null import random_circuits
from cutaway.claims.repeat import rebuild
from cutaway.errors import InputError, MetricError


def seen(organism) -> tuple[list[str], list[str]]:
    """Known edges that resampling shows by the organism's own measurement, and those it does not."""
    effects = organism.truth.figures["edge_effects"]
    shown = [edge for edge in organism.truth.edges if effects[edge]["resample"] > 0.1]
    return list(organism.truth.edges), [edge for edge in organism.truth.edges if edge not in shown]


@pytest.mark.parametrize("name", BEHAVING)
def test_the_known_mechanism_is_supported_on_fresh_pairs(name: str) -> None:
    clean, corrupted, metric, organism = organism_runs(name, n=24, seed=1)
    fresh_clean, fresh_corrupted, fresh_metric, _ = organism_runs(name, n=24, seed=2)
    circuit = cw.find_circuit(clean, corrupted, metric)
    truth, unseen = seen(organism)
    claim = cw.verify(circuit, fresh_clean, fresh_corrupted, fresh_metric, truth=truth, unseen=unseen, random=40)
    assert claim.verdict == "supported", str(claim)
    assert claim.provenance["held_out"] and claim.provenance["fingerprint"] == clean.net.fingerprint
    assert claim.figure("truth AUROC").value >= 0.95
    low, value, high = (
        claim.figure("faithfulness").low,
        claim.figure("faithfulness").value,
        claim.figure("faithfulness").high,
    )
    assert low <= value <= high
    json.dumps(claim.to_dict(), allow_nan=False)


@pytest.mark.parametrize("name", ["induction", "shapes"])
def test_random_circuits_are_not_supported(name: str) -> None:
    clean, corrupted, metric, _ = organism_runs(name, n=16)
    circuit = cw.find_circuit(clean, corrupted, metric)
    for mask in random_circuits(circuit.graph, len(circuit), 10, seed=5):
        other = dataclasses.replace(circuit, mask=mask, exact={})
        claim = cw.verify(other, random=30, seed=1)
        assert claim.verdict == "not supported", str(claim)


def test_an_untrained_network_supports_nothing() -> None:
    from cutaway import organisms

    organism = organisms.load("induction", trained=False)
    pairs = organism.pairs(24, seed=0)
    net = cw.open(organism.module, name="untrained induction")
    metric = cw.logit_difference(pairs.correct, pairs.wrong, position=pairs.position)
    clean, corrupted = net.record(pairs.clean), net.record(pairs.corrupted)
    with pytest.raises(MetricError, match="does not distinguish"):
        cw.find_circuit(clean, corrupted, metric)


def test_random_circuits_have_the_size_and_connect_input_to_output() -> None:
    clean, corrupted, metric, _ = organism_runs("shapes", n=4)
    graph = cw.find_circuit(clean, corrupted, metric).graph
    masks = random_circuits(graph, 20, 30, seed=0)
    sizes = masks.flatten(1).sum(1)
    assert int(sizes.max()) <= 20 and float(sizes.float().mean()) > 14
    end = graph.parts[-1].ports[0].rows
    assert bool(masks[:, end].flatten(1).any(1).all())
    assert not bool((masks & ~graph.valid[None, :, :, None]).any())
    assert torch.equal(masks, random_circuits(graph, 20, 30, seed=0))


def test_a_stored_claim_can_be_tested_again() -> None:
    clean, corrupted, metric, _ = organism_runs("counter", n=12)
    claim = cw.verify(cw.find_circuit(clean, corrupted, metric), random=20)
    stored = json.loads(json.dumps(claim.to_dict()))
    arrays = {name: np.asarray(array) for name, array in claim.tensors.items()}
    again = cw.verify(rebuild(cw.open("counter"), stored, arrays), random=20)
    assert again.figure("faithfulness").value == pytest.approx(claim.figure("faithfulness").value, abs=1e-6)
    assert again.verdict == claim.verdict
    with pytest.raises(InputError, match="open the network that the claim is about"):
        rebuild(cw.open("induction"), stored, arrays)


def test_held_out_runs_of_another_network_are_refused() -> None:
    clean, corrupted, metric, _ = organism_runs("induction", n=4)
    other_clean, other_corrupted, other_metric, _ = organism_runs("shapes", n=4)
    circuit = cw.find_circuit(clean, corrupted, metric)
    with pytest.raises(InputError, match="other nodes"):
        cw.verify(circuit, other_clean, other_corrupted, other_metric)
