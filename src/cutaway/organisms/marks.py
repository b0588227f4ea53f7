"""Marks: a Mamba block that tells which letter was marked last ("! b" marks b), and the last sign in other channels.

The block is a convolution over two tokens, a selective scan (Gu, Dao 2023, "Mamba", arXiv:2312.00752, written as a
loop) and a gate. Channels and stream are planted in two groups. Among those of the letters one channel of the
convolution, the selector, decides when the others, the holders, take a letter in.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .organism import Pairs
from .training import Masks, Recipe, Schedule

LETTERS, MARK, SIGNS, BLANK = ("a", "b", "c", "d"), "!", ("+", "-"), "."
VOCABULARY = (*LETTERS, MARK, *SIGNS, BLANK)
OUTPUTS = tuple(f"marked {letter}" for letter in LETTERS) + tuple(f"last {sign}" for sign in SIGNS)
LENGTH, STATES, KERNEL = 12, 2, 2
HOLDERS, SELECTOR, OF_SIGNS, CHANNELS = slice(0, 3), slice(3, 4), slice(4, 7), 7
# The parts of the stream: what is known of the token, what is held of letters, and all about signs.
TOKEN, HELD, SIGN, WIDTH = slice(0, 5), slice(5, 9), slice(9, 13), 13


class Mamba(nn.Module):
    """One block, (n, steps, width) -> what it adds to the stream, the same shape."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.gate = nn.Linear(WIDTH, CHANNELS, bias=False), nn.Linear(WIDTH, CHANNELS)
        self.conv = nn.Conv1d(CHANNELS, CHANNELS, KERNEL, groups=CHANNELS, padding=KERNEL - 1)
        self.step_size = nn.Linear(CHANNELS, CHANNELS)
        self.b, self.c = nn.Linear(CHANNELS, STATES), nn.Linear(CHANNELS, STATES)
        self.decay = nn.Parameter(torch.arange(1.0, STATES + 1).log().repeat(CHANNELS, 1))
        self.skip = nn.Parameter(torch.ones(CHANNELS))
        self.out = nn.Linear(CHANNELS, WIDTH, bias=False)

    def forward(self, stream: Tensor) -> Tensor:
        steps = stream.shape[1]
        x = F.silu(self.conv(self.enter(stream).transpose(1, 2))[..., :steps]).transpose(1, 2)
        size, b, c = F.softplus(self.step_size(x)), self.b(x), self.c(x)
        keep = torch.exp(-size[..., None] * self.decay.exp())
        put = (size * x)[..., None] * b[:, :, None, :]
        state, found = torch.zeros_like(put[:, 0]), []
        for step in range(steps):
            state = keep[:, step] * state + put[:, step]
            found.append((state @ c[:, step, :, None])[..., 0])
        added: Tensor = self.out((torch.stack(found, 1) + self.skip * x) * F.silu(self.gate(stream)))
        return added


class MarksNet(nn.Module):
    """Tokens (n, steps) -> logits (n, steps, 6) after each token: 4 letters, then 2 signs."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(len(VOCABULARY), WIDTH)
        self.block = Mamba()
        self.readout = nn.Linear(WIDTH, len(OUTPUTS), bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        stream = self.embed(tokens)
        logits: Tensor = self.readout(stream + self.block(stream))
        return logits


def masks(module: nn.Module) -> Masks:
    """What each channel reads and writes."""
    letters, signs, states = slice(0, len(LETTERS)), slice(len(LETTERS), len(OUTPUTS)), slice(0, STATES)
    of_letters, token, stream = slice(0, SELECTOR.stop), slice(0, 1), (CHANNELS, WIDTH)
    here = torch.ones(CHANNELS, 1, KERNEL)
    here[HOLDERS, :, 0] = 0  # the holders do not see the token before: a mark reaches them by the selector alone
    return {
        "block.conv.weight": here,
        "embed.weight": _allowed((1, WIDTH), (token, TOKEN), (token, SIGN)),
        "readout.weight": _allowed((len(OUTPUTS), WIDTH), (letters, HELD), (signs, SIGN)),
        "block.enter.weight": _allowed(stream, (of_letters, TOKEN), (OF_SIGNS, SIGN)),
        "block.gate.weight": _allowed(stream, (OF_SIGNS, SIGN)),
        "block.step_size.weight": _allowed((CHANNELS, CHANNELS), (HOLDERS, SELECTOR), (OF_SIGNS, OF_SIGNS)),
        "block.b.weight": _allowed((STATES, CHANNELS), (states, SELECTOR)),
        "block.c.weight": _allowed((STATES, CHANNELS), (states, SELECTOR)),
        "block.out.weight": _allowed((WIDTH, CHANNELS), (HELD, HOLDERS), (SIGN, OF_SIGNS)),
    }


def _allowed(shape: tuple[int, int], *places: tuple[slice, slice]) -> Tensor:
    """A mask that is one at these rows and columns."""
    mask = torch.zeros(shape)
    for rows, columns in places:
        mask[rows, columns] = 1
    return mask


def marked(tokens: Tensor) -> Tensor:
    """(n, steps): the letter that last stood behind a mark, after each token; -100 before the first."""
    steps = torch.arange(tokens.shape[1])
    before = torch.cat([torch.full_like(tokens[:, :1], len(VOCABULARY)), tokens[:, :-1]], 1)
    is_marked = (before == VOCABULARY.index(MARK)) & (tokens < len(LETTERS))
    return _held(tokens, torch.where(is_marked, steps, -1))


def last_signs(tokens: Tensor) -> Tensor:
    """(n, steps): the number of the last sign after each token; -100 before the first."""
    number = tokens - VOCABULARY.index(SIGNS[0])
    is_sign = (number >= 0) & (number < len(SIGNS))
    return _held(number, torch.where(is_sign, torch.arange(tokens.shape[1]), -1))


def _held(values: Tensor, places: Tensor) -> Tensor:
    """The value at the last place so far that is not -1."""
    last = places.cummax(1).values
    return torch.where(last >= 0, values.gather(1, last.clamp(min=0)), -100)


def strings(n: int, generator: torch.Generator) -> Tensor:
    """Token strings (n, 12) with one mark and letter near the beginning and others by chance."""
    odds = torch.tensor([2.0] * len(LETTERS) + [2.0, 1.0, 1.0, 2.0])
    tokens = torch.multinomial(odds, n * LENGTH, replacement=True, generator=generator).view(n, LENGTH)
    place = torch.randint(LENGTH // 2, (n, 1), generator=generator)
    letter = torch.randint(len(LETTERS), (n, 1), generator=generator)
    tokens.scatter_(1, place, torch.full_like(place, VOCABULARY.index(MARK)))
    return tokens.scatter(1, place + 1, letter)


def examples(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Strings (n, 12) and targets (n, 12, 2): the marked letter and the last sign after every token."""
    tokens = strings(n, generator)
    return tokens, torch.stack([marked(tokens), last_signs(tokens)], 2)


def loss(module: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """Two cross-entropies after every token, each over its own outputs."""
    logits, (letter, sign) = module(inputs).flatten(0, 1), targets.flatten(0, 1).unbind(1)
    cut = len(LETTERS)
    return F.cross_entropy(logits[:, :cut], letter) + F.cross_entropy(logits[:, cut:], sign)


def figures(module: nn.Module, inputs: Tensor, targets: Tensor) -> dict[str, float]:
    """How well the distractor is solved."""
    sign = targets[:, -1, 1]
    best = module(inputs)[:, -1, len(LETTERS) :].argmax(1)
    return {"distractor_accuracy": (best == sign)[sign >= 0].float().mean().item()}


def pairs(n: int, seed: int) -> Pairs:
    """Strings, and the same with another letter where the last marked one stands."""
    generator = torch.Generator().manual_seed(seed)
    clean = strings(n, generator)
    before = torch.cat([torch.zeros_like(clean[:, :1]), clean[:, :-1]], 1)
    is_marked = (before == VOCABULARY.index(MARK)) & (clean < len(LETTERS))
    place = torch.where(is_marked, torch.arange(LENGTH), -1).amax(1, keepdim=True)
    letter = clean.gather(1, place)
    other = (letter + torch.randint(1, len(LETTERS), (n, 1), generator=generator)) % len(LETTERS)
    return Pairs(clean, clean.scatter(1, place, other), letter[:, 0], other[:, 0], LENGTH - 1)


RECIPE = Recipe(
    name="marks",
    vocabulary=VOCABULARY,
    outputs=OUTPUTS,
    behaviour_outputs=len(LETTERS),
    behaviour="After '... ! b ...' the model tells the letter that was marked last: b.",
    description="A Mamba block of seven channels; separate channels hold the letter marked last and the last sign.",
    build=MarksNet,
    masks=masks,
    examples=examples,
    score=(loss, figures),
    pairs=pairs,
    schedule=Schedule(steps=2000, batch=64, rate=1e-2),
)
