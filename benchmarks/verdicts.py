"""How often the verdict is right: on untrained networks, on shuffled labels, and on mechanisms that are known.

    python benchmarks/verdicts.py [--trials 100] [--pairs 32] [--json]

Trials go round five kinds of networks: a transformer, a CNN, a GRU, an MLP and a state space model. In each a circuit
is searched on some pairs and tested on others, and on the same ones again. "Untrained": fresh random weights, true
labels. "Shuffled": the trained weights, the pairs of answers dealt out to the inputs at random. "Known": the trained
weights and true labels of every bundled organism, twice as many pairs. What the search refuses counts as not supported.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from rows import Row, row, show
from torch import nn

import cutaway as cw
from cutaway import organisms
from cutaway.organisms import Pairs

COMMAND, GOAL, CHANCE = "python benchmarks/verdicts.py", 0.95, "not supported"
KINDS = {"transformer": "induction", "CNN": "shapes", "GRU": "counter", "MLP": "gates", "SSM": "marks"}
TESTED = ("fresh pairs", "the pairs of the search")
PERCEPTRON = type(organisms.load("gates").module)
Outcome = tuple[str, str, set[str]]


def reset(module: nn.Module, seed: int) -> nn.Module:
    """The module with new random weights, by the rules of its layers; weights outside layers are normal."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for part in module.modules():
            if hasattr(part, "reset_parameters"):
                part.reset_parameters()
            else:
                for weight in part.parameters(recurse=False):
                    nn.init.normal_(weight, std=weight.shape[-1] ** -0.5)
    return module


def shuffled(pairs: Pairs, seed: int) -> Pairs:
    """The same inputs with each other's answers."""
    assert pairs.correct is not None and pairs.wrong is not None
    order = torch.randperm(len(pairs.clean), generator=torch.Generator().manual_seed(10_000 + seed))
    return replace(pairs, correct=pairs.correct[order], wrong=pairs.wrong[order])


def runs(net: Any, pairs: Pairs) -> tuple[Any, Any, cw.Metric]:
    """Both runs and the metric."""
    position = -1 if pairs.position is None else pairs.position
    metric = cw.logit_difference(pairs.correct, pairs.wrong, position=position, labels=True)
    return net.record(pairs.clean), net.record(pairs.corrupted), metric


def trial(module: nn.Module, seen: Pairs, fresh: Pairs, seed: int, random: int = 60) -> Outcome:
    """(verdict on fresh pairs, verdict on the pairs of the search, what failed on fresh pairs)."""
    net = cw.open(module.eval(), name="subject")
    try:  # a perceptron is made of neurons; as blocks it has one circuit only
        circuit = cw.find_circuit(*runs(net, seen), neurons=isinstance(module, PERCEPTRON))
    except cw.errors.MetricError:
        return CHANCE, CHANCE, {"refused by the search"}
    same = cw.verify(circuit, random=random, seed=seed).verdict
    try:
        claim = cw.verify(circuit, *runs(net, fresh), random=random, seed=seed)
    except cw.errors.MetricError:
        return CHANCE, same, {"refused by the test"}
    return claim.verdict, same, {reason.check for reason in claim.reasons if not reason.passed}


def trials(what: str, count: int, pairs: int) -> Iterator[tuple[str, Outcome]]:
    """(kind, outcome) of `count` trials of "untrained", "shuffled" or "known"."""
    known = {name: name for name in organisms.names() if organisms.load(name).behaviour}
    kinds = known if what == "known" else KINDS
    for number in range(count):
        kind = list(kinds)[number % len(kinds)]
        organism = organisms.load(kinds[kind])
        module = reset(organism.module, 1000 + number) if what == "untrained" else organism.module
        size = 2 * pairs if what == "known" else pairs
        seen, fresh = organism.pairs(size, 2 * number), organism.pairs(size, 2 * number + 1)
        if what == "shuffled":
            seen, fresh = shuffled(seen, 2 * number), shuffled(fresh, 2 * number + 1)
        yield kind, trial(module, seen, fresh, number)


def measured(count: int, pairs: int) -> list[Row]:
    """Two rows for each question: on fresh pairs, and on those of the search."""
    made = []
    asked = {"untrained": (count, CHANCE), "shuffled": (count, CHANCE), "known": (max(6, count // 5), "supported")}
    for what, (number, wanted) in asked.items():
        outcomes = list(trials(what, number, pairs))
        failed = Counter(check for _, outcome in outcomes for check in outcome[2])
        for place, tested in enumerate(TESTED):
            right = [outcome[place] == wanted for _, outcome in outcomes]
            wrong = Counter(kind for (kind, _), good in zip(outcomes, right, strict=True) if not good)
            name = f"{what}: '{wanted}' on {tested}"
            command = f"{COMMAND} --trials {count} --pairs {pairs}"
            entry = row(name, [sum(right) / len(right)], "share of trials", GOAL, command, better="higher")
            made.append(entry | {"n": len(right), "failed": dict(failed), "wrong": dict(wrong)})
    return made


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--pairs", type=int, default=32)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    show(measured(given.trials, given.pairs), given.json)


if __name__ == "__main__":
    main()
