"""Small networks written by hand, each for one thing that a recorder can get wrong."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint


class CalledTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.shared, self.out = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.shared(torch.tanh(self.shared(x)))))


class Tied(nn.Module):
    """Embedding and unembedding share their weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.up, self.down = nn.Embedding(41, 8), nn.Linear(8, 16), nn.Linear(16, 8)
        self.unembed = nn.Linear(8, 41, bias=False)
        self.unembed.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        return self.unembed(x + self.down(F.gelu(self.up(x))))


class ViewWrites(nn.Module):
    """Writes through views of many kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(8, 12), nn.Linear(12, 12), nn.Linear(12, 4)
        self.register_buffer("table", torch.zeros(12))

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        y[:, 0] = 0
        y.view(-1)[3] += 1
        half = y[:, 6:]
        y[:, 2:5].masked_fill_(y[:, 2:5] > 0.3, 0.5)
        half.relu_()
        z = torch.empty_like(y)
        z.copy_(self.second(y))
        rows = z.t()
        rows[1].mul_(2)
        z[z < -1] = -1
        left, right = z[:, :6], z[:, 6:]
        left += right
        right[0] -= left[1]
        still = z.detach().clone()
        torch.clamp(still, max=0.5, out=still)
        z = z * still
        wide = z.unsqueeze(1).expand(-1, 2, -1).contiguous()
        wide[:, 1].sub_(half.repeat(1, 2))
        self.table.add_(wide.detach().mean((0, 1)))
        return self.third(wide.sum(1) + self.table)


class InPlaceFirst(nn.Module):
    """Writes into its own input and hands a buffer out."""

    def __init__(self) -> None:
        super().__init__()
        self.relu, self.fc = nn.ReLU(inplace=True), nn.Linear(6, 4)
        self.register_buffer("last", torch.zeros(3, 4))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.relu(x)
        y = self.fc(x)
        self.last.copy_(y * 2)
        return y, self.last, x


class Renormed(nn.Module):
    """An embedding that rescales its weight when it is read."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.out = nn.Embedding(41, 8, max_norm=0.5), nn.Linear(8, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(torch.tanh(self.embed(tokens)))


class Dropped(nn.Module):
    """Dropout, left in train mode, twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.drop = nn.Linear(6, 10), nn.Linear(10, 4), nn.Dropout(0.4)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.drop(F.dropout(torch.relu(self.a(x)), 0.2)))


class Branching(nn.Module):
    """Takes another way when a value is negative."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 6), nn.Linear(6, 4), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.a(x)) + 3
        if h.mean() > 1:
            return self.b(h)
        return self.c(h.abs()) * 5


class Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, slope: float) -> Tensor:
        ctx.slope = slope
        return (x > 0).to(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return grads[0] * ctx.slope, None


class StraightThrough(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.b(torch.tanh(self.a(x))))
        return self.c(Step.apply(h, 0.5) + 0.1 * h)


@dataclass
class Answer:
    logits: Tensor
    hidden: tuple[Tensor, ...]
    note: str


class Returning(nn.Module):
    """Returns a dict, a dataclass or nested tuples."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form, self.a, self.b = form, nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor, *, extra: dict[str, Tensor] | None = None) -> Any:
        h = torch.relu(self.a(x + extra["shift"] if extra else x))
        y = self.b(h)
        if self.form == "dict":
            return {"logits": y, "hidden": [h, x], "name": "dict"}
        if self.form == "dataclass":
            return Answer(y, (h, x), "dataclass")
        return (y, (h, [x, None]), 3)


class Stateful(nn.Module):
    """Keeps state in a buffer, in an attribute, in a list and in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 4)
        self.register_buffer("seen", torch.zeros(()))
        self.register_buffer("running", torch.zeros(8))
        self.plain = torch.ones(8)
        self.calls, self.log, self.cache = 0, [], {"last": [None]}

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.a(x))
        self.seen += 1
        self.running = 0.9 * self.running + 0.1 * h.mean(0)
        self.plain.mul_(1.5)
        self.calls += 1
        self.log.append(h.mean())
        self.cache["last"][0] = h
        self.cache[f"call {self.calls}"] = h
        self.fresh = h
        return self.b(h * self.plain + self.running) * self.seen


class Modes(nn.Module):
    """autocast and no_grad blocks inside the forward."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.a(x))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            g = torch.relu(self.b(h))
        with torch.no_grad():
            still = torch.sigmoid(self.b(h))
        return self.c(g.float() * still + h.detach())


class Checkpointed(nn.Module):
    """Gradient checkpointing inside, in its old form or its new one."""

    def __init__(self, reentrant: bool = False) -> None:
        super().__init__()
        self.reentrant = reentrant
        self.a, self.b, self.c = (
            nn.Linear(6, 8),
            nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8)),
            nn.Linear(8, 4),
        )

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.a(x))
        return self.c(h + checkpoint(self.b, h, use_reentrant=self.reentrant))


class Failing(nn.Module):
    """Raises in the middle, after it has changed all it could."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.bn, self.b = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 4)
        self.log: list[Tensor] = []
        self.register_buffer("seen", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        h = self.bn(self.a(x))
        self.seen += 1
        self.seen = self.seen * 2
        self.log.append(h)
        self.new = h
        x.mul_(0)
        torch.randn(3)
        return self.b(h[:, :5])


class Numpy(nn.Module):
    """Leaves torch in the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.a(x)).detach().numpy()
        return self.b(torch.from_numpy(h * h + 1))


def _squash(x: Tensor) -> Tensor:
    return torch.tanh(x) * x


class Scripted(nn.Module):
    """A compiled TorchScript function in the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 4)
        with warnings.catch_warnings():  # TorchScript is deprecated, and still in use
            warnings.simplefilter("ignore", DeprecationWarning)
            self.squash = torch.jit.trace(_squash, torch.ones(3, 8))

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.squash(self.a(x)))
