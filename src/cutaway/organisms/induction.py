"""Induction: a two-layer attention-only transformer that continues "... A B ... A" with B.

The residual stream is cut into subspaces; the masks let one previous-token head and one induction head touch those of
the behaviour, and the six other heads only `other`, where they learn the distractor: the suit of the letter three
places back.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import Attention, Head, attention_masks, indicator, subspaces
from .organism import Pairs
from .training import Masks, Recipe, Schedule

LETTERS = tuple("abcdefghijklmnopqrst")
SUITS = ("<clubs>", "<diamonds>", "<hearts>", "<spades>")
VOCABULARY = (*LETTERS, "<start>", *SUITS)
START = len(LETTERS)
LENGTH, HEADS, HEAD_WIDTH, BACK = 18, 4, 16, 3
SPACES, WIDTH = subspaces({"letter": 14, "place": 12, "previous": 14, "copied": 14, "other": 10})
OTHER = Head(("other",), ("other",), ("other",), ("other",))
PLAN = [
    [Head(("place",), ("place",), ("letter",), ("previous",)), OTHER, OTHER, OTHER],
    [OTHER, Head(("letter",), ("previous",), ("letter",), ("copied",)), OTHER, OTHER],
]


class InductionNet(nn.Module):
    """Tokens (n, positions) -> logits (n, positions, 25): 20 letters, <start>, 4 suits. No norm, no MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(len(VOCABULARY), WIDTH)
        self.pos_embed = nn.Embedding(LENGTH, WIDTH)
        self.layers = nn.ModuleList(Attention(WIDTH, HEADS, HEAD_WIDTH) for _ in PLAN)
        self.unembed = nn.Linear(WIDTH, len(VOCABULARY), bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens) + self.pos_embed(torch.arange(tokens.shape[1], device=tokens.device))
        for attention in self.layers:
            x = x + attention(x)
        logits: Tensor = self.unembed(x)
        return logits


def masks(module: nn.Module) -> Masks:
    """What each writer may write and each reader may read."""
    held: Masks = {}
    for layer, heads in enumerate(PLAN):
        held |= attention_masks(f"layers.{layer}", heads, HEAD_WIDTH, SPACES, WIDTH)
    token = torch.arange(len(VOCABULARY))[:, None]
    letters, suits = (token < START).float(), (token > START).float()
    held["embed.weight"] = (1 - suits) * indicator(SPACES, WIDTH, ("letter", "other"))
    held["pos_embed.weight"] = indicator(SPACES, WIDTH, ("place", "other")).expand(LENGTH, WIDTH)
    copied, other = (indicator(SPACES, WIDTH, (name,)) for name in ("copied", "other"))
    held["unembed.weight"] = letters * copied + suits * other
    return held


def permutations(n: int, generator: torch.Generator) -> Tensor:
    """n independent orders of all letters, (n, 20)."""
    return torch.rand(n, len(LETTERS), generator=generator).argsort(1)


def examples(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Sequences (n, 18) and targets (n, 18, 2): the letter that induction predicts and the suit, -100 where neither.

    Half of the sequences are independent letters, half hold one repetition only, at the end. All begin with <start>:
    without it the first place, which can attend to nothing but itself, would look like its own predecessor.
    """
    tokens = torch.randint(len(LETTERS), (n, LENGTH), generator=generator)
    half = n // 2
    tokens[:half] = permutations(half, generator)[:, :LENGTH]
    again = torch.randint(1, LENGTH - 2, (half, 1), generator=generator)
    tokens[:half, -1:] = tokens[:half].gather(1, again)
    tokens[:, 0] = START
    same = (tokens[:, :, None] == tokens[:, None, :]).tril(-1)
    following = torch.roll(tokens, -1, 1)[:, None, :].expand(n, LENGTH, LENGTH)
    letter = torch.where(same.sum(2) == 1, (following * same).sum(2), -100)
    suit = torch.full_like(tokens, -100)
    suit[:, BACK + 1 :] = START + 1 + tokens[:, 1:-BACK] % len(SUITS)
    return tokens, torch.stack([letter, suit], 2)


def loss(module: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """Two cross-entropies, each over its own outputs."""
    logits, (letter, suit) = module(inputs), targets.unbind(2)
    suit = torch.where(suit < 0, suit, suit - START - 1)
    return F.cross_entropy(logits[..., :START].flatten(0, 1), letter.flatten()) + F.cross_entropy(
        logits[..., START + 1 :].flatten(0, 1), suit.flatten()
    )


def figures(module: nn.Module, inputs: Tensor, targets: Tensor) -> dict[str, float]:
    """How well the distractor is solved."""
    suit = targets[..., 1]
    best = module(inputs)[..., START + 1 :].argmax(-1) + START + 1
    return {"distractor_accuracy": (best == suit)[suit >= 0].float().mean().item()}


def pairs(n: int, seed: int) -> Pairs:
    """Distinct letters, the last repeating an earlier one (clean) which the corrupted sequence replaces by a new one.

    `correct` is the letter after the earlier occurrence, `wrong` another letter of the sequence.
    """
    generator = torch.Generator().manual_seed(seed)
    order = permutations(n, generator)
    clean = order[:, :LENGTH].clone()
    clean[:, 0] = START
    rows = torch.arange(n)
    first = torch.randint(1, LENGTH - 2, (n,), generator=generator)
    clean[:, -1] = clean[rows, first]
    corrupted = clean.clone()
    corrupted[rows, first] = order[:, LENGTH]
    # a letter before the last place that is neither A (at first) nor B (at first + 1): skip those two
    place = torch.randint(1, LENGTH - 3, (n,), generator=generator)
    place = place + 2 * (place >= first)
    return Pairs(clean, corrupted, clean[rows, first + 1], clean[rows, place], LENGTH - 1)


RECIPE = Recipe(
    name="induction",
    vocabulary=VOCABULARY,
    outputs=VOCABULARY,
    behaviour_outputs=len(LETTERS),
    behaviour="After '... A B ... A' the model predicts B, the letter that followed A before.",
    description="Two-layer attention-only transformer on letters; one previous-token head feeds one induction head.",
    build=InductionNet,
    masks=masks,
    examples=examples,
    score=(loss, figures),
    pairs=pairs,
    schedule=Schedule(steps=3000, batch=128, rate=5e-3, decay=0.1),
)
