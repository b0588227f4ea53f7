"""The bundled programs. Expressions that several programs use stand first; then the table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from .language import (
    Aggregate,
    Map,
    Selector,
    Sequence,
    aggregate,
    constant,
    indices,
    map,
    select,
    selector_width,
    sequence_map,
    tokens,
)


@dataclass(frozen=True)
class Program:
    """A program with the inputs it is for: up to `length` tokens of the vocabulary, no token twice where `distinct`.

    Pairs are one token shorter: at full length, a count that was taken away would be read as the greatest one, and be
    right by accident. `draw` gives inputs on which the answers differ often enough; without it tokens are drawn alike.
    """

    name: str
    behaviour: str
    vocabulary: tuple[str, ...]
    length: int
    output: Sequence
    causal: bool = False
    distinct: bool = False
    draw: Callable[[Random, int], list[str]] | None = None

    def input(self, random: Random, length: int) -> list[str]:
        """A random input of a length."""
        if self.distinct:
            return random.sample(self.vocabulary, length)
        return self.draw(random, length) if self.draw is not None else random.choices(self.vocabulary, k=length)


LETTERS, DIGITS, BITS, BRACKETS = tuple("abcd"), tuple("1234"), tuple("01"), tuple("()[]")
CLOSING = {")": "(", "]": "["}

everything = select(tokens, tokens, lambda key, query: True)
equal = select(tokens, tokens, lambda key, query: key == query)
length = selector_width(everything, name="length")
histogram = selector_width(equal, name="histogram")
placed = sequence_map(lambda token, place: (token, place), tokens, indices, name="token and place")


def back(steps: int) -> Selector:
    """The position so many places before."""
    return select(indices, indices, lambda key, query: key == query - steps)


def number_where(sequence: Sequence, holds: Callable[[Any], bool], name: str) -> Map:
    """How many positions hold a value of which something is true; of those up to here in a causal network."""
    return selector_width(select(sequence, constant(0), lambda key, query: holds(key)), name=name)


def share_where(sequence: Sequence, holds: Callable[[Any], bool], name: str) -> Aggregate:
    """The share of positions that hold a value of which something is true."""
    return aggregate(everything, map(lambda value: float(holds(value)), sequence, numerical=True, name=f"is {name}"),
                     name=f"share of {name}")  # fmt: skip


def at(place: Sequence, name: str) -> Aggregate:
    """The token at a place."""
    return aggregate(select(indices, place, lambda key, query: key == query), tokens, name=name)


opposite = sequence_map(lambda count, place: count - 1 - place, length, indices, name="opposite place")
reverse = at(opposite, "reverse")
before = aggregate(back(1), tokens, default="-", name="token before")
same_as_before = sequence_map(lambda token, other: token == other, tokens, before, name="same as before")
pattern = sequence_map(lambda token, other: other + token == "ab", tokens, before, name="ab ends here")
descent = sequence_map(lambda token, other: token < other != "-", tokens, before, name="descent")
is_first = map(
    lambda count: count == 0,
    selector_width(select(placed, placed, lambda key, query: key[0] == query[0] and key[1] < query[1]), name="earlier"),
    name="is first",
)
first_of_count = sequence_map(lambda count, first: (count, first), histogram, is_first, name="count and is first")
counted = sequence_map(lambda count, token: (-count, token), histogram, tokens, name="count and token")
better = selector_width(select(counted, counted, lambda key, query: key < query), name="number of better ones")
smaller = selector_width(select(tokens, tokens, lambda key, query: key < query), name="number of smaller ones")
greater = selector_width(select(tokens, tokens, lambda key, query: key > query), name="number of greater ones")
order = selector_width(select(placed, placed, lambda key, query: key < query), name="place in order")
occurrence = sequence_map(lambda token, count: (token, count), tokens, histogram, name="token and occurrence")
occurred = aggregate(back(1), occurrence, default=("-", 0), name="token and occurrence before")


def by_rank(rank: Sequence, places: Sequence, name: str) -> Aggregate:
    """The token whose rank is the place."""
    return aggregate(select(rank, places, lambda key, query: key == query), tokens, name=name)


def running_maximum() -> Map:
    """The greatest token up to here, from how often each has occurred."""
    twos, threes = (number_where(tokens, token.__eq__, f"number of {token}") for token in "23")
    return sequence_map(
        lambda two, three: "3" if three else "2" if two else "1", twos, threes, name="greatest up to here"
    )


def depth_of(opening: str, closing: str) -> Map:
    """How many brackets of some kinds are open, in a causal network."""
    counts = [number_where(tokens, kinds.__contains__, f"number of {kinds}") for kinds in (opening, closing)]
    return sequence_map(lambda opened, closed: opened - closed, *counts, name=f"depth of {opening}")


def verdict(wrong: Sequence, closed: Sequence, name: str) -> Map:
    """F where something has been wrong up to here, else T where all is closed and P where it is not yet."""
    count = number_where(wrong, bool, "number of wrong ones")
    return sequence_map(lambda bad, done: "F" if bad else "T" if done else "P", count, closed, name=name)


def dyck_one() -> Map:
    """One kind of brackets: never more closed than opened, as many in the end."""
    depth = depth_of("(", ")")
    below = map(lambda value: value < 0, depth, name="below zero")
    return verdict(below, map(lambda value: value == 0, depth, name="zero"), "dyck-1")


def shuffle_dyck() -> Map:
    """Two kinds of brackets, each balanced for itself."""
    depths = depth_of("(", ")"), depth_of("[", "]")
    wrong = sequence_map(lambda one, two: min(one, two) < 0, *depths, name="one is below")
    closed = sequence_map(lambda one, two: one == two == 0, *depths, name="both are zero")
    return verdict(wrong, closed, "shuffle-dyck-2")


def dyck_two() -> Map:
    """Two kinds of brackets, well nested: a closing bracket is compared with the bracket before it on its own level."""
    depth = depth_of("([", ")]")
    level = sequence_map(lambda token, value: value + (token in CLOSING), tokens, depth, name="level")
    count = selector_width(select(level, level, lambda key, query: key == query), name="count on level")
    spot = sequence_map(lambda one, two: (one, two), level, count, name="level and count")
    partner = aggregate(
        select(spot, spot, lambda key, query: key == (query[0], query[1] - 1)), tokens, default="-", name="partner"
    )
    wrong = sequence_map(
        lambda token, other: token in CLOSING and CLOSING[token] != other, tokens, partner, name="wrong partner"
    )
    return verdict(wrong, map(lambda value: value == 0, depth, name="zero"), "dyck-2")


def palindrome() -> Map:
    """Whether all tokens are those of the reverse."""
    same = sequence_map(lambda one, two: float(one == two), tokens, reverse, numerical=True, name="same as opposite")
    return map(lambda share: share == 1, aggregate(everything, same, name="share of same"), name="palindrome")


def _mirrored(random: Random, length: int) -> list[str]:
    """A palindrome, half of the times with one letter replaced."""
    drawn = random.choices(LETTERS, k=length)
    made = [drawn[min(place, length - 1 - place)] for place in range(length)]
    if random.random() < 0.5:
        made[random.randrange(length)] = random.choice(LETTERS)
    return made


def _nested(kinds: str) -> Callable[[Random, int], list[str]]:
    """Brackets of some kinds that are mostly well nested."""

    def draw(random: Random, length: int) -> list[str]:
        made: list[str] = []
        stack: list[str] = []
        for _ in range(length):
            if random.random() < 0.15:
                made.append(random.choice(kinds))
            elif stack and random.random() < 0.5:
                made.append(stack.pop())
            else:
                place = 2 * random.randrange(len(kinds) // 2)
                made.append(kinds[place])
                stack.append(kinds[place + 1])
        return made

    return draw


def _few(vocabulary: tuple[str, ...]) -> Callable[[Random, int], list[str]]:
    """Inputs that are in order half of the times."""

    def draw(random: Random, length: int) -> list[str]:
        made = random.choices(vocabulary, k=length)
        return sorted(made) if random.random() < 0.5 else made

    return draw


_TABLE = (
    Program("reverse", "Each position gives the token at the mirrored position.", LETTERS, 6, reverse),
    Program("shift-1", "Each position gives the token before it, the first one nothing.", LETTERS, 6,
            aggregate(back(1), tokens, name="shift-1")),
    Program("shift-2", "Each position gives the token two places before it, or '-'.", LETTERS, 6,
            aggregate(back(2), tokens, default="-", name="shift-2")),
    Program("rotate", "Each position gives the next token, the last one the first.", LETTERS, 6,
            at(sequence_map(lambda count, place: (place + 1) % max(count, 1), length, indices, name="next"), "rotate")),
    Program("swap-pairs", "The tokens of each pair of neighbours change places.", LETTERS, 6,
            at(map(lambda place: place ^ 1, indices, name="neighbour"), "swap-pairs")),
    Program("first-token", "Every position gives the first token.", LETTERS, 6, at(constant(0), "first-token")),
    Program("last-token", "Every position gives the last token.", LETTERS, 6,
            at(map(lambda count: count - 1, length, name="last place"), "last-token")),
    Program("successor", "Each position gives the letter that follows its own in the alphabet, 'a' after the last.",
            LETTERS, 6, map(lambda token: LETTERS[(LETTERS.index(token) + 1) % 4], tokens, name="successor")),
    Program("histogram", "Each position gives how often its token occurs.", LETTERS, 6, histogram),
    Program("double-histogram", "Each position gives how many different tokens occur as often as its own.", LETTERS, 6,
            selector_width(select(first_of_count, histogram, lambda key, query: key == (query, True)),
                           name="double-histogram")),
    Program("most-frequent", "Every position gives the most frequent token, of several the first in the alphabet.",
            LETTERS, 6, by_rank(better, constant(0), "most-frequent")),
    Program("unique-count", "Every position gives how many different tokens there are.", LETTERS, 6,
            number_where(is_first, bool, "unique-count")),
    Program("first-place", "Each position gives where its token occurred first.", LETTERS, 6,
            aggregate(select(occurrence, tokens, lambda key, query: key == (query, 1)), indices, name="first-place"),
            causal=True),
    Program("seen-before", "Each position tells whether its token has occurred before.", LETTERS, 6,
            map(lambda count: count > 1, histogram, name="seen-before"), causal=True),
    Program("induction", "Each position gives the token that followed the previous occurrence of its own.", LETTERS, 6,
            aggregate(select(occurred, occurrence, lambda key, query: key == (query[0], query[1] - 1)), tokens,
                      name="induction"), causal=True),
    Program("sort", "The tokens in order.", DIGITS, 6, by_rank(order, indices, "sort")),
    Program("sort-unique", "Tokens of which none occurs twice, in order.", tuple("123456"), 6,
            by_rank(smaller, indices, "sort-unique"), distinct=True),
    Program("rank", "Each position gives how many tokens are smaller than its own.", DIGITS, 6, smaller),
    Program("maximum", "Every position gives the greatest token.", DIGITS, 6, by_rank(greater, constant(0), "maximum")),
    Program("running-maximum", "Each position gives the greatest token up to there.", tuple("123"), 7,
            running_maximum(), causal=True),
    Program("is-sorted", "Every position tells whether no token is smaller than the one before it.", DIGITS, 6,
            map(lambda count: count == 0, number_where(descent, bool, "descents"), name="is-sorted"),
            draw=_few(DIGITS)),
    Program("length", "Every position gives how many tokens there are.", LETTERS, 6, length),
    Program("count-a", "Every position gives how many tokens are 'a'.", LETTERS, 6,
            number_where(tokens, "a".__eq__, "count-a")),
    Program("balance", "Every position gives how many more 'a' there are than 'b'.", LETTERS, 6,
            sequence_map(lambda one, two: one - two, number_where(tokens, "a".__eq__, "number of a"),
                         number_where(tokens, "b".__eq__, "number of b"), name="balance")),
    Program("parity", "Every position tells whether the number of ones is odd.", BITS, 8,
            map(lambda count: count % 2, number_where(tokens, "1".__eq__, "ones"), name="parity")),
    Program("running-parity", "Each position tells whether the number of ones up to there is odd.", BITS, 8,
            map(lambda count: count % 2, number_where(tokens, "1".__eq__, "ones"), name="parity"), causal=True),
    Program("proportion", "Every position gives the share of tokens that are 'a'.", LETTERS, 6,
            share_where(tokens, "a".__eq__, "a")),
    Program("frac-prevs", "Each position gives the share of tokens up to there that are 'a'.", LETTERS, 6,
            aggregate(select(indices, indices, lambda key, query: key <= query),
                      map(lambda token: float(token == "a"), tokens, numerical=True, name="is a"), name="frac-prevs")),
    Program("majority", "Every position tells whether most bits are 1 (more), 0 (less), or neither (even).", BITS, 7,
            map(lambda share: "more" if share > 0.5 else "less" if share < 0.5 else "even",
                share_where(tokens, "1".__eq__, "1"), name="majority")),
    Program("same-as-before", "Each position tells whether its token is the one before it.", LETTERS, 6,
            same_as_before),
    Program("adjacent-pairs", "Every position gives how many neighbours are equal.", LETTERS, 6,
            number_where(same_as_before, bool, "adjacent-pairs")),
    Program("detect-ab", "Each position tells whether 'a b' ends there.", LETTERS, 6, pattern),
    Program("contains-ab", "Every position tells whether 'a b' occurs.", LETTERS, 6,
            map(lambda count: count > 0, number_where(pattern, bool, "number of ab"), name="contains-ab")),
    Program("palindrome", "Every position tells whether the tokens are the same backwards.", LETTERS, 6, palindrome(),
            draw=_mirrored),
    Program("dyck-1", "Each position gives T where the brackets up to there are balanced, P where they can still be, "
            "else F.", ("(", ")"), 8, dyck_one(), causal=True, draw=_nested("()")),
    Program("shuffle-dyck-2", "As dyck-1, for two kinds of brackets that may cross each other.", BRACKETS, 6,
            shuffle_dyck(), causal=True, draw=_nested("()[]")),
    Program("dyck-2", "As dyck-1, for two kinds of brackets that must be well nested.", BRACKETS, 6, dyck_two(),
            causal=True, draw=_nested("()[]")),
)  # fmt: skip
PROGRAMS = {program.name: program for program in _TABLE}
