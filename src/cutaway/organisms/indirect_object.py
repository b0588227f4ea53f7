"""Indirect object: a three-layer transformer that ends "then X and Y went to the P . X gave the T to" with Y.

The planted mechanism, one head a layer: a comparing head at the second X writes where the other name stands (names are
compared, places are written), a head at the end fetches that place, and a name mover attends to the name there; the
last MLP turns the moved name into logits. The other heads and MLPs hold the distractor: a code of PLACE and THING.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import Attention, Head, attention_masks, indicator, subspaces
from .organism import Pairs
from .training import Masks, Recipe, Schedule

NAMES = ("Mary", "John", "Anna", "Peter", "Lucy", "Tom", "Emma", "Paul", "Ruth", "Karl")
PLACES = ("store", "park", "school", "garden", "station", "beach")
THINGS = ("drink", "book", "ball", "letter", "coat", "map")
FILLERS = ("today", "slowly", "again", "sadly")
FRAME = ("then", "and", "went", "to", "the", ".", "gave")
CODES = ("<0>", "<1>", "<2>")
VOCABULARY = NAMES + PLACES + THINGS + FILLERS + FRAME + CODES
WORDS = len(VOCABULARY) - len(CODES)
SENTENCE = ("then", "X", "and", "Y", "went", "to", "the", "PLACE", ".", "S", "gave", "the", "THING", "to")
SLOTS = (0, 4, 8, 9)  # a filler may stand before these words of SENTENCE
EXTRA = 2
LENGTH = len(SENTENCE) + EXTRA
HEADS, HEAD_WIDTH, HIDDEN = 4, 12, 32
# The norms' epsilon. It is large beside the mean square of the stream, so that the scale which all writers share at a
# position moves little when one of them is cut.
EPSILON = 4.0
SMOOTHING = 0.01
SPACES, WIDTH = subspaces(
    {"name": 10, "kind": 6, "place": 12, "seen": 10, "subject": 10, "moved": 10, "answer": 10, "other": 16}
)
OTHER = Head(("other",), ("other",), ("other",), ("other",))
COMPARE = Head(("name", "place"), ("name", "place"), ("place",), ("seen",))
FETCH = Head(("place",), ("kind", "place"), ("seen",), ("subject",))
MOVER = Head(("subject",), ("kind", "place"), ("name",), ("moved",))
PLAN = [[COMPARE, OTHER, OTHER, OTHER], [OTHER, FETCH, OTHER, OTHER], [OTHER, OTHER, MOVER, OTHER]]
MLPS = [("other", "other"), ("other", "other"), ("moved", "answer")]  # what each MLP reads and writes


class Block(nn.Module):
    """Pre-norm attention and MLP, (n, positions, width) -> the same."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(WIDTH, eps=EPSILON), nn.RMSNorm(WIDTH, eps=EPSILON)
        self.attention = Attention(WIDTH, HEADS, HEAD_WIDTH)
        self.up, self.down = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        read: Tensor = self.norm2(x)
        written: Tensor = self.down(F.gelu(self.up(read)))
        return x + written


class IndirectObjectNet(nn.Module):
    """Tokens (n, positions) -> logits (n, positions, 36): 33 words, then 3 codes."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(len(VOCABULARY), WIDTH)
        self.pos_embed = nn.Embedding(LENGTH, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in PLAN)
        self.norm = nn.RMSNorm(WIDTH, eps=EPSILON)
        self.unembed = nn.Linear(WIDTH, len(VOCABULARY), bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens) + self.pos_embed(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.unembed(self.norm(x))
        return logits


def masks(module: nn.Module) -> Masks:
    """What each writer may write and each reader may read."""
    held: Masks = {}
    for layer, (heads, (reads, writes)) in enumerate(zip(PLAN, MLPS, strict=True)):
        held |= attention_masks(f"blocks.{layer}.attention", heads, HEAD_WIDTH, SPACES, WIDTH)
        held[f"blocks.{layer}.up.weight"] = indicator(SPACES, WIDTH, (reads,)).expand(HIDDEN, WIDTH)
        written = indicator(SPACES, WIDTH, (writes,))
        held[f"blocks.{layer}.down.weight"] = written[:, None].expand(WIDTH, HIDDEN)
        held[f"blocks.{layer}.down.bias"] = written
    is_word = (torch.arange(len(VOCABULARY)) < WORDS).float()[:, None]
    # Names write nothing to `kind`: there they all look alike, and unlike any other word.
    is_name = (torch.arange(len(VOCABULARY)) < len(NAMES)).float()[:, None]
    name, kind, distractor = (indicator(SPACES, WIDTH, (space,)) for space in ("name", "kind", "other"))
    held["embed.weight"] = is_name * name + (is_word - is_name) * kind + is_word * distractor
    held["pos_embed.weight"] = indicator(SPACES, WIDTH, ("place", "other")).expand(LENGTH, WIDTH)
    answer, other = (indicator(SPACES, WIDTH, (name,)) for name in ("answer", "other"))
    held["unembed.weight"] = is_word * answer + (1 - is_word) * other
    return held


def sentences(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """n sentences as tokens (n, 16), with the two possible answers: the name to be given to, and the subject."""

    def any_of(words: tuple[str, ...], *size: int) -> Tensor:
        start = VOCABULARY.index(words[0])
        return start + torch.randint(len(words), (n, *size), generator=generator)

    both = torch.rand(n, len(NAMES), generator=generator).argsort(1)[:, :2]
    second = torch.randint(2, (n, 1), generator=generator)
    subject, other = both.gather(1, second)[:, 0], both.gather(1, 1 - second)[:, 0]
    filled = {"X": both[:, 0], "Y": both[:, 1], "S": subject, "PLACE": any_of(PLACES), "THING": any_of(THINGS)}
    words = [filled[w] if w in filled else torch.full((n,), VOCABULARY.index(w)) for w in SENTENCE]
    # A filler's sort key is just below the key of the word it stands before.
    keys = torch.arange(len(SENTENCE)).float().expand(n, -1)
    slots = torch.tensor(SLOTS)[torch.randint(len(SLOTS), (n, EXTRA), generator=generator)]
    order = torch.cat([keys, slots - 0.5], 1).argsort(dim=1, stable=True)
    tokens = torch.cat([torch.stack(words, 1), any_of(FILLERS, EXTRA)], 1).gather(1, order)
    return tokens, other, subject


def code(tokens: Tensor) -> Tensor:
    """The distractor's output: (number of PLACE + number of THING) modulo 3, as an index into the codes."""
    place, thing = (VOCABULARY.index(words[0]) for words in (PLACES, THINGS))
    is_noun = (tokens >= place) & (tokens < thing + len(THINGS))
    return ((tokens - place) * is_noun).sum(1) % len(CODES)


def examples(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Sentences (n, 16) and targets (n, 2): the name and the code, both predicted at the last word."""
    tokens, name, _ = sentences(n, generator)
    return tokens, torch.stack([name, code(tokens)], 1)


def loss(module: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """Two cross-entropies at the last position, each over its own outputs.

    The labels are smoothed: it keeps the logits, and with them the whole residual stream, of moderate size.
    """
    logits = module(inputs)[:, -1]
    names, codes = logits[:, :WORDS], logits[:, WORDS:]
    return F.cross_entropy(names, targets[:, 0], label_smoothing=SMOOTHING) + F.cross_entropy(
        codes, targets[:, 1], label_smoothing=SMOOTHING
    )


def figures(module: nn.Module, inputs: Tensor, targets: Tensor) -> dict[str, float]:
    """How well the distractor is solved."""
    best = module(inputs)[:, -1, WORDS:].argmax(1)
    return {"distractor_accuracy": (best == targets[:, 1]).float().mean().item()}


def pairs(n: int, seed: int) -> Pairs:
    """Sentences, and the same ones with the other name as subject, so that the answer flips."""
    clean, name, subject = sentences(n, torch.Generator().manual_seed(seed))
    at = torch.arange(LENGTH)
    again = torch.where(clean == subject[:, None], at, -1).max(1).values
    corrupted = clean.clone()
    corrupted[torch.arange(n), again] = name
    return Pairs(clean, corrupted, name, subject, LENGTH - 1)


RECIPE = Recipe(
    name="indirect-object",
    vocabulary=VOCABULARY,
    outputs=VOCABULARY,
    behaviour_outputs=WORDS,
    behaviour="After 'X and Y went ... X gave the thing to' the model predicts Y, the name that is not repeated.",
    description="Three-layer pre-norm transformer on a 33-word language; comparing, fetching and moving heads.",
    build=IndirectObjectNet,
    masks=masks,
    examples=examples,
    score=(loss, figures),
    pairs=pairs,
    schedule=Schedule(steps=3000, batch=128, rate=4e-3, decay=0.1),
)
