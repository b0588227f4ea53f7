"""Strict interchange intervention training: a network comes to compute a program with the nodes that the program names.

In every example some edges carry what they carry on another input. Where they stand for a dependency of the program the
outputs must be those of the program with the same dependency exchanged (Geiger et al. 2022, "Inducing causal structure
for interpretable neural networks", arXiv:2112.00826); where they stand for none nothing may change (strictness; Gupta
et al. 2024, "InterpBench", arXiv:2407.14494). Both papers exchange nodes. Edges are exchanged here, a node's being all
that leave it, so that the edges of the program are the network's and not only its nodes.
"""

from __future__ import annotations

from functools import cache, partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..organism import Pairs
from ..training import Masks, Recipe, Schedule
from .network import READERS, WRITERS, AlignedNet, interchanged
from .program import IGNORED, Program


class Exchange(NamedTuple):
    """Inputs and sources (n, length), and the edges (n, readers, writers) that carry what they carry on the source."""

    inputs: Tensor
    source: Tensor
    edges: Tensor


def recipe(program: Program) -> Recipe:
    """How the network of a program is made and trained."""
    outputs = tuple(f"{program.name} {value}" for value in range(program.classes[0]))
    return Recipe(
        name=f"aligned-{program.name}",
        vocabulary=("<start>", *"abcdefghij"[: program.letters]),
        outputs=outputs + tuple(f"distractor {value}" for value in range(program.classes[1])),
        behaviour_outputs=program.classes[0],
        behaviour=program.behaviour,
        description=f"A dense two-layer transformer trained to compute '{program.name}' with known heads and MLPs.",
        build=partial(AlignedNet, 1 + program.letters, program.length, sum(program.classes), program.causal),
        masks=_nothing,
        examples=partial(examples, program),
        score=(partial(loss, program), partial(figures, program)),
        pairs=partial(pairs, program),
        schedule=Schedule(steps=program.steps, batch=64, rate=5e-3, decay=0.01, stored=torch.float16),
    )


def _nothing(module: nn.Module) -> Masks:
    return {}


@cache
def tables(program: Program) -> tuple[Tensor, Tensor]:
    """(dependencies, readers, writers): the edges of each; (readers, writers): the edges that stand for nothing."""
    listed = [edges for _, _, edges in program.dependencies()]
    table = torch.zeros(len(listed), len(READERS), len(WRITERS), dtype=torch.bool)
    for row, edges in zip(table, listed, strict=True):
        for edge in edges:
            writer, reader = edge.split(" -> ")
            row[READERS.index(reader), WRITERS.index(writer)] = True
    others = ~table.any(0)
    others[:, WRITERS.index("pos_embed")] = False  # the same on every input
    return table, others


def examples(program: Program, n: int, generator: torch.Generator) -> tuple[Exchange, Tensor]:
    """`n` exchanges, and both outputs (n, length, 2) of the program under them."""
    inputs, source = program.draw(n, generator), program.draw(n, generator)
    named, others = tables(program)
    swapped = _dependencies(program, n, generator)
    edges = torch.einsum("nd,drw->nrw", swapped.float(), named.float()) > 0
    targets = torch.stack(program.run(inputs, source, swapped), 2)
    return Exchange(inputs, source, edges | (_strays(n, generator) & others)), targets


def _dependencies(program: Program, n: int, generator: torch.Generator) -> Tensor:
    """(n, dependencies): in each example none, one, all of one variable's, or half of all."""
    listed = program.dependencies()
    one = torch.eye(len(listed), dtype=torch.bool)
    from_one = torch.tensor([[there[0] == here[0] for there in listed] for here in listed])
    chosen = torch.randint(len(listed), (n,), generator=generator)
    half = torch.rand(n, len(listed), generator=generator) < 0.5
    kinds = torch.stack([torch.zeros_like(half), one[chosen], from_one[chosen], half])
    return kinds[torch.randint(4, (n,), generator=generator), torch.arange(n)]


def _strays(n: int, generator: torch.Generator) -> Tensor:
    """(n, readers, writers): in each example none, a writer's or a reader's edges, some, or all."""
    size = (n, len(READERS), len(WRITERS))
    writer = torch.eye(len(WRITERS), dtype=torch.bool)[torch.randint(len(WRITERS), (n,), generator=generator)]
    reader = torch.eye(len(READERS), dtype=torch.bool)[torch.randint(len(READERS), (n,), generator=generator)]
    some = torch.rand(size, generator=generator) < torch.rand(n, 1, 1, generator=generator)
    whole = torch.ones(size, dtype=torch.bool)
    kinds = torch.stack([~whole, whole & writer[:, None, :], whole & reader[:, :, None], some, whole])
    return kinds[torch.randint(len(kinds), (n,), generator=generator), torch.arange(n)]


def loss(program: Program, module: nn.Module, inputs: Exchange, targets: Tensor) -> Tensor:
    """Two cross-entropies under exchange, each over its own outputs."""
    assert isinstance(module, AlignedNet)
    logits, cut = interchanged(module, *inputs).flatten(0, 1), program.classes[0]
    behaviour, distractor = targets.flatten(0, 1).unbind(1)
    return F.cross_entropy(logits[:, :cut], behaviour, ignore_index=IGNORED) + F.cross_entropy(
        logits[:, cut:], distractor, ignore_index=IGNORED
    )


def figures(program: Program, module: nn.Module, inputs: Exchange, targets: Tensor) -> dict[str, float]:
    """Accuracy of the distractor, and of the behaviour at all positions under three kinds of exchange.

    `interchange_accuracy`: one dependency exchanged; `strict_accuracy`: all edges that stand for nothing;
    `all_accuracy`: the mixture that was trained on.
    """
    assert isinstance(module, AlignedNet)
    n, cut = len(inputs.inputs), program.classes[0]
    named, others = tables(program)
    generator = torch.Generator().manual_seed(n)
    one = torch.eye(len(named), dtype=torch.bool)[torch.randint(len(named), (n,), generator=generator)]
    none = torch.zeros_like(one)

    def right(swapped: Tensor, edges: Tensor, output: int) -> float:
        wanted = program.run(inputs.inputs, inputs.source, swapped)[output]
        logits = interchanged(module, inputs.inputs, inputs.source, edges)
        found = (logits[..., :cut] if output == 0 else logits[..., cut:]).argmax(-1)
        return (found == wanted)[wanted != IGNORED].float().mean().item()

    at_one = torch.einsum("nd,drw->nrw", one.float(), named.float()) > 0
    mixed = interchanged(module, *inputs)[..., :cut].argmax(-1)
    counted = targets[..., 0] != IGNORED
    return {
        "interchange_accuracy": right(one, at_one, 0),
        "strict_accuracy": right(none, others.expand(n, -1, -1), 0),
        "all_accuracy": (mixed == targets[..., 0])[counted].float().mean().item(),
        "distractor_accuracy": right(none, torch.zeros(n, *others.shape, dtype=torch.bool), 1),
    }


def pairs(program: Program, n: int, seed: int) -> Pairs:
    """Independent inputs whose outputs at the last position differ: clean, corrupted, and both outputs."""
    generator = torch.Generator().manual_seed(seed)
    kept: list[tuple[Tensor, ...]] = []
    while sum(len(part[0]) for part in kept) < n:
        clean, corrupted = program.draw(2 * n, generator), program.draw(2 * n, generator)
        nothing = torch.zeros(2 * n, len(program.dependencies()), dtype=torch.bool)
        correct, wrong = (program.run(part, part, nothing)[0][:, -1] for part in (clean, corrupted))
        fit = (correct != wrong) & (correct != IGNORED) & (wrong != IGNORED)
        kept.append((clean[fit], corrupted[fit], correct[fit], wrong[fit]))
    clean, corrupted, correct, wrong = (torch.cat(part)[:n] for part in zip(*kept, strict=True))
    return Pairs(clean, corrupted, correct, wrong, program.length - 1)
