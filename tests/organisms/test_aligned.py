"""Networks aligned to programs: the programs compute what they say, and the networks do so by the named edges."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from statistics import median

import pytest
import torch

import cutaway as cw
from cutaway import organisms
from cutaway.attribution.edges import EdgeGraph
from cutaway.claims.statistics import auroc
from cutaway.organisms import training
from cutaway.organisms.interchange import PROGRAMS, recipe_named
from cutaway.organisms.interchange.alignment import tables
from cutaway.organisms.interchange.network import READERS, WRITERS, interchanged
from cutaway.organisms.interchange.program import IGNORED

sys.path.insert(0, str(Path(__file__).parent))
from ablation import all_edges, effects

BUNDLED = organisms.aligned()
Tokens = list[int]  # the start, 0, and letters


def mirrored(tokens: Tokens) -> Tokens:
    return [0, *reversed(tokens[1:])]


def counts(tokens: Tokens) -> Tokens:
    return [tokens.count(token) for token in tokens]


def sign(number: int) -> int:
    return (number > 0) - (number < 0)


def only(found: list[int]) -> int | None:
    return found[0] if len(found) == 1 else None


def most_frequent(tokens: Tokens) -> list[int | None]:
    (first, most), *others = Counter(tokens).most_common()
    tied = others and others[0][1] == most
    return [None if tied else first] * len(tokens)


def follower(tokens: Tokens, place: int) -> int | None:
    before = [0, *tokens[:-1]]
    return only([tokens[at] for at in range(place + 1) if before[at] == tokens[place]])


# What each program computes, in plain Python; None where nothing is asked.
PLAIN: dict[str, Callable[[Tokens], list[int | None]]] = {
    "reverse": lambda t: [token % 3 for token in mirrored(t)],
    "majority": lambda t: [sign(sum(1 if x in (1, 2) else -1 for x in t[: i + 1])) + 1 for i in range(len(t))],
    "repeat": lambda t: [int(i == 0 or t[i - 1] == t[i]) for i in range(len(t))],
    "most-frequent": most_frequent,
    "palindrome": lambda t: [int(mirrored(t) != t)] * len(t),
    "sum": lambda t: [(t[1] + t[2]) % 4] * len(t),
    "spread": lambda t: [max(t) - min(t[1:])] * len(t),
    "induction": lambda t: [follower(t, place) for place in range(len(t))],
}


def nothing(name: str, n: int) -> torch.Tensor:
    return torch.zeros(n, len(PROGRAMS[name].dependencies()), dtype=torch.bool)


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_computes_what_it_says(name: str) -> None:
    program = PROGRAMS[name]
    tokens = program.draw(30, torch.Generator().manual_seed(5))
    got, _ = program.run(tokens, tokens, nothing(name, 30))
    for row, outputs in zip(tokens.tolist(), got.tolist(), strict=True):
        assert outputs == [IGNORED if value is None else value for value in PLAIN[name](row)], row
    wanted = got[got != IGNORED]
    assert 0 <= int(wanted.min()) and int(wanted.max()) < program.classes[0]


@pytest.mark.parametrize("name", PROGRAMS)
def test_exchanging_all_that_reads_the_tokens_gives_the_source(name: str) -> None:
    program, generator = PROGRAMS[name], torch.Generator().manual_seed(6)
    inputs, source = program.draw(20, generator), program.draw(20, generator)
    from_tokens = torch.tensor([writer == "tokens" for writer, _, _ in program.dependencies()])
    for swapped, like in ((from_tokens.expand(20, -1), source), (nothing(name, 20), inputs)):
        for got, want in zip(
            program.run(inputs, source, swapped), program.run(like, like, nothing(name, 20)), strict=True
        ):
            assert torch.equal(got, want)


@pytest.mark.parametrize("name", PROGRAMS)
def test_behaviour_and_distractor_share_no_node(name: str) -> None:
    program = PROGRAMS[name]
    ours, others = (
        {end.partition(" -> ")[0] for end in program.edges(distractor)} - {"embed", "pos_embed"}
        for distractor in (False, True)
    )
    assert ours and others and not ours & others
    assert {edge for _, _, edges in program.dependencies() for edge in edges} <= {
        *program.edges(), *program.edges(True)
    }  # fmt: skip


@pytest.mark.parametrize("name", ["reverse", "induction"])
def test_interchanged_is_the_network_with_edges_exchanged(name: str) -> None:
    organism, program = organisms.load(f"aligned:{name}", trained=False), PROGRAMS[name]
    generator = torch.Generator().manual_seed(1)
    inputs, source = program.draw(5, generator), program.draw(5, generator)
    whole = torch.ones(5, len(READERS), len(WRITERS), dtype=torch.bool)
    with torch.no_grad():
        for edges, like in ((~whole, inputs), (whole, source)):
            got = interchanged(organism.module, inputs, source, edges)
            torch.testing.assert_close(got, organism.module(like), atol=1e-5, rtol=1e-4)
    named, others = tables(program)
    assert not (named.any(0) & others).any()


def test_some_networks_are_bundled() -> None:
    assert len(BUNDLED) >= 8
    assert all(organisms.is_name(name) for name in BUNDLED)
    with pytest.raises(KeyError, match="the programs are reverse"):
        organisms.load("aligned:nothing")


@pytest.mark.parametrize("name", BUNDLED)
def test_the_network_computes_its_program_under_exchange(name: str) -> None:
    organism = organisms.load(name)
    found = training.measure(organisms._recipe(name), organism.module, 11, 400)
    for figure in ("accuracy", "interchange_accuracy", "strict_accuracy", "distractor_accuracy"):
        assert found[figure] >= 0.93, figure
    assert found["logit_difference"] >= 5 and found["corrupted_logit_difference"] <= -5
    assert organism.truth.edges == tuple(PROGRAMS[name.removeprefix("aligned:")].edges())
    assert {edge.split(" -> ")[0] for edge in organism.truth.edges} == set(organism.truth.nodes)


def _aurocs(name: str, method: str) -> tuple[float, float]:
    """The AUROC of a method's scores over all edges, and its passes."""
    organism = organisms.load(name)
    pairs, net = organism.pairs(100, 1), cw.open(name)
    graph = EdgeGraph(net.record(pairs.clean), net.record(pairs.corrupted))
    metric = cw.logit_difference(pairs.correct, pairs.wrong, pairs.position)
    scores = cw.score(graph, metric, method=method)
    hidden, known = set(organism.truth.unseen), set(organism.truth.edges)
    names = {graph.edge_name(row, column): float(scores.edges[row, column, 0]) for row, column in graph.edges}
    names = {edge: value for edge, value in names.items() if edge not in hidden}
    return auroc([abs(value) for value in names.values()], [edge in known for edge in names]), scores.passes


@pytest.mark.slow
def test_ten_passes_find_the_edges_of_aligned_networks() -> None:
    found = [_aurocs(name, "eap-ig") for name in BUNDLED]
    assert all(passes <= 10 for _, passes in found)
    assert min(value for value, _ in found) >= 0.95
    assert median(value for value, _ in found) >= 0.99


@pytest.mark.slow
@pytest.mark.parametrize("name", ["aligned:majority", "aligned:spread"])
def test_cutting_edges_shows_the_program(name: str) -> None:
    """By the tests' own oracle: every edge of the program matters more than every other one."""
    organism = organisms.load(name)
    edges = [edge for edge in all_edges(organism) if edge not in organism.truth.unseen]
    found = {edge: abs(effect["resample"]) for edge, effect in effects(organism, organism.pairs(30, 9), edges)}
    ours = [found.pop(edge) for edge in organism.truth.edges if edge in found]
    assert min(ours) > max(found.values())


def test_training_is_reproducible() -> None:
    recipe = recipe_named("reverse")
    (first, figures), (second, _), (other, _) = (training.fit(recipe, seed, 3, None) for seed in (3, 3, 4))
    assert figures["steps"] == 3
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(value, value.half().float()) for value in first.parameters())


@pytest.mark.slow
def test_a_network_is_aligned_from_scratch() -> None:
    module, figures = organisms.train("aligned:reverse", steps=300)
    assert min(figures[key] for key in ("accuracy", "interchange_accuracy", "strict_accuracy")) >= 0.95
    assert sum(parameter.numel() for parameter in module.parameters()) < 20_000
