"""The control must be able to fail a circuit: chance, the whole network, unseen places, odd inputs."""

import json

import numpy as np
import pytest
import torch
from networks import gpt2_runs, organism_runs
from torch import nn

import cutaway as cw
from cutaway.claims.null import random_circuits
from cutaway.claims.repeat import rebuild
from cutaway.errors import InputError, MetricError


def test_a_circuit_that_is_the_whole_network_is_not_supported() -> None:
    torch.manual_seed(1)
    net = cw.open(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 1)))
    inputs = torch.randn(9, 4)
    clean, corrupted = net.record(inputs), net.record(inputs + 2)
    sign = 1 if float((clean.logits - corrupted.logits).mean()) > 0 else -1
    circuit = cw.find_circuit(clean, corrupted, lambda output: sign * output[:, 0])
    claim = cw.verify(circuit)
    assert len(circuit) == len(circuit.graph.edges)
    assert claim.verdict == "not supported" and claim.figure("null p").value == 1.0
    json.dumps(claim.to_dict(), allow_nan=False)


def test_random_circuits_are_others_than_the_one_tested_and_lie_where_something_differs() -> None:
    clean, corrupted, metric, _ = organism_runs("induction", n=6)
    circuit = cw.find_circuit(clean, corrupted, metric, positions=True, refine=40)
    graph = circuit.graph
    for level in ("edge", "node"):
        masks = random_circuits(graph, len(circuit), 30, 0, level, circuit.mask)
        assert not any(torch.equal(mask, circuit.mask) for mask in masks)
        assert bool(masks.flatten(1).any(1).all())
        columns = masks.any(1) & graph.valid.any(0)[None, :, None]
        assert not bool((columns & ~graph.moving[None]).any())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    net = cw.open(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2)).to(dtype))
    inputs = torch.randn(12, 4, dtype=dtype)
    clean, corrupted = net.record(inputs), net.record(inputs + 3)
    direction = (clean.logits - corrupted.logits).mean(0)
    claim = cw.verify(cw.find_circuit(clean, corrupted, lambda output: output @ direction), random=10)
    assert claim.figure("faithfulness").value == pytest.approx(1, abs=0.15)
    assert set(claim.tensors) == {"clean.0", "corrupted.0", "mask"}


def test_claims_on_keyword_inputs_can_be_repeated() -> None:
    clean, corrupted, module = gpt2_runs()
    net = cw.open(module)
    runs = [net.record(input_ids=side.args[0]) for side in (clean, corrupted)]
    sign = (runs[0].logits - runs[1].logits)[:, -1].mean(0)
    metric = cw.logit_difference(int(sign.argmax()), int(sign.argmin()))
    claim = cw.verify(cw.find_circuit(*runs, metric), random=10)
    arrays = {name: np.asarray(array) for name, array in claim.tensors.items()}
    again = cw.verify(rebuild(net, json.loads(json.dumps(claim.to_dict())), arrays), random=10)
    assert again.figure("faithfulness").value == pytest.approx(claim.figure("faithfulness").value, abs=1e-6)


def test_what_cannot_be_asked_gets_one_sentence() -> None:
    clean, corrupted, metric, _ = organism_runs("induction", n=6)
    circuit = cw.find_circuit(clean, corrupted, metric)
    with pytest.raises(InputError, match="both runs"):
        cw.verify(circuit, clean)
    with pytest.raises(InputError, match="needs a control"):
        cw.verify(circuit, random=0)
    with pytest.raises(InputError, match="interventions"):
        cw.find_circuit(clean.replay(cw.zero("L0.attn.h0")), corrupted, metric)
    with pytest.raises(InputError, match="one is a str"):
        cw.find_circuit("clean", corrupted, metric)
    with pytest.raises(InputError, match="at least 1"):
        cw.find_circuit(clean, corrupted, metric, refine=0)
    with pytest.raises(MetricError, match="cuts the gradient off"):
        cw.find_circuit(clean, corrupted, lambda output: metric(output, clean.net).detach())
    with pytest.raises(MetricError, match="fails on this output"):
        cw.find_circuit(clean, corrupted, lambda output: output[:, 10_000, 0])
    with pytest.raises(MetricError, match="is no metric"):
        cw.find_circuit(clean, corrupted, 3)
