"""Zoo entries without Hugging Face: organisms, networks for one trap each, and the plain networks of other files."""

from __future__ import annotations

import torch
import trap_modules as m
from entry import BATCH, Entry, Inputs, floats, ids, layers
from parts import parts
from plain_learning import LEARNING
from plain_recurrent import RECURRENT
from plain_vision import VISION
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

    # The others have a row of a table for each position they were made for.
    tables = {"lengths": name in ("counter", "marks"), "varies": name == "marks"}
    return Entry(f"organism {name}", lambda: organisms.load(name).module, inputs, expected, stream, **tables)


PLAIN: list[Entry] = [
    *VISION,
    *RECURRENT,
    *LEARNING,
    _organism("induction", layers(0, 25, pos_embed=1), 3),
    _organism("indirect-object", layers(32, 36, count=3, pos_embed=1), 7),
    _organism("shapes", parts(7, conv=[7, 7, 9])),
    _organism("counter", parts(10, "embed", rnn=[(7, 16)])),
    _organism("gates", parts(6, mlp=[10, 9])),
    _organism("marks", parts(6, "embed", conv=7, ssm=7), 2),
    _organism("superposition", parts(5, act=1)),
    Entry("mlp", _mlp, lambda: floats(6), parts(4, mlp=[10, 8])),
    Entry("called twice", m.CalledTwice, lambda: floats(6), parts(3, rnn=[(6, 2)])),
    Entry("tied", m.Tied, ids, parts(41, "embed", mlp=16), 2),
    Entry("view writes", m.ViewWrites, lambda: floats(8), {}, batches=False),
    Entry("in place first", m.InPlaceFirst, lambda: floats(6), {}, batches=False),
    Entry("renormed embedding", m.Renormed, ids, parts(4, "embed", act=1)),
    Entry("dropout", lambda: m.Dropped().train(), lambda: floats(6), parts(4, mlp=10)),
    Entry("branching", m.Branching, lambda: floats(6), parts(4, mlp=6)),
    Entry("straight through", m.StraightThrough, lambda: floats(6), parts(4, mlp=[8, 8], act=1)),
    Entry("dict", lambda: m.Returning("dict"), _with_extra, parts(4, "input input1", mlp=8)),
    Entry("dataclass", lambda: m.Returning("dataclass"), lambda: floats(6), parts(4, mlp=8)),
    Entry("tuple", lambda: m.Returning("tuple"), lambda: floats(6), parts(4, mlp=8)),
    Entry("stateful", m.Stateful, lambda: floats(6), parts(4, mlp=8)),
    Entry("autocast and no_grad", m.Modes, lambda: floats(6), parts(4, mlp=[8, 8])),
    Entry("checkpointed", m.Checkpointed, lambda: floats(6), parts(4, mlp=[8, 8]), 2),
    Entry(
        "checkpointed reentrant",
        lambda: m.Checkpointed(True),
        lambda: floats(6),
        parts(4, mlp=[8, 8]),
        2,
        twin=m.Checkpointed,
    ),
    Entry("numpy", m.Numpy, lambda: floats(6), {}, problems=("numpy", "made by no recorded call")),
    Entry("torchscript", m.Scripted, lambda: floats(6), parts(4, mlp=8)),
]
