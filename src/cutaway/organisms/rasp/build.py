"""A bundled program to an organism: its compiled network, its circuit as truth, and inputs to compare."""

from __future__ import annotations

from random import Random

import torch
from torch import Tensor

from ..organism import Organism, Pairs, Truth
from .compile import BEGIN, Compiled, compile_program
from .interpret import interpret
from .language import is_numerical
from .programs import PROGRAMS, Program

_TRIES = 50
_HOW_KNOWN = (
    "Compiled: every weight was put where it is by the compiler. A component is in the circuit if it writes a residual "
    "direction that the output, or what the output needs, reads; an edge if its reader reads a direction that its "
    "writer writes."
)


def build(name: str, *, trained: bool = True) -> Organism:
    """The organism of a program, `NAME` or `NAME+OTHER+…` with other programs as distractors in the same weights.

    With `trained=False` the same architecture with random weights and no truth: a control. KeyError for a program that
    is not bundled, ValueError for distractors that are for other inputs.
    """
    program, *others = (_program(part) for part in name.split("+"))
    for other in others:
        if (other.vocabulary, other.causal) != (program.vocabulary, program.causal):
            raise ValueError(f"'{other.name}' is for other inputs than '{program.name}', so it is no distractor for it")
    made = compile_program(
        program.output, program.vocabulary, program.length, causal=program.causal,
        distractors=[other.output for other in others],
    )  # fmt: skip
    if not trained:
        _randomise(made)
    beside = f", with {' and '.join(other.name for other in others)} beside it" if others else ""
    kind = "causal transformer" if program.causal else "transformer"
    return Organism(
        f"rasp:{name}", made.module, (BEGIN, *program.vocabulary), program.behaviour,
        _truth(made, is_numerical(program.output)) if trained else None,
        f"A {len(made.module.layers)}-layer {kind} compiled from the RASP program '{program.name}'{beside}.",
        lambda n, seed: _pairs(program, n, seed),
    )  # fmt: skip


def encode(program: Program, rows: list[list[str]]) -> Tensor:
    """Inputs of one length as token ids (n, 1 + length), the begin token first."""
    ids = {token: place for place, token in enumerate(program.vocabulary, start=1)}
    return torch.tensor([[0, *(ids[token] for token in row)] for row in rows])


def _program(name: str) -> Program:
    if name not in PROGRAMS:
        raise KeyError(f"no program is called {name!r}; the bundled ones are {', '.join(PROGRAMS)}")
    return PROGRAMS[name]


def _truth(made: Compiled, numerical: bool) -> Truth:
    circuit = made.circuit
    needed = {part: what for part, what in made.parts.items() if part in circuit.nodes}
    outputs = made.outputs
    return Truth(
        circuit.nodes, circuit.edges, "; ".join(f"{part}: {what}" for part, what in needed.items()) + ".", _HOW_KNOWN,
        {
            "outputs": [str(value) for value in outputs], "behaviour_outputs": len(outputs), "numerical": numerical,
            "residual": list(made.layout.labels), "parts": made.parts, "unseen": list(circuit.unseen),
        },
    )  # fmt: skip


def _randomise(made: Compiled) -> None:
    """Random weights in place of the compiled ones, always the same."""
    generator = torch.Generator().manual_seed(1234)
    for parameter in made.module.parameters():
        parameter.data.normal_(0, max(parameter.shape[-1], 1) ** -0.5, generator=generator)


def _pairs(program: Program, n: int, seed: int) -> Pairs:
    """Inputs one token short of the greatest length, and independent ones that have another output, if there are."""
    random = Random(seed)
    clean, corrupted = [], []
    for _ in range(n):
        row = other = program.input(random, program.length - 1)
        wanted = interpret(program.output, row, causal=program.causal)
        for _ in range(_TRIES):
            other = program.input(random, program.length - 1)
            if interpret(program.output, other, causal=program.causal) != wanted:
                break
        clean.append(row)
        corrupted.append(other)
    return Pairs(encode(program, clean), encode(program, corrupted), None, None, None)
