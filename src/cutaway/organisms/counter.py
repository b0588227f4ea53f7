"""Counter: a GRU that tells how deeply nested it is in brackets, and which letter it saw last.

Hidden units and embedding dimensions are planted in two groups, for depth and for the letter; no gate of a unit reads
across. Inside the depth group READS lists which units each gate of each unit reads.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .organism import Pairs
from .training import Masks, Recipe, Schedule

BRACKETS, LETTERS = ("(", ")"), ("a", "b", "c", "d")
VOCABULARY = BRACKETS + LETTERS
DEEPEST, LENGTH = 5, 16
OUTPUTS = tuple(f"depth {depth}" for depth in range(DEEPEST + 1)) + tuple(f"last {letter}" for letter in LETTERS)
DEPTHS = DEEPEST + 1
DEPTH_UNITS, LETTER_UNITS = 3, 4
DEPTH_WIDTH, LETTER_WIDTH = 3, 4  # embedding dimensions
GATES = "rzn"  # the order of torch's stacked GRU weights
# gate -> for each depth unit, the depth units it reads; "embed" gates are those that read the token.
READS: dict[str, tuple[tuple[int, ...], ...]] = {
    "r": ((), (1,), ()),
    "z": ((), (), ()),
    "n": ((0, 1, 2), (0, 1, 2), (0, 1)),
}
READS_TOKEN: dict[str, tuple[int, ...]] = {"r": (1, 2), "z": (0, 1, 2), "n": (0, 1, 2)}


class CounterNet(nn.Module):
    """Tokens (n, steps) -> logits (n, 10) after the last token: 6 depths, then 4 letters."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(len(VOCABULARY), DEPTH_WIDTH + LETTER_WIDTH)
        self.rnn = nn.GRU(DEPTH_WIDTH + LETTER_WIDTH, DEPTH_UNITS + LETTER_UNITS, batch_first=True)
        self.readout = nn.Linear(DEPTH_UNITS + LETTER_UNITS, len(OUTPUTS))

    def forward(self, tokens: Tensor) -> Tensor:
        states, _ = self.rnn(self.embed(tokens))
        logits: Tensor = self.readout(states[:, -1])
        return logits


def masks(module: nn.Module) -> Masks:
    """Which gate of which unit reads what, and which outputs read which units."""
    units, width = DEPTH_UNITS + LETTER_UNITS, DEPTH_WIDTH + LETTER_WIDTH
    recurrent, token = torch.zeros(len(GATES), units, units), torch.zeros(len(GATES), units, width)
    recurrent[:, DEPTH_UNITS:, DEPTH_UNITS:] = 1
    token[:, DEPTH_UNITS:, DEPTH_WIDTH:] = 1
    for gate, name in enumerate(GATES):
        for unit, sources in enumerate(READS[name]):
            recurrent[gate, unit, list(sources)] = 1
        token[gate, list(READS_TOKEN[name]), :DEPTH_WIDTH] = 1
    depth_output = torch.arange(len(OUTPUTS)) < DEPTHS
    depth_unit = torch.arange(units) < DEPTH_UNITS
    return {
        "rnn.weight_hh_l0": recurrent.flatten(0, 1),
        "rnn.weight_ih_l0": token.flatten(0, 1),
        "readout.weight": (depth_output[:, None] == depth_unit[None]).float(),
    }


def depths(tokens: Tensor) -> Tensor:
    """The nesting depth after each token, (n, steps)."""
    return ((tokens == 0).long() - (tokens == 1).long()).cumsum(1)


def strings(n: int, generator: torch.Generator) -> Tensor:
    """Token strings (n, 16) whose depth stays between 0 and 5 everywhere; about two brackets to each letter."""
    tokens = torch.empty(n, LENGTH, dtype=torch.int64)
    depth = torch.zeros(n, dtype=torch.int64)
    # An upward drift that differs between strings, so that all final depths are common.
    drift = 0.3 + 0.55 * torch.rand(n, generator=generator)
    for step in range(LENGTH):
        letter = len(BRACKETS) + torch.randint(len(LETTERS), (n,), generator=generator)
        rises = torch.rand(n, generator=generator) < drift
        rises = (rises | (depth == 0)) & (depth < DEEPEST)
        bracket = (~rises).long()
        is_letter = torch.rand(n, generator=generator) < 1 / 3
        tokens[:, step] = torch.where(is_letter, letter, bracket)
        depth = depth + torch.where(is_letter, 0, 1 - 2 * bracket)
    return tokens


def last_letters(tokens: Tensor) -> Tensor:
    """The output index of the last letter seen after each token, (n, steps); -100 before the first letter."""
    steps = torch.where(tokens >= len(BRACKETS), torch.arange(tokens.shape[1]), -1).cummax(1).values
    letter = tokens.gather(1, steps.clamp(min=0)) - len(BRACKETS) + DEPTHS
    return torch.where(steps >= 0, letter, -100)


def examples(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Strings (n, 16) and targets (n, 16, 2): depth and last letter after every token."""
    tokens = strings(n, generator)
    return tokens, torch.stack([depths(tokens), last_letters(tokens)], 2)


def every_step(module: nn.Module, tokens: Tensor) -> Tensor:
    """Logits (n, steps, 10) after every token; only training looks at them."""
    assert isinstance(module, CounterNet)
    states, _ = module.rnn(module.embed(tokens))
    logits: Tensor = module.readout(states)
    return logits


def loss(module: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """Two cross-entropies after every token, each over its own outputs."""
    logits = every_step(module, inputs).flatten(0, 1)
    letter = torch.where(targets[..., 1] < 0, targets[..., 1], targets[..., 1] - DEPTHS)
    return F.cross_entropy(logits[:, :DEPTHS], targets[..., 0].flatten()) + F.cross_entropy(
        logits[:, DEPTHS:], letter.flatten()
    )


def figures(module: nn.Module, inputs: Tensor, targets: Tensor) -> dict[str, float]:
    """How well the distractor is solved."""
    last = targets[:, -1, 1]
    best = module(inputs)[:, DEPTHS:].argmax(1) + DEPTHS
    return {"distractor_accuracy": (best == last)[last >= 0].float().mean().item()}


def pairs(n: int, seed: int) -> Pairs:
    """Strings, and the same ones with one bracket turned around, which moves the depth by two and keeps it legal."""
    generator = torch.Generator().manual_seed(seed)
    kept: list[tuple[Tensor, Tensor]] = []
    while sum(len(clean) for clean, _ in kept) < n:
        clean = strings(2 * n, generator)
        place = torch.randint(LENGTH, (2 * n, 1), generator=generator)
        token = clean.gather(1, place)
        corrupted = clean.scatter(1, place, torch.where(token < len(BRACKETS), 1 - token, token))
        walk = depths(corrupted)
        legal = (token[:, 0] < len(BRACKETS)) & (walk >= 0).all(1) & (walk <= DEEPEST).all(1)
        kept.append((clean[legal], corrupted[legal]))
    clean, corrupted = (torch.cat(part)[:n] for part in zip(*kept, strict=True))
    return Pairs(clean, corrupted, depths(clean)[:, -1], depths(corrupted)[:, -1], None)


RECIPE = Recipe(
    name="counter",
    vocabulary=VOCABULARY,
    outputs=OUTPUTS,
    behaviour_outputs=DEPTHS,
    behaviour="After a string of brackets and letters the model tells how many brackets are open, 0 to 5.",
    description="A GRU of a few units that counts open brackets and remembers the last letter in separate units.",
    build=CounterNet,
    masks=masks,
    examples=examples,
    score=(loss, figures),
    pairs=pairs,
    schedule=Schedule(steps=3000, batch=128, rate=1e-2),
)
