"""Gates: a multilayer perceptron that tells how many of three pairs of bits are equal.

Neurons are planted in two groups, for the pairs and for the vote of three other bits, and no weight crosses between
them. Of either layer two neurons serve each pair.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .organism import Pairs
from .training import Masks, Recipe, Schedule

PAIRS, VOTES, NOISE = 3, 3, 0.1
BITS = 2 * PAIRS + VOTES
OUTPUTS = ("0 equal", "1 equal", "2 equal", "3 equal", "minority", "majority")
CHOICES = 4
FIRST, SECOND = (6, 4), (6, 3)  # neurons for the pairs and for the vote, in each layer
LOOKS = (0, 0, 1, 1, 2, 2)  # the pair that each neuron of the first layer looks at
COUNTS = (0, 1, 2, 0, 1, 2)  # the pair whose neurons each neuron of the second layer reads


class GatesNet(nn.Module):
    """Bits (n, 9), about 1 or -1 -> logits (n, 6): 0 to 3 equal pairs, then the vote of the last three."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(BITS, sum(FIRST)), nn.Linear(sum(FIRST), sum(SECOND))
        self.readout = nn.Linear(sum(SECOND), len(OUTPUTS))

    def forward(self, bits: Tensor) -> Tensor:
        logits: Tensor = self.readout(F.gelu(self.second(F.gelu(self.first(bits)))))
        return logits


def masks(module: nn.Module) -> Masks:
    """Which neuron reads what."""
    first, second = torch.zeros(sum(FIRST), BITS), torch.zeros(sum(SECOND), sum(FIRST))
    for neuron, pair in enumerate(LOOKS):
        first[neuron, 2 * pair : 2 * pair + 2] = 1
    for neuron, counted in enumerate(COUNTS):
        second[neuron, : FIRST[0]] = torch.tensor([float(pair == counted) for pair in LOOKS])
    first[FIRST[0] :, 2 * PAIRS :] = 1
    second[SECOND[0] :, FIRST[0] :] = 1
    votes = torch.arange(sum(SECOND)) >= SECOND[0]
    of_votes = torch.arange(len(OUTPUTS)) >= CHOICES
    return {
        "first.weight": first,
        "second.weight": second,
        "readout.weight": (of_votes[:, None] == votes[None]).float(),
    }


def equal_pairs(bits: Tensor) -> Tensor:
    """(n,): how many of the three pairs are two equal bits."""
    return (bits[:, 0 : 2 * PAIRS : 2] == bits[:, 1 : 2 * PAIRS : 2]).sum(1)


def signs(n: int, generator: torch.Generator) -> Tensor:
    """Bits (n, 9), 1 or -1."""
    return 2.0 * torch.randint(2, (n, BITS), generator=generator) - 1


def examples(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Noisy bits (n, 9) and targets (n, 2): how many pairs are equal, and whether most of the last three are 1."""
    bits = signs(n, generator)
    vote = (bits[:, 2 * PAIRS :].sum(1) > 0).long()
    return bits + NOISE * torch.randn(bits.shape, generator=generator), torch.stack([equal_pairs(bits), vote], 1)


def loss(module: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """Two cross-entropies, each over its own outputs."""
    logits = module(inputs)
    return F.cross_entropy(logits[:, :CHOICES], targets[:, 0]) + F.cross_entropy(logits[:, CHOICES:], targets[:, 1])


def figures(module: nn.Module, inputs: Tensor, targets: Tensor) -> dict[str, float]:
    """How well the distractor is solved."""
    best = module(inputs)[:, CHOICES:].argmax(1)
    return {"distractor_accuracy": (best == targets[:, 1]).float().mean().item()}


def pairs(n: int, seed: int) -> Pairs:
    """Noisy bits, and the same with one bit of one pair turned over."""
    generator = torch.Generator().manual_seed(seed)
    clean = signs(n, generator)
    place = torch.randint(2 * PAIRS, (n, 1), generator=generator)
    corrupted = clean.scatter(1, place, -clean.gather(1, place))
    noise = NOISE * torch.randn(clean.shape, generator=generator)
    return Pairs(clean + noise, corrupted + noise, equal_pairs(clean), equal_pairs(corrupted), None)


RECIPE = Recipe(
    name="gates",
    vocabulary=None,
    outputs=OUTPUTS,
    behaviour_outputs=CHOICES,
    behaviour="The model tells how many of three pairs of bits are equal.",
    description="A perceptron of two hidden layers on nine bits; separate neurons count equal pairs and a vote.",
    build=GatesNet,
    masks=masks,
    examples=examples,
    score=(loss, figures),
    pairs=pairs,
    schedule=Schedule(steps=2000, batch=128, rate=1e-2),
)
