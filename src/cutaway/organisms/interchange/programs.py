"""The programs that networks are aligned to: what each variable is, which node holds it and what it is made from."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from .program import IGNORED, Argument, Program, Variable

Function = Callable[..., Tensor]
Draw = Callable[[int, int, int, torch.Generator], Tensor]


def _arguments(*listed: str) -> tuple[Argument, ...]:
    """From "variable.ports": "tokens.kv" is tokens by k and v, "count.in" count into an MLP, "count" into an output."""
    made = []
    for text in listed:
        variable, _, ports = text.partition(".")
        made.append(Argument(variable, ("in",) if ports == "in" else tuple(ports) or ("",)))
    return tuple(made)


def _variable(name: str, node: str, arguments: str, function: Function) -> Variable:
    return Variable(name, node, _arguments(*arguments.split()), function)


def _same(value: Tensor) -> Tensor:
    return value


def _uniform(n: int, letters: int, places: int, generator: torch.Generator) -> Tensor:
    return torch.randint(1, letters + 1, (n, places), generator=generator)


def _uneven(n: int, letters: int, places: int, generator: torch.Generator) -> Tensor:
    """Letters from distributions that differ between inputs, so that all counts are common."""
    weights = torch.rand(n, letters, generator=generator).pow(3) + 0.02
    return 1 + torch.multinomial(weights, places, replacement=True, generator=generator)


def _mirrored(n: int, letters: int, places: int, generator: torch.Generator) -> Tensor:
    """Palindromes, half of them with one letter drawn again."""
    half = _uniform(n, letters, places // 2, generator)
    again = _uniform(n, letters, places, generator)
    place = torch.randint(2 * places, (n, 1), generator=generator)
    return torch.where(torch.arange(places) == place, again, torch.cat([half, half.flip(1)], 1))


def _mirror(tokens: Tensor) -> Tensor:
    """The letters backwards, behind the start."""
    return torch.cat([tokens[:, :1], tokens[:, 1:].flip(1)], 1)


def _before(steps: int) -> Function:
    """The token `steps` places back, or the start."""
    return lambda tokens: tokens[:, (torch.arange(tokens.shape[1]) - steps).clamp(min=0)]


def _at(place: int) -> Function:
    """The token at a place, everywhere."""
    return lambda tokens: tokens[:, place, None].expand_as(tokens)


def _matches(asked: Tensor, tokens: Tensor) -> Tensor:
    """How many tokens are the one asked for at each place."""
    return (asked[:, :, None] == tokens[:, None, :]).sum(2)


def _picked(chosen: Tensor, values: Tensor) -> Tensor:
    """The value at the one place chosen (n, length, places); IGNORED where none or several are."""
    found = (chosen * values[:, None, :]).sum(2)
    return torch.where(chosen.sum(2) == 1, found, IGNORED)


def _most(counts: Tensor, tokens: Tensor) -> Tensor:
    """The token with the largest count; IGNORED where several have it."""
    best = torch.where(counts == counts.amax(1, keepdim=True), tokens, -1)
    token = best.amax(1, keepdim=True)
    return torch.where(((best == token) | (best < 0)).all(1, keepdim=True), token, IGNORED).expand_as(tokens)


def _following(asked: Tensor, previous: Tensor, tokens: Tensor) -> Tensor:
    """The token after the one earlier place of the token asked for; IGNORED where none or several are."""
    match = (asked[:, :, None] == previous[:, None, :]).tril()
    return _picked(match, tokens)


def _of_flags(flags: Tensor) -> Tensor:
    """Twice the number of flags up to a place, less the number of places: above 0 where most are set."""
    return 2 * flags.cumsum(1) - torch.arange(1, flags.shape[1] + 1)


def _distractor(node: str, steps: int = 1) -> tuple[Variable, Variable]:
    """The token some places back, in a node of its own, and the output that tells it."""
    arguments = "positions.q positions.k tokens.v"
    return _variable("back", node, arguments, _before(steps)), _variable("distractor", "logits", "back", _same)


def _program(
    name: str, behaviour: str, drawn: tuple[Draw, int, int], causal: bool, classes: int, steps: int,
    variables: list[Variable], distractor: tuple[Variable, Variable],
) -> Program:  # fmt: skip
    letters, places = drawn[1:]
    own, told = distractor
    return Program(
        name, behaviour, letters, 1 + places, causal, (classes, 1 + letters), steps, partial(_started, *drawn),
        (*variables[:-1], own, variables[-1], told),
    )  # fmt: skip


def _started(draw: Draw, letters: int, places: int, n: int, generator: torch.Generator) -> Tensor:
    """Inputs (n, 1 + places): the start, and letters."""
    return torch.cat([torch.zeros(n, 1, dtype=torch.int64), draw(n, letters, places, generator)], 1)


_V = _variable
_LISTED = (
    _program("reverse", "The model reverses its input and tells each letter's number modulo 3.",
        (_uniform, 6, 6), False, 3, 800, [
            _V("mirrored", "L1.attn.h2", "positions.q positions.k tokens.v", _mirror),
            _V("kind", "L1.mlp", "mirrored.in", lambda letter: letter % 3),
            _V("output", "logits", "kind", _same),
        ], _distractor("L0.attn.h0")),
    _program("majority", "The model tells whether most letters up to each place are a or b.",
        (_uniform, 4, 7), True, 3, 1500, [
            _V("flag", "L0.mlp", "tokens.in", lambda tokens: ((tokens == 1) | (tokens == 2)).long()),
            _V("share", "L1.attn.h1", "flag.v", _of_flags),
            _V("output", "logits", "share", lambda share: share.sign() + 1),
        ], _distractor("L0.attn.h3")),
    _program("repeat", "The model tells whether each letter is the one before.",
        (_uniform, 4, 7), True, 2, 1500, [
            _V("before", "L0.attn.h2", "positions.q positions.k tokens.v", _before(1)),
            _V("same", "L1.mlp", "before.in tokens.in", lambda before, tokens: (before == tokens).long()),
            _V("output", "logits", "same", _same),
        ], _distractor("L1.attn.h1", 2)),
    _program("most-frequent", "The model tells the most frequent letter.",
        (_uneven, 4, 7), False, 5, 2000, [
            _V("matches", "L0.attn.h0", "tokens.q tokens.kv", _matches),
            _V("count", "L0.mlp", "matches.in", _same),
            _V("winner", "L1.attn.h2", "count.k tokens.v", _most),
            _V("output", "logits", "winner", _same),
        ], _distractor("L1.attn.h1")),
    _program("palindrome", "The model tells whether its input reads the same backwards.",
        (_mirrored, 4, 6), False, 2, 1500, [
            _V("mirrored", "L0.attn.h1", "positions.q positions.k tokens.v", _mirror),
            _V("differs", "L0.mlp", "mirrored.in tokens.in", lambda mirror, tokens: (mirror != tokens).long()),
            _V("any", "L1.attn.h0", "differs.v", lambda differs: differs.amax(1, keepdim=True).expand_as(differs)),
            _V("output", "logits", "any", _same),
        ], _distractor("L1.attn.h2")),
    _program("sum", "The model adds the first two letters, modulo 4.",
        (_uniform, 4, 6), False, 4, 1500, [
            _V("first", "L0.attn.h0", "positions.k tokens.v", _at(1)),
            _V("second", "L1.attn.h3", "positions.k tokens.v", _at(2)),
            _V("sum", "L1.mlp", "first.in second.in", lambda first, second: (first + second) % 4),
            _V("output", "logits", "sum", _same),
        ], _distractor("L0.attn.h2")),
    _program("spread", "The model tells how far the last of its letters is from the first in the alphabet.",
        (_uniform, 5, 5), False, 5, 1500, [
            _V("last", "L0.attn.h1", "tokens.kv", lambda tokens: tokens.amax(1, keepdim=True).expand_as(tokens)),
            _V("first", "L0.attn.h2", "tokens.kv",
               lambda tokens: tokens[:, 1:].amin(1, keepdim=True).expand_as(tokens)),
            _V("spread", "L1.mlp", "last.in first.in", lambda last, first: (last - first).clamp(min=0)),
            _V("output", "logits", "spread", _same),
        ], _distractor("L1.attn.h0")),
    _program("induction", "After '... A B ... A' the model predicts B.",
        (_uniform, 8, 9), True, 9, 1500, [
            _V("before", "L0.attn.h0", "positions.q positions.k tokens.v", _before(1)),
            _V("follows", "L1.attn.h1", "tokens.q before.k tokens.v", _following),
            _V("output", "logits", "follows", _same),
        ], _distractor("L1.attn.h2", 2)),
)  # fmt: skip
PROGRAMS = {program.name: program for program in _LISTED}
