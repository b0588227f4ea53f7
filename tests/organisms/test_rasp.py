"""Programs mean what they say, and their networks compute them."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from random import Random
from typing import Any

import pytest
import torch

import cutaway as cw
from cutaway import organisms
from cutaway.errors import ModelError
from cutaway.organisms import rasp
from cutaway.organisms.rasp import PROGRAMS, Program, interpret
from cutaway.organisms.rasp.compile import compile_program
from cutaway.organisms.rasp.language import is_numerical

every = pytest.mark.parametrize("name", PROGRAMS)
EXHAUSTIVE = 1500  # so many inputs are all tried, of more a sample
PARTNER = {")": "(", "]": "["}


def everywhere(answer: Callable[[list[str]], Any]) -> Callable[[list[str]], list[Any]]:
    return lambda row: [answer(row)] * len(row)


def each(answer: Callable[[list[str], int], Any]) -> Callable[[list[str]], list[Any]]:
    return lambda row: [answer(row, place) for place in range(len(row))]


def parsed(brackets: list[str]) -> str:
    """T for well nested brackets, P for what can be completed, F for the rest: a stack."""
    stack: list[str] = []
    for bracket in brackets:
        if bracket not in PARTNER:
            stack.append(bracket)
        elif not stack or stack.pop() != PARTNER[bracket]:
            return "F"
    return "P" if stack else "T"


def shuffled(brackets: list[str]) -> str:
    kinds = [parsed([bracket for bracket in brackets if bracket in pair]) for pair in ("()", "[]")]
    return min(kinds)  # F before P before T


def following(row: list[str], place: int) -> str | None:
    before = [other for other in range(place) if row[other] == row[place]]
    return row[before[-1] + 1] if before else None


# Each behaviour once more, in plain Python.
ORACLES: dict[str, Callable[[list[str]], list[Any]]] = {
    "reverse": lambda row: row[::-1],
    "shift-1": lambda row: [None, *row[:-1]],
    "shift-2": lambda row: ["-", "-", *row][: len(row)],
    "rotate": lambda row: [*row[1:], row[0]],
    "swap-pairs": each(lambda row, place: row[place ^ 1] if place ^ 1 < len(row) else None),
    "first-token": everywhere(lambda row: row[0]),
    "last-token": everywhere(lambda row: row[-1]),
    "successor": lambda row: [{"a": "b", "b": "c", "c": "d", "d": "a"}[token] for token in row],
    "histogram": lambda row: [row.count(token) for token in row],
    "double-histogram": each(lambda row, place: sum(count == row.count(row[place]) for count in Counter(row).values())),
    "most-frequent": everywhere(lambda row: max(sorted(set(row)), key=row.count)),
    "unique-count": everywhere(lambda row: len(set(row))),
    "first-place": lambda row: [row.index(token) for token in row],
    "seen-before": each(lambda row, place: row[place] in row[:place]),
    "induction": each(following),
    "sort": sorted,
    "sort-unique": sorted,
    "rank": lambda row: [sum(other < token for other in row) for token in row],
    "maximum": everywhere(max),
    "running-maximum": each(lambda row, place: max(row[: place + 1])),
    "is-sorted": everywhere(lambda row: row == sorted(row)),
    "length": everywhere(len),
    "count-a": everywhere(lambda row: row.count("a")),
    "balance": everywhere(lambda row: row.count("a") - row.count("b")),
    "parity": everywhere(lambda row: row.count("1") % 2),
    "running-parity": each(lambda row, place: row[: place + 1].count("1") % 2),
    "proportion": everywhere(lambda row: row.count("a") / len(row)),
    "frac-prevs": each(lambda row, place: row[: place + 1].count("a") / (place + 1)),
    "majority": everywhere(
        lambda row: ("less", "even", "more")[1 + (row.count("1") > row.count("0")) - (row.count("1") < row.count("0"))]
    ),
    "same-as-before": each(lambda row, place: place > 0 and row[place] == row[place - 1]),
    "adjacent-pairs": everywhere(lambda row: sum(one == two for one, two in itertools.pairwise(row))),
    "detect-ab": each(lambda row, place: row[max(place - 1, 0) : place + 1] == ["a", "b"]),
    "contains-ab": everywhere(lambda row: "ab" in "".join(row)),
    "palindrome": everywhere(lambda row: row == row[::-1]),
    "dyck-1": each(lambda row, place: parsed(row[: place + 1])),
    "shuffle-dyck-2": each(lambda row, place: shuffled(row[: place + 1])),
    "dyck-2": each(lambda row, place: parsed(row[: place + 1])),
}


def inputs(program: Program, length: int) -> list[list[str]]:
    """All inputs of a length, or a sample where they are many."""
    if program.distinct:
        return [list(row) for row in itertools.permutations(program.vocabulary, length)]
    if len(program.vocabulary) ** length <= EXHAUSTIVE:
        return [list(row) for row in itertools.product(program.vocabulary, repeat=length)]
    drawn = [program.input(Random(seed), length) for seed in range(150)]
    return drawn + [Random(seed).choices(program.vocabulary, k=length) for seed in range(150)]


def coded(values: list[Any], outputs: tuple[Any, ...], numerical: bool) -> list[list[float]]:
    return [[float(value)] if numerical else [float(value == output) for output in outputs] for value in values]


def test_listing_programs_loads_no_torch() -> None:
    code = "import sys; from cutaway import organisms; organisms.programs(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_programs_are_many_and_apart_from_the_bundled_organisms() -> None:
    assert len(organisms.programs()) >= 25
    assert organisms.programs() == tuple(f"rasp:{name}" for name in PROGRAMS)
    assert not set(organisms.programs()) & set(organisms.names())
    assert set(ORACLES) == set(PROGRAMS)


@every
def test_the_interpreter_does_what_the_behaviour_says(name: str) -> None:
    program = PROGRAMS[name]
    for length in range(1, program.length + 1):
        for row in inputs(program, length)[::7]:
            found = interpret(program.output, row, causal=program.causal)
            assert found == pytest.approx(ORACLES[name](row)), row


@every
@torch.no_grad()
def test_the_network_computes_the_program_at_every_length(name: str) -> None:
    program = PROGRAMS[name]
    made = compile_program(program.output, program.vocabulary, program.length, causal=program.causal)
    numerical = is_numerical(program.output)
    ids = {token: place for place, token in enumerate(program.vocabulary, start=1)}
    for length in range(1, program.length + 1):
        rows = inputs(program, length)
        found = made.module(torch.tensor([[0, *(ids[token] for token in row)] for row in rows]))[:, 1:]
        meant = [interpret(program.output, row, causal=program.causal) for row in rows]
        wanted = torch.tensor([coded(values, made.outputs, numerical) for values in meant])
        assert float((found - wanted).abs().max()) <= 1e-4, length


@every
def test_an_organism_is_an_ordinary_network_with_pairs(name: str) -> None:
    organism = organisms.load(f"rasp:{name}")
    pairs, again = organism.pairs(12, seed=3), organism.pairs(12, seed=3)
    assert torch.equal(pairs.clean, again.clean) and torch.equal(pairs.corrupted, again.corrupted)
    assert not torch.equal(pairs.clean, organism.pairs(12, seed=4).clean)
    assert pairs.clean.shape == pairs.corrupted.shape == (12, PROGRAMS[name].length)
    assert bool((pairs.clean[:, 0] == 0).all()) and organism.vocabulary[0] == "<bos>"
    assert int(pairs.clean.max()) < len(organism.vocabulary)
    assert pairs.correct is pairs.wrong is pairs.position is None
    with torch.no_grad():
        apart = (organism.module(pairs.clean) - organism.module(pairs.corrupted)).flatten(1).abs().amax(1)
    assert (float(apart.max()) == 0) if name == "length" else bool((apart > 0.02).all())
    assert organism.truth.figures["outputs"] and organism.truth.mechanism


def test_the_network_opens_by_name_and_reads_text() -> None:
    trace = cw.open("rasp:reverse").record("<bos> a b b d")
    assert trace.logits[0, 1:].argmax(-1).tolist() == [3, 1, 1, 0]
    assert {part.name: part.count for part in trace.lift().components()} == {
        "embed": 1, "pos_embed": 1, "L0.attn": 2, "L0.mlp": 42, "L1.attn": 2, "L1.mlp": 42, "L2.attn": 2, "L2.mlp": 42,
        "unembed": 4,
    }  # fmt: skip


def test_an_untrained_control_is_another_network_of_the_same_shape() -> None:
    state = torch.get_rng_state()
    control, again = (organisms.load("rasp:sort", trained=False) for _ in range(2))
    assert torch.equal(state, torch.get_rng_state())
    made = organisms.load("rasp:sort").module.state_dict()
    assert control.truth is None
    assert {key: value.shape for key, value in control.module.state_dict().items()} == {
        key: value.shape for key, value in made.items()
    }
    pairs = zip(control.module.parameters(), again.module.parameters(), strict=True)
    assert all(torch.equal(one, two) for one, two in pairs)
    assert not torch.equal(control.module.embed.weight, made["embed.weight"])


def test_distractors_share_the_weights_and_change_no_output() -> None:
    alone, crowded = organisms.load("rasp:sort"), organisms.load("rasp:sort+maximum+is-sorted")
    pairs = alone.pairs(20, 1)
    with torch.no_grad():
        torch.testing.assert_close(alone.module(pairs.clean), crowded.module(pairs.clean), rtol=0, atol=1e-6)
    assert len(crowded.truth.edges) == len(alone.truth.edges)
    spare = set(crowded.truth.figures["parts"]) - set(crowded.truth.nodes)
    assert {"L0.attn.h0", "L0.attn.h1"} <= spare


def test_a_program_of_ones_own() -> None:
    """Which letters stand between two equal ones; its parts get their names from the expression."""
    before = rasp.aggregate(
        rasp.select(rasp.indices, rasp.indices, lambda key, query: key == query - 1), rasp.tokens, default="-"
    )
    after = rasp.aggregate(
        rasp.select(rasp.indices, rasp.indices, lambda key, query: key == query + 1), rasp.tokens, default="+"
    )
    between = rasp.sequence_map(lambda one, two: one == two, before, after, name="between")
    made = compile_program(between, "ab", 4)
    assert interpret(between, "abab") == [False, True, True, False]
    assert made.parts == {"L0.attn.h0": "aggregate", "L0.attn.h1": "aggregate 2", "L0.mlp": "between"}
    out = made.module(torch.tensor([[0, 1, 2, 1, 2]]))[0, 1:]
    assert [made.outputs[place] for place in out.argmax(-1).tolist()] == [False, True, True, False]


def test_what_cannot_be_compiled_is_refused() -> None:
    share = rasp.aggregate(rasp.select(rasp.tokens, rasp.tokens, lambda key, query: True),
                           rasp.map(lambda token: token == "a", rasp.tokens, numerical=True), name="share")  # fmt: skip
    with pytest.raises(ValueError, match="select takes categories and 'share' is numerical"):
        rasp.select(share, rasp.tokens, lambda key, query: True)
    with pytest.raises(ValueError, match="sequence_map takes categories"):
        rasp.sequence_map(lambda one, two: one, share, rasp.tokens)
    before = rasp.aggregate(rasp.select(rasp.indices, rasp.indices, lambda key, query: key < query - 1), rasp.tokens,
                            name="before")  # fmt: skip
    with pytest.raises(ValueError, match="takes the mean of the categories"):
        interpret(before, "abcd")
    with pytest.raises(ValueError, match="'before' may have no value where 'share of width' selects by it; give it"):
        compile_program(rasp.selector_width(rasp.select(before, rasp.tokens, lambda key, query: True)), "ab", 3)
    with pytest.raises(KeyError, match="no program is called 'nothing'"):
        organisms.load("rasp:nothing")
    with pytest.raises(ValueError, match="for other inputs"):
        organisms.load("rasp:reverse+dyck-1")
    with pytest.raises(ModelError, match="There is no organism 'rasp:nothing'"):
        cw.open("rasp:nothing")
