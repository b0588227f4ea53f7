"""Linear recurrences written by hand, and one with a known mechanism."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Leaky(nn.Module):
    """h = a*h + b*x with learnt constants: linear all the way. Read out once, or at every step from a stack."""

    def __init__(self, every: bool = False) -> None:
        super().__init__()
        self.embed, self.inside, self.out, self.every = nn.Embedding(41, 6), nn.Linear(6, 5), nn.Linear(5, 4), every
        self.a, self.b = nn.Parameter(torch.rand(5)), nn.Parameter(torch.rand(5))

    def states(self, tokens: Tensor, edit: tuple[int, float] = (-1, 1.0)) -> list[Tensor]:
        """The state after each step; that of step `edit[0]` is scaled."""
        x, state, found = self.inside(self.embed(tokens)), torch.zeros(len(tokens), 5), []
        for step in range(tokens.shape[1]):
            state = self.a * state + self.b * x[:, step]
            state = state * edit[1] if step == edit[0] else state
            found.append(state)
        return found

    def forward(self, tokens: Tensor, edit: tuple[int, float] = (-1, 1.0)) -> Tensor:
        found = self.states(tokens, edit)
        return self.out(torch.stack(found, 1) if self.every else found[-1])


class Buffered(Leaky):
    """The same, written step by step into one tensor."""

    def forward(self, tokens: Tensor, edit: tuple[int, float] = (-1, 1.0)) -> Tensor:
        x, found = self.inside(self.embed(tokens)), torch.zeros(len(tokens), tokens.shape[1] + 1, 5)
        for step in range(tokens.shape[1]):
            found[:, step + 1] = torch.tanh(self.a) * found[:, step] + x[:, step]
        return self.out(found[:, 1:])


class MinimalGated(nn.Module):
    """A minimal gated unit: its gate and candidate do not see the state. Projected in the loop, read out in it or not.

    Feng et al. 2024, "Were RNNs all we needed?".
    """

    def __init__(self, inside: bool) -> None:
        super().__init__()
        self.embed, self.gate, self.new = nn.Embedding(41, 6), nn.Linear(6, 5), nn.Linear(6, 5)
        self.out, self.inside = nn.Linear(5, 4), inside

    def states(self, tokens: Tensor, edit: tuple[int, float] = (-1, 1.0)) -> list[Tensor]:
        """The state after each step; that of step `edit[0]` is scaled."""
        state, found = torch.zeros(len(tokens), 5), []
        for step, x in enumerate(self.embed(tokens).unbind(1)):
            gate = torch.sigmoid(self.gate(x))
            state = (1 - gate) * state + gate * self.new(x)
            state = state * edit[1] if step == edit[0] else state
            found.append(state)
        return found

    def forward(self, tokens: Tensor, edit: tuple[int, float] = (-1, 1.0)) -> Tensor:
        if not self.inside:
            return self.out(torch.stack(self.states(tokens, edit), 1))
        state, found = torch.zeros(len(tokens), 5), []
        for step, x in enumerate(self.embed(tokens).unbind(1)):
            gate = torch.sigmoid(self.gate(x))
            state = (1 - gate) * state + gate * self.new(x)
            state = state * edit[1] if step == edit[0] else state
            found.append(self.out(state))
        return torch.stack(found, 1)


class MatrixStates(nn.Module):
    """RWKV 5: a matrix of states a head, group norm, a gate (Peng et al. 2024, arXiv:2404.05892)."""

    def __init__(self, width: int = 8, heads: int = 2) -> None:
        super().__init__()
        self.heads, self.embed, self.norm = heads, nn.Embedding(41, width), nn.LayerNorm(width)
        self.r, self.k, self.v, self.g, self.o = (nn.Linear(width, width, bias=False) for _ in range(5))
        self.decay, self.first = (nn.Parameter(torch.randn(heads, width // heads)) for _ in range(2))
        self.ln_x, self.head = nn.GroupNorm(heads, width), nn.Linear(width, 41)

    def forward(self, tokens: Tensor, edit: tuple[int, float] = (-1, 1.0), seen: list[Tensor] | None = None) -> Tensor:
        x = self.embed(tokens)
        y, (batch, steps, width) = self.norm(x), x.shape
        r, v = (part(y).view(batch, steps, self.heads, 1, -1) for part in (self.r, self.v))
        k, gate = self.k(y).view(batch, steps, self.heads, -1, 1), F.silu(self.g(y))
        decay, first = torch.exp(-torch.exp(self.decay)).unsqueeze(-1), self.first.unsqueeze(-1)
        state, found = torch.zeros(batch, self.heads, k.shape[3], k.shape[3]), []
        for step in range(steps):
            new = k[:, step] @ v[:, step]
            found.append((r[:, step] @ (first * new + state)).squeeze(-2))
            state = new + decay * state
            state = state * edit[1] if step == edit[0] else state
            if seen is not None:
                seen.append(state)
        z = self.ln_x(torch.stack(found, 1).reshape(batch * steps, width)).view(batch, steps, width) * gate
        return self.head(x + self.o(z))


class Delta(nn.Module):
    """The delta rule: what a key holds is replaced (Schlag et al. 2021, arXiv:2102.11174)."""

    def __init__(self, width: int = 8, heads: int = 2) -> None:
        super().__init__()
        self.heads, self.embed, self.head = heads, nn.Embedding(41, width), nn.Linear(width, 41)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.beta = nn.Linear(width, heads)

    def forward(self, tokens: Tensor, edit: tuple[int, float] = (-1, 1.0), seen: list[Tensor] | None = None) -> Tensor:
        x = self.embed(tokens)
        q, k, v = (part(x).unflatten(-1, (self.heads, -1)) for part in (self.q, self.k, self.v))
        k, beta = F.normalize(k, dim=-1), torch.sigmoid(self.beta(x))
        state, found = torch.zeros(len(tokens), self.heads, k.shape[3], k.shape[3]), []
        for step in range(tokens.shape[1]):
            held = torch.einsum("bhk,bhkv->bhv", k[:, step], state)
            change = (v[:, step] - held) * beta[:, step, :, None]
            state = state + torch.einsum("bhk,bhv->bhkv", k[:, step], change)
            state = state * edit[1] if step == edit[0] else state
            found.append(torch.einsum("bhk,bhkv->bhv", q[:, step], state))
            if seen is not None:
                seen.append(state)
        return self.head(x + self.o(torch.stack(found, 1).flatten(2)))


class LinearAttention(nn.Module):
    """Attention without a softmax: its states are never made (Katharopoulos et al. 2020, arXiv:2006.16236)."""

    def __init__(self, width: int = 8, heads: int = 2) -> None:
        super().__init__()
        self.heads, self.embed, self.head = heads, nn.Embedding(41, width), nn.Linear(width, 41)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width, bias=False) for _ in range(4))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        q, k, v = (part(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.q, self.k, self.v))
        scores = (F.elu(q) + 1) @ (F.elu(k) + 1).mT * torch.tril(torch.ones(tokens.shape[1], tokens.shape[1]))
        z = scores / scores.sum(-1, keepdim=True) @ v
        return self.head(x + self.o(z.transpose(1, 2).flatten(2)))


class Dense(nn.Module):
    """h = A h + B x: linear, but units mix."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.inside, self.out = nn.Embedding(41, 6), nn.Linear(6, 5), nn.Linear(5, 4)
        self.back = nn.Linear(5, 5, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        state = torch.zeros(len(tokens), 5)
        for x in self.embed(tokens).unbind(1):
            state = self.back(state) + self.inside(x)
        return self.out(state)


class BothWays(nn.Module):
    """A gated scan forwards and one backwards, side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.ahead, self.back, self.out = (
            nn.Embedding(41, 6), nn.Linear(6, 5), nn.Linear(6, 5), nn.Linear(10, 4),
        )  # fmt: skip

    @staticmethod
    def scan(x: Tensor, project: nn.Module) -> Tensor:
        state, found = torch.zeros(len(x), 5), []
        for step in range(x.shape[1]):
            value = project(x[:, step])
            state = torch.sigmoid(value) * state + value
            found.append(state)
        return torch.stack(found, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        return self.out(torch.cat([self.scan(x, self.ahead), self.scan(x.flip(1), self.back).flip(1)], -1))


# The planted mechanism. Tokens are ( ) a b and a blank; the stream has a coordinate a token and one a channel.
OPEN, CLOSE, A, B, BLANK = range(5)
CHANNELS, WIDTH = 4, 5 + 2 * 4
TRUTH = (
    "embed -> L0.ssm.c0.in", "embed -> L0.ssm.c0.decay", "L0.ssm.c0 -> L1.ssm.c1.in", "L1.ssm.c1 -> logits",
)  # fmt: skip


class Selective(nn.Module):
    """One selective scan: what enters a channel, what keeps it and what lets it out are read from the stream."""

    def __init__(self, place: int) -> None:
        super().__init__()
        self.enter = nn.Linear(WIDTH, CHANNELS, bias=False)
        self.keep, self.gate = nn.Linear(WIDTH, CHANNELS), nn.Linear(WIDTH, CHANNELS)
        self.out = nn.Linear(CHANNELS, WIDTH, bias=False)
        with torch.no_grad():
            for part in (self.enter, self.keep, self.gate):
                part.weight.zero_()
            self.keep.bias.fill_(20.0)  # keep everything
            self.gate.bias.fill_(1.0)
            self.out.weight.zero_()
            self.out.weight[place : place + CHANNELS] = torch.eye(CHANNELS)

    def forward(self, stream: Tensor) -> Tensor:
        enter, keep, gate = self.enter(stream), torch.sigmoid(self.keep(stream)), self.gate(stream)
        state, found = torch.zeros_like(enter[:, 0]), []
        for step in range(stream.shape[1]):
            state = keep[:, step] * state + enter[:, step]
            found.append(state)
        return self.out(torch.stack(found, 1) * F.silu(gate))


class Holder(nn.Module):
    """How many steps the last letter was an a, less those it was a b: held by one channel, counted by another.

    Beside that, both layers count brackets and letters in channels that other outputs read. `noise` is added to every
    weight, so that nothing is exactly zero.
    """

    def __init__(self, noise: float = 0.0) -> None:
        super().__init__()
        self.embed, self.hold, self.count = nn.Embedding(5, WIDTH), Selective(5), Selective(5 + CHANNELS)
        self.readout = nn.Linear(WIDTH, 3, bias=False)
        with torch.no_grad():
            self.embed.weight.zero_()
            self.embed.weight[:, :5] = torch.eye(5)
            self.hold.enter.weight[0, A], self.hold.enter.weight[0, B] = 1.0, -1.0
            self.hold.keep.weight[0, [A, B]] = -40.0  # a letter takes the place of the one before
            self.hold.enter.weight[1, OPEN], self.hold.enter.weight[1, CLOSE] = 1.0, -1.0
            self.hold.enter.weight[2, [A, B]] = 1.0
            self.hold.keep.weight[2, OPEN] = -19.0
            self.hold.enter.weight[3, [OPEN, B]] = 1.0
            self.hold.gate.weight[3, A] = 1.0
            self.count.enter.weight[0, 5 + 1] = 1.0  # adds up the depth
            self.count.enter.weight[1, 5 + 0] = 1.0  # adds up the held letter
            self.count.enter.weight[2, 5 + 2] = 1.0
            self.count.gate.weight[2, 5 + 3] = 0.1
            self.count.enter.weight[3, [5 + 3, OPEN]] = 1.0
            self.readout.weight.zero_()
            self.readout.weight[0, 5 + CHANNELS + 1] = 1.0
            self.readout.weight[1, [5 + CHANNELS, 5 + 1]] = 1.0
            self.readout.weight[2, [5 + CHANNELS + 2, 5 + CHANNELS + 3, 5 + 3, A]] = 1.0
            generator = torch.Generator().manual_seed(0)
            for parameter in self.parameters():
                parameter += noise * torch.randn(parameter.shape, generator=generator)

    def forward(self, tokens: Tensor) -> Tensor:
        stream = self.embed(tokens)
        stream = stream + self.hold(stream)
        stream = stream + self.count(stream)
        return self.readout(stream[:, -1])


def pairs(count: int, steps: int = 9) -> tuple[Tensor, Tensor]:
    """Strings with an a after a b, and the same with that a made a bracket, so that the b is held on."""
    generator = torch.Generator().manual_seed(0)
    clean = torch.randint(0, 5, (count, steps), generator=generator)
    clean[:, 1] = B
    clean[:, 2:4] = torch.randint(0, 2, (count, 2), generator=generator)
    clean[:, 4] = A
    corrupted = clean.clone()
    corrupted[:, 4] = OPEN
    return clean, corrupted
