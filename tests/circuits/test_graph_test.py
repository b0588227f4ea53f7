"""Latents taken away in the real network: what the graph predicts, and what happens."""

from __future__ import annotations

import pytest
import torch
from graphs import exact_transcoder, gpt2, ids, random_dictionary, transcoders
from torch import Tensor, nn

import cutaway as cw
from cutaway.circuits.feature_graph import feature_graph
from cutaway.circuits.graph_test import removed, verify_graph
from cutaway.errors import InputError


class Residual(nn.Module):
    """Two ReLU MLPs on a stream without norms."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 8), nn.Linear(8, 3)
        self.ups, self.downs = (nn.ModuleList(nn.Linear(*size) for _ in range(2)) for size in ((8, 24), (24, 8)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for up, down in zip(self.ups, self.downs, strict=True):
            x = x + down(torch.relu(up(x)))
        return self.last(x)


@pytest.fixture(scope="module")
def exact():
    torch.manual_seed(0)
    module = Residual()
    trace = cw.open(module).record(torch.randn(1, 5))
    found = [exact_transcoder(at, module.ups[at], module.downs[at], f"L{at}.resid_pre") for at in range(2)]
    return feature_graph(trace, found)


def test_an_exact_transcoder_predicts_what_the_network_does(exact) -> None:
    found = verify_graph(exact, count=8)
    assert found.correlation[0] > 0.9 and found.correlation[1] <= found.correlation[0] <= found.correlation[2]
    assert 0.7 < found.slope[0] < 1.3
    assert found.effect[0] > found.effect[1] > 0
    assert found.to_dict()["n"] == 8 and "1 is best" in str(found)


def test_the_last_latents_have_exactly_their_direct_effect(exact) -> None:
    last = [at for at, node in enumerate(exact.nodes[: exact.latents]) if node.layer == 1]
    predicted = removed(exact, torch.tensor(last))
    assert torch.allclose(predicted, -exact.table[exact.latents :, last].T, atol=1e-6)
    found = verify_graph(exact, count=exact.latents)
    for name, one, other in zip(found.names, found.predicted, found.actual, strict=True):
        if name.startswith("L1"):
            assert torch.allclose(one, other, atol=1e-5)


def test_a_transformers_latents_are_taken_away_where_they_are() -> None:
    module = gpt2()
    graph = feature_graph(cw.open(module).record(ids()), transcoders(module, "transformer.h.{}.ln_2"), targets=[3, 8])
    found = verify_graph(graph, count=6, seed=1)
    at = next(at for at, node in enumerate(graph.nodes) if node.name == found.names[0])
    node = graph.nodes[at]
    vector = graph.dictionaries[node.stand].decoder[node.index] * node.activation
    site = f"{node.site}[pos={node.position}]"
    after = graph.trace.replay(cw.apply(site, lambda value: value - vector)).logits[0, -1]
    before = graph.trace.logits[0, -1]
    moved = (after - after.mean()) - (before - before.mean())
    assert torch.allclose(found.actual[0], moved[[3, 8]], atol=1e-5)


def test_a_graph_of_one_latent_cannot_be_tested() -> None:
    trace = cw.open(gpt2()).record(ids())
    one = random_dictionary({"L2.resid_mid": 32}, {"L2.mlp_out": 32}, k=1)
    with pytest.raises(InputError, match="fewer than two"):
        verify_graph(feature_graph(trace, [one]))
