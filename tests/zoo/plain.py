"""Zoo entries without Hugging Face: organisms, torch's own layers, and networks for one trap each."""

from __future__ import annotations

import modules as m
import torch
from entry import BATCH, Entry, Inputs, floats, ids, layers
from torch import nn

from cutaway import organisms


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 8), nn.GELU(), nn.Linear(8, 4))


def _with_extra() -> Inputs:
    return (torch.randn(BATCH, 6),), {"extra": {"shift": torch.randn(6)}}


def _organism(name: str, expected: dict[str, tuple[int, int]], stream: int = 0) -> Entry:
    def inputs():
        organism = organisms.load(name)
        if organism.draw is None:
            torch.manual_seed(1)
            return (torch.rand(BATCH, 5),), {}
        return (organism.pairs(BATCH).clean,), {}

    return Entry(f"organism {name}", lambda: organisms.load(name).module, inputs, expected, stream)


PLAIN: list[Entry] = [
    _organism("induction", layers(0, 25, pos_embed=1), 3),
    _organism("indirect-object", layers(32, 36, count=3, pos_embed=1), 7),
    _organism("shapes", {"input": (1, 1), "L0.conv": (7, 1), "L1.conv": (7, 1), "L2.conv": (9, 1), "unembed": (7, 1)}),
    _organism("counter", {"embed": (1, 1), "L0.rnn": (7, 16), "unembed": (10, 1)}),
    _organism("superposition", {"input": (1, 1), "L0.act": (1, 1), "unembed": (5, 1)}),
    Entry("mlp", _mlp, lambda: floats(6), {"input": (1, 1), "L0.mlp": (10, 1), "L1.mlp": (8, 1), "unembed": (4, 1)}),
    Entry(
        "lenet",
        m.LeNet,
        lambda: floats(1, 18, 18),
        {"input": (1, 1), "L0.conv": (4, 1), "L1.conv": (6, 1), "L0.mlp": (10, 1), "unembed": (5, 1)},
    ),
    Entry(
        "resnet",
        lambda: m.ResNet().eval(),
        lambda: floats(3, 8, 8),
        {
            "input": (1, 1),
            "L0.conv": (6, 1),
            "L1.conv": (6, 1),
            "L2.conv": (6, 1),
            "L3.conv": (6, 1),
            "L4.conv": (6, 1),
            "L0.act": (6, 1),
            "L1.act": (6, 1),
            "unembed": (5, 1),
        },
        4,
    ),
    Entry("resnet training", lambda: m.ResNet().train(), lambda: floats(3, 8, 8), {}),
    Entry(
        "unet",
        m.UNet,
        lambda: floats(1, 8, 8),
        {
            "input": (1, 1),
            "L0.conv": (4, 1),
            "L1.conv": (6, 1),
            "L2.conv": (4, 1),
            "L3.conv": (2, 1),
            "unembed": (8, 1),
        },
    ),
    Entry("rnn", lambda: m.Recurrent(nn.RNN), ids, {"embed": (1, 1), "L0.rnn": (5, 7), "unembed": (4, 1)}),
    Entry(
        "rnn relu both ways",
        lambda: m.Recurrent(nn.RNN, nonlinearity="relu", bidirectional=True),
        ids,
        {"embed": (1, 1), "L0.rnn": (5, 7), "L1.rnn": (5, 7), "unembed": (4, 1)},
    ),
    Entry("gru", lambda: m.Recurrent(nn.GRU), ids, {"embed": (1, 1), "L0.rnn": (5, 7), "unembed": (4, 1)}),
    Entry(
        "gru two layers both ways",
        lambda: m.Recurrent(nn.GRU, num_layers=2, bidirectional=True),
        ids,
        {"embed": (1, 1), "L0.rnn": (5, 7), "L1.rnn": (5, 7), "L2.rnn": (5, 7), "L3.rnn": (5, 7), "unembed": (4, 1)},
    ),
    Entry(
        "lstm",
        lambda: m.Recurrent(nn.LSTM),
        ids,
        {"embed": (1, 1), "L0.cell": (5, 7), "L0.rnn": (5, 7), "unembed": (4, 1)},
    ),
    Entry(
        "lstm two layers",
        lambda: m.Recurrent(nn.LSTM, num_layers=2),
        ids,
        {"embed": (1, 1), "L0.cell": (5, 7), "L0.rnn": (5, 7), "L1.cell": (5, 7), "L1.rnn": (5, 7), "unembed": (4, 1)},
    ),
    Entry("gru cell", m.CellLoop, ids, {"embed": (1, 1), "L0.rnn": (5, 7), "unembed": (4, 1)}),
    Entry("gru by hand", m.WrittenGRU, ids, {"embed": (1, 1), "L0.rnn": (5, 7), "unembed": (4, 1)}),
    Entry(
        "encoder norm last",
        lambda: m.Encoder(False).eval(),
        ids,
        layers(24, 5, L0__norm=1, L1__norm=1, L2__norm=1),
        8,
        fused=True,
    ),
    Entry("encoder norm first", lambda: m.Encoder(True).eval(), ids, layers(24, 5), 5, fused=True),
    Entry("encoder training", lambda: m.Encoder(True).train(), ids, layers(24, 5), 5),
    Entry("attention weights", lambda: m.WithWeights().eval(), ids, layers(0, 5, count=1), 2, fused=True),
    Entry("attention einsum", lambda: m.Attention(False), ids, layers(0, 41, count=1), 2),
    Entry("attention folded", lambda: m.Attention(True), ids, layers(0, 41, count=1), 2),
    Entry(
        "autoencoder",
        m.Autoencoder,
        lambda: floats(8),
        {"input": (1, 1), "L0.mlp": (5, 1), "L1.mlp": (2, 1), "L0.act": (1, 1), "unembed": (8, 1)},
    ),
    Entry("called twice", m.CalledTwice, lambda: floats(6), {"input": (1, 1), "L0.rnn": (6, 2), "unembed": (3, 1)}),
    Entry("tied", m.Tied, ids, {"embed": (1, 1), "L0.mlp": (16, 1), "unembed": (41, 1)}, 2),
    Entry("view writes", m.ViewWrites, lambda: floats(8), {}),
    Entry("in place first", m.InPlaceFirst, lambda: floats(6), {}),
    Entry("renormed embedding", m.Renormed, ids, {"embed": (1, 1), "L0.act": (1, 1), "unembed": (4, 1)}),
    Entry(
        "dropout",
        lambda: m.Dropped().train(),
        lambda: floats(6),
        {"input": (1, 1), "L0.mlp": (10, 1), "unembed": (4, 1)},
    ),
    Entry("branching", m.Branching, lambda: floats(6), {"input": (1, 1), "L0.mlp": (6, 1), "unembed": (4, 1)}),
    Entry(
        "straight through",
        m.StraightThrough,
        lambda: floats(6),
        {"input": (1, 1), "L0.mlp": (8, 1), "L1.mlp": (8, 1), "L0.act": (1, 1), "unembed": (4, 1)},
    ),
    Entry(
        "dict",
        lambda: m.Returning("dict"),
        _with_extra,
        {"input": (1, 1), "input1": (1, 1), "L0.mlp": (8, 1), "unembed": (4, 1)},
    ),
    Entry(
        "dataclass",
        lambda: m.Returning("dataclass"),
        lambda: floats(6),
        {"input": (1, 1), "L0.mlp": (8, 1), "unembed": (4, 1)},
    ),
    Entry(
        "tuple", lambda: m.Returning("tuple"), lambda: floats(6), {"input": (1, 1), "L0.mlp": (8, 1), "unembed": (4, 1)}
    ),
    Entry("stateful", m.Stateful, lambda: floats(6), {"input": (1, 1), "L0.mlp": (8, 1), "unembed": (4, 1)}),
    Entry(
        "autocast and no_grad",
        m.Modes,
        lambda: floats(6),
        {"input": (1, 1), "L0.mlp": (8, 1), "L1.mlp": (8, 1), "unembed": (4, 1)},
    ),
    Entry(
        "checkpointed",
        m.Checkpointed,
        lambda: floats(6),
        {"input": (1, 1), "L0.mlp": (8, 1), "L1.mlp": (8, 1), "unembed": (4, 1)},
        2,
    ),
    Entry(
        "checkpointed reentrant",
        lambda: m.Checkpointed(True),
        lambda: floats(6),
        {"input": (1, 1), "L0.mlp": (8, 1), "L1.mlp": (8, 1), "unembed": (4, 1)},
        2,
        twin=m.Checkpointed,
    ),
    Entry("numpy", m.Numpy, lambda: floats(6), {}, problems=("numpy", "made by no recorded call")),
    Entry("torchscript", m.Scripted, lambda: floats(6), {"input": (1, 1), "L0.mlp": (8, 1), "unembed": (4, 1)}),
]
