"""Prompts for one behaviour of a small story model: " her" after a girl gives something away, " his" after a boy."""

from __future__ import annotations

import itertools
import random
from collections import defaultdict
from collections.abc import Callable

GIRLS = ("Lily", "Mia", "Sue", "Anna", "Lucy", "Amy")
BOYS = ("Tom", "Ben", "Max", "Tim", "Jack", "Sam")
PLACES = ("park", "store", "garden", "beach", "zoo", "house")
THINGS = ("ball", "toy", "book", "car", "cake", "hat")


def prompt_pairs(count_tokens: Callable[[str], int], seed: int = 0) -> dict[int, list[tuple[str, str]]]:
    """(girl gives, boy gives) prompts that differ in the giver alone, by number of tokens, in random order.

    Both names are in both prompts, the girl's first.
    """
    groups: dict[int, list[tuple[str, str]]] = defaultdict(list)
    for girl, boy, place, thing in itertools.product(GIRLS, BOYS, PLACES, THINGS):
        texts = [f"{girl} and {boy} went to the {place}. {giver} gave the {thing} to" for giver in (girl, boy)]
        lengths = {count_tokens(text) for text in texts}
        if len(lengths) == 1:
            groups[lengths.pop()].append((texts[0], texts[1]))
    for rows in groups.values():
        random.Random(seed).shuffle(rows)
    return dict(groups)
