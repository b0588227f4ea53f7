"""Latents as nodes: edges between them are evaluated exactly, and circuits name the planted ones."""

from __future__ import annotations

import pytest
import torch
from dictionaries import dictionary
from torch import Tensor
from torch.nn import functional

import cutaway as cw
from cutaway import organisms
from cutaway.attribution.edges import EdgeGraph
from cutaway.attribution.metric import output_distance
from cutaway.attribution.mixture import ends, evaluate
from cutaway.basis import Directions
from cutaway.errors import InputError, SiteError
from cutaway.features.attach import attach
from cutaway.features.dictionary import Dictionary
from cutaway.run.network import Network
from cutaway.run.trace import Trace
from zoo import case


def pair(net: Network, name: str) -> tuple[Trace, Trace]:
    """Two runs of a network of the zoo."""
    found = case(name)
    (args, kwargs), (more, others) = found.inputs(), found.other()
    return net.record(*args, **kwargs), net.record(*more, **others)


@pytest.mark.parametrize(
    "name, site",
    [("gpt2", "resid.2"), ("bert", "L1.attn.z"), ("lenet", "L1.conv.out"), ("gru", "L0.rnn@4.out"),
     ("mamba", "resid.1"), ("gemma2", "L1.mlp_out"), ("mlp-mixer", "resid.2")],
)  # fmt: skip
@pytest.mark.parametrize("activation", ["relu", "topk"])
def test_ablating_a_latent_in_the_graph_is_the_intervention(name: str, site: str, activation: str) -> None:
    value, axes = case(name).trace[site], case(name).trace.locate(site).axes
    width = value.shape[
        axes.index("channel") if "channel" in axes else axes.index("neuron") if "neuron" in axes else -1
    ]
    basis = dictionary(width, 8, activation)
    clean, corrupted = pair(attach(case(name).net, basis, site, latents=[0, 2, 3, 7]), name)
    metric = output_distance(clean)
    graph = EdgeGraph(clean, corrupted)
    start = f"{site}."
    assert [writer for writer in graph.writers if writer.startswith(f"{start}f")] == [
        f"{start}f{n}" for n in (0, 2, 3, 7)
    ]
    assert f"{start}error" in graph.writers and f"{start}f2.in" in graph.readers
    good, bad = ends(graph, metric)
    whole = torch.ones(1, *graph.shape(), dtype=torch.bool)
    spread = (good - bad).abs().max()
    assert (evaluate(graph, metric, whole)[0] - good).abs().max() <= 1e-5 * spread
    masks = whole.repeat(2, 1, 1, 1)
    masks[0, :, graph.writers.index(f"{start}f2")] = False
    masks[1, :, graph.writers.index(f"{start}error")] = False
    got = evaluate(graph, metric, masks)
    want = metric(clean.replay(cw.patch(f"{site}[latent=2]", corrupted)).logits, clean.net)
    assert (got[0] - want).abs().max() <= 1e-5 * spread
    if activation == "relu":  # with the other run's error, and the latents as they are
        told = clean.replay(cw.patch(site, corrupted), cw.patch(f"{site}[latent=0|2|3|7]", clean))
        assert (got[1] - metric(told.logits, clean.net)).abs().max() <= 1e-5 * spread


def test_two_dictionaries_feed_each_other_and_all_scores_agree_where_all_is_linear() -> None:
    found = case("gpt2")
    width = found.trace["resid.1"].shape[-1]
    rows = torch.linalg.qr(torch.randn(width, width, generator=torch.Generator().manual_seed(0))).Q
    net = attach(attach(found.net, Directions(rows[:4]), "resid.3"), Directions(rows[:4]), "resid.4")
    clean, corrupted = pair(net, "gpt2")
    graph = EdgeGraph(clean, corrupted)
    feeds = {graph.edge_name(row, column) for row, column in graph.edges}
    assert {"resid.3.f1 -> resid.4.f1.in", "resid.3.error -> L1.mlp.in", "L1.mlp -> resid.4.error.in"} <= feeds
    # resid.4 = resid.3 + MLP, so a direction reads itself wholly, and no other one.
    direct = cw.score(graph, cw.logit(3), method="direct").edges.sum(-1)
    name = dict(zip(graph.readers, range(len(graph.readers)), strict=True))
    columns = [graph.writers.index(f"resid.3.f{n}") for n in range(4)]
    table = direct[[name[f"resid.4.f{n}.in"] for n in range(4)]][:, columns]
    assert (table - table.diag().diag()).abs().max() <= 1e-5 * table.abs().max()
    for method in ("eap", "eap-ig", "exact-edge", "exact-node", "relp", "local", "ig-activations"):
        assert cw.score(graph, cw.logit(3), method=method).writers == tuple(graph.writers)
    assert cw.score(clean, cw.logit(3), corrupted, positions=True).edges.shape[2] == clean["resid.3"].shape[1]


def test_identity_coordinates_are_the_channels_themselves() -> None:
    net = cw.open("shapes")
    pairs = organisms.load("shapes").pairs(6, 0)
    metric = cw.logit_difference(pairs.correct, pairs.wrong, labels=True)
    plain = EdgeGraph(net.record(pairs.clean), net.record(pairs.corrupted))
    width = plain.clean_trace["L1.conv.out"].shape[1]
    same = attach(net, Directions(torch.eye(width)), "L1.conv.out")
    graph = EdgeGraph(same.record(pairs.clean), same.record(pairs.corrupted))
    one = cw.score(plain, metric, method="exact-node").nodes
    two = cw.score(graph, metric, method="exact-node").nodes
    for channel in range(width):
        want, got = (
            table[graph.writers.index(writer)]
            for table, graph, writer in ((one, plain, f"L1.conv.c{channel}"), (two, graph, f"L1.conv.out.f{channel}"))
        )
        assert torch.allclose(got, want, atol=1e-4), channel


def previous_letters(net: Network) -> Dictionary:
    """The induction organism's planted latents: which letter stood before, as the first layer's head writes it."""
    pairs = organisms.load("induction").pairs(64, 1)
    run = net.record(pairs.clean)
    written = net.module.state_dict()["embed.weight"] @ cw.ov(run, "L0.attn.h0").dense()
    rows = run["resid.1"][:, 1:].flatten(0, 1).double()
    before = functional.one_hot(torch.as_tensor(pairs.clean)[:, :-1].flatten(), len(written)).double()
    center, share = rows.mean(0), before.mean(0)
    probe = torch.linalg.lstsq(rows - center, before - share, driver="gelsd").solution
    weights = {"encoder": probe.T, "center": center, "encoder_bias": share}
    weights = {name: tensor.float() for name, tensor in weights.items()} | {"decoder": written}
    return Dictionary("planted", "topk", weights, k=1)


@pytest.mark.parametrize("seed", [100, 101, 102])
def test_the_circuit_of_induction_runs_through_the_letters_that_differ(seed: int) -> None:
    net = cw.open("induction")
    pairs = organisms.load("induction").pairs(1, seed)
    plain = (net.record(pairs.clean), net.record(pairs.corrupted))
    net = attach(net, previous_letters(net), "resid.1", active=plain)
    clean, corrupted = net.record(pairs.clean), net.record(pairs.corrupted)
    differ = torch.as_tensor(pairs.clean) != torch.as_tensor(pairs.corrupted)
    letters = {int(side[differ]) for side in map(torch.as_tensor, (pairs.clean, pairs.corrupted))}
    metric = cw.logit_difference(pairs.correct, pairs.wrong, position=-1, labels=True)
    circuit = cw.find_circuit(clean, corrupted, metric)
    named = {node for node in circuit.nodes if ".f" in node}
    assert named and named <= {f"resid.1.f{letter}" for letter in letters}
    assert abs(circuit.faithfulness - 1) < 0.15


@pytest.mark.slow
def test_a_circuit_over_latents_is_verified() -> None:
    net = cw.open("induction")
    basis, organism = previous_letters(net), organisms.load("induction")
    seen, fresh = organism.pairs(128, 0), organism.pairs(32, 777)
    net = attach(net, basis, "resid.1", active=[net.record(side) for side in (seen.clean, seen.corrupted)])

    def metric(pairs: organisms.organism.Pairs) -> cw.Metric:
        return cw.logit_difference(pairs.correct, pairs.wrong, position=-1, labels=True)

    circuit = cw.find_circuit(net.record(seen.clean), net.record(seen.corrupted), metric(seen))
    claim = cw.verify(circuit, net.record(fresh.clean), net.record(fresh.corrupted), metric(fresh))
    named = {node for node in circuit.nodes if ".f" in node}
    assert claim.verdict == "supported" and len(named) >= 15, (claim.verdict, named)


@pytest.mark.parametrize("feature", range(5))
def test_features_in_superposition_are_told_apart(feature: int) -> None:
    net = cw.open("superposition")
    directions = functional.normalize(net.module.state_dict()["weight"].T, dim=1)
    basis = Dictionary("planted", "topk", {"encoder": directions, "decoder": directions.clone()}, k=1)
    net = attach(net, basis, "/matmul.0", name="hidden")

    def inputs(which: int) -> Tensor:
        return functional.one_hot(torch.tensor([which, which]), 5) * torch.tensor([[0.9], [0.6]])

    other = (feature + 2) % 5
    clean, corrupted = net.record(inputs(feature)), net.record(inputs(other))
    assert (clean["hidden[latent=:]"] != 0).sum(0).tolist() == [2 * (place == feature) for place in range(5)]
    circuit = cw.find_circuit(clean, corrupted, cw.logit(feature))
    named = {node for node in circuit.nodes if ".f" in node}
    assert f"hidden.f{feature}" in named and named <= {f"hidden.f{feature}", f"hidden.f{other}"}
    assert circuit.faithfulness == pytest.approx(1, abs=0.1)


def test_latents_inside_a_component_are_sites_but_no_nodes() -> None:
    net = attach(case("gru").net, dictionary(case("gru").trace["L0.rnn@2.n"].shape[-1], 5), "L0.rnn@2.n")
    clean, corrupted = pair(net, "gru")
    assert clean["L0.rnn@2.n[latent=1]"].shape == clean["L0.rnn@2.n"].shape[:-1]
    assert not [block for block in clean.lift().blocks if block.kind == "dictionary"]
    with pytest.raises(InputError, match="inside a component"):
        EdgeGraph(clean, corrupted)


def test_names_of_latents_are_those_that_were_chosen() -> None:
    net = attach(case("gpt2").net, dictionary(case("gpt2").trace["resid.2"].shape[-1], 9), "resid.2", latents=[8, 4])
    clean, corrupted = pair(net, "gpt2")
    lifted = clean.lift()
    part = next(part for part in lifted.components() if part.kind == "dictionary")
    assert (part.name, part.axis, part.count) == ("resid.2", "latent", 2)
    assert lifted.streams == case("gpt2").trace.lift().streams
    from cutaway.lift.addressing import component

    assert component(lifted, "resid.2.f8", reading=False)[2] == 1
    with pytest.raises(SiteError, match="resid.2.f4"):
        component(lifted, "resid.2.f5", reading=False)
    active = attach(case("gpt2").net, net.attachments[0].basis, "resid.2", active=[clean, corrupted]).attachments[0]
    fired = {
        latent
        for run in (clean, corrupted)
        for latent in (run["resid.2[latent=:]"] != 0).flatten(0, 1).any(0).nonzero()[:, 0].tolist()
    }
    assert set(active.latents) == fired
    few = attach(case("gpt2").net, net.attachments[0].basis, "resid.2", active=[clean, corrupted], most=3).attachments[
        0
    ]
    basis = net.attachments[0].basis
    apart = (clean["resid.2[latent=:]"] - corrupted["resid.2[latent=:]"]).abs().sum((0, 1)) * basis.decoder.norm(dim=1)
    assert set(few.latents) == set(apart.topk(3).indices.tolist())
