"""Path patching against plain hooks, on a transformer, a convolutional network and a recurrent one."""

import pytest
import torch
from networks import gpt2_runs, organism_runs
from torch import nn

import cutaway as cw
from cutaway.attribution.mixture import evaluate
from cutaway.errors import InputError

METRIC = cw.logit_difference(3, 4)


def head_only(clean, source: torch.Tensor, port: int) -> torch.Tensor:
    """The z of head 2 of the second layer when one of q, k, v alone comes from another residual value. By hand."""
    module = clean.net.module
    attention, width = module.transformer.h[1].attn, 32
    rows = attention.c_attn(module.transformer.h[1].ln_1(clean["L1.resid_pre"])).split(width, 2)
    other = attention.c_attn(module.transformer.h[1].ln_1(source)).split(width, 2)
    q, k, v = ((other if place == port else rows)[place][..., 16:24] for place in range(3))
    mask = torch.full((7, 7), float("-inf")).triu(1)
    return (q @ k.transpose(1, 2) / 8**0.5 + mask).softmax(-1) @ v


@pytest.mark.parametrize(("port", "place"), [("q", 0), ("k", 1), ("v", 2)])
def test_a_path_through_a_head_by_hand(port: str, place: int) -> None:
    """L0.attn.h1 -> L1.attn.h2.port -> logits: the second head's changed output goes to the logits alone."""
    clean, corrupted, module = gpt2_runs()
    graph = cw.EdgeGraph(clean, corrupted)
    found = cw.path_patch(graph, METRIC, f"L0.attn.h1 -> L1.attn.h2.{port} -> logits")
    weight = module.transformer.h[0].attn.c_proj.weight
    change = (corrupted["L0.attn.z[head=1]"] - clean["L0.attn.z[head=1]"]) @ weight[8:16]
    z = head_only(clean, clean["L1.resid_pre"] + change, place)
    sent = (z - clean["L1.attn.z[head=2]"]) @ module.transformer.h[1].attn.c_proj.weight[16:24]
    logits = module.lm_head(module.transformer.ln_f(clean["transformer.h.1/add.1"] + sent)).detach()
    want = METRIC(clean.logits, clean.net) - METRIC(logits, clean.net)
    assert found.shape == (1, 3)
    torch.testing.assert_close(found[0], want, rtol=1e-4, atol=1e-6)
    edges = (f"L0.attn.h1 -> L1.attn.h2.{port}", "L1.attn.h2 -> logits")
    torch.testing.assert_close(cw.path_patch(graph, METRIC, edges), found)


def test_a_path_that_stops_inside_goes_on_by_every_way() -> None:
    """embed -> L0.mlp: its output changes for all who read it, by a plain hook."""
    clean, corrupted, module = gpt2_runs()
    graph = cw.EdgeGraph(clean, corrupted)
    found = cw.path_patch(graph, METRIC, "embed -> L0.mlp.in")
    block = module.transformer.h[0]
    mixed = clean["L0.resid_mid"] + corrupted["embed"] - clean["embed"]
    handle = block.mlp.register_forward_hook(lambda mod, args, out: mod.forward(block.ln_2(mixed)))
    logits = module(clean.args[0]).logits.detach()
    handle.remove()
    torch.testing.assert_close(
        found[0], METRIC(clean.logits, clean.net) - METRIC(logits, clean.net), rtol=1e-4, atol=1e-6
    )


def test_paths_of_one_edge_to_the_output_are_that_edge_and_batches_change_nothing() -> None:
    clean, corrupted, metric, _ = organism_runs("induction", n=5)
    graph = cw.EdgeGraph(clean, corrupted)
    heads = [name for name in graph.writers if ".h" in name]
    paths = [f"{name} -> logits" for name in heads]
    together = cw.path_patch(graph, metric, paths)
    alone = torch.cat([cw.path_patch(graph, metric, path) for path in paths])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    to = cw.path_to(graph, metric, "logits")
    for name, effect in zip(heads, together, strict=True):
        torch.testing.assert_close(to[graph.writers.index(name)], effect, rtol=1e-4, atol=1e-5)


def small_cnn() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
    ).eval()


def test_a_path_through_a_convolutional_network_by_hand() -> None:
    """channel 1 -> channel 2 -> output: only what the second layer's channel 2 makes of channel 1 goes on."""
    module = small_cnn()
    net = cw.open(module)
    torch.manual_seed(1)
    pictures, others = torch.randn(4, 1, 6, 6), torch.randn(4, 1, 6, 6)
    graph = cw.EdgeGraph(net.record(pictures), net.record(others))
    metric = cw.logit_difference(0, 2)
    first, second = (next(name for name in graph.writers if name.endswith(end)) for end in (".c1", ".c2"))
    layers = [name for name in graph.writers if name.endswith(".c2")]
    second = layers[-1]
    reader = next(name for name in graph.readers if name.startswith(second))
    found = cw.path_patch(graph, metric, f"{first} -> {reader} -> {graph.readers[-1]}")
    with torch.no_grad():
        hidden, other = module[:2](pictures), module[:2](others)
        mixed = hidden.clone()
        mixed[:, 1] = other[:, 1]
        late = module[2:4](hidden)
        late[:, 2] = module[2:4](mixed)[:, 2]
        want = metric(module(pictures), net) - metric(module[4:](late), net)
    torch.testing.assert_close(found[0], want, rtol=1e-4, atol=1e-6)


def test_a_path_from_the_source_of_a_recurrent_network_is_its_edge() -> None:
    """embed -> update gate of unit 2, at every step, and on by every way."""
    clean, corrupted, metric, _ = organism_runs("counter", n=4)
    graph = cw.EdgeGraph(clean, corrupted)
    row, column = next(edge for edge in graph.edges if graph.writers[edge[1]] == graph.writers[0])
    found = cw.path_patch(graph, metric, graph.edge_name(row, column))
    mask = torch.ones(1, *graph.shape(), dtype=torch.bool)
    mask[0, row, column] = False
    want = metric(clean.logits, clean.net) - evaluate(graph, metric, mask)[0]
    torch.testing.assert_close(found[0], want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("L0.attn.h9 -> logits", "no writer 'L0.attn.h9'.*L0.attn.h"),
        ("L0.attn.h1 -> L1.attn.h2.w -> logits", "no reader 'L1.attn.h2.w'"),
        ("L1.attn.h1 -> L0.attn.h2.q", "no edge 'L1.attn.h1 -> L0.attn.h2.q'.*embed"),
        (("embed -> L0.attn.h1.v", "L0.attn.h2 -> logits"), "breaks at 'L0.attn.h2'.*leads to L0.attn.h1"),
        (("embed -> logits", "L0.attn.h2 -> logits"), "leads to nothing"),
        ("embed", "is no path"),
        (("embed",), "is no edge"),
        ([], "no path"),
        (3, "A path is a text"),
        ([3], "A path is a text"),
        ((3,), "A path is a text"),
        ((), "one edge or more"),
    ],
)
def test_paths_that_are_not_there_are_refused_with_what_comes_near(path: object, message: str) -> None:
    clean, corrupted, _ = gpt2_runs()
    with pytest.raises(InputError, match=message):
        cw.path_patch(cw.EdgeGraph(clean, corrupted), METRIC, path)


def test_receivers_that_are_not_there_are_refused() -> None:
    clean, corrupted, _ = gpt2_runs()
    with pytest.raises(InputError, match="no reader 'L1.attn.h1'.*L1.attn.h1"):
        cw.path_to(cw.EdgeGraph(clean, corrupted), METRIC, ["L1.attn.h1"])
