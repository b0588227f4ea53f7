"""Small networks written by hand, each for one thing that a recorder can get wrong."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint


class LeNet(nn.Module):
    """Convolutions with in-place ReLU, pooling, two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 4, 3),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(4, 6, 3),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
        )
        self.classify = nn.Sequential(nn.Flatten(), nn.Linear(54, 10), nn.ReLU(inplace=True), nn.Linear(10, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.features(x))


class ResBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        y += x
        return self.relu(y)


class ResNet(nn.Module):
    """Two residual blocks with batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True))
        self.block1, self.block2 = ResBlock(6), ResBlock(6)
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block2(self.block1(self.stem(x)))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


class UNet(nn.Module):
    """One level down, one up, a skip by concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.middle = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 6, 3, padding=1)
        self.up, self.out = nn.ConvTranspose2d(6, 4, 2, stride=2), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        kept = F.relu(self.down(x))
        deep = F.relu(self.middle(F.max_pool2d(kept, 2)))
        return self.out(torch.cat([F.relu(self.up(deep)), kept], 1))


class Recurrent(nn.Module):
    """Embedding, one of torch's recurrent layers, a readout of the last step."""

    def __init__(self, kind: type[nn.RNNBase], **options: Any) -> None:
        super().__init__()
        self.embed = nn.Embedding(41, 6)
        self.rnn = kind(6, 5, batch_first=True, **options)
        self.readout = nn.Linear(5 * (1 + self.rnn.bidirectional), 4)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.readout(self.rnn(self.embed(tokens))[0][:, -1])


class CellLoop(nn.Module):
    """A GRUCell in a Python loop."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.cell, self.readout = nn.Embedding(41, 6), nn.GRUCell(6, 5), nn.Linear(5, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        state = torch.zeros(len(tokens), 5)
        for step in self.embed(tokens).unbind(1):
            state = self.cell(step, state)
        return self.readout(state)


class WrittenGRU(nn.Module):
    """A GRU written out by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.readout = nn.Embedding(41, 6), nn.Linear(5, 4)
        self.inside, self.back = nn.Linear(6, 15), nn.Linear(5, 15)

    def forward(self, tokens: Tensor) -> Tensor:
        state = torch.zeros(len(tokens), 5)
        for step in self.embed(tokens).unbind(1):
            ir, iz, inew = self.inside(step).chunk(3, -1)
            hr, hz, hnew = self.back(state).chunk(3, -1)
            r, z = torch.sigmoid(ir + hr), torch.sigmoid(iz + hz)
            state = (1 - z) * torch.tanh(inew + r * hnew) + z * state
        return self.readout(state)


class Encoder(nn.Module):
    """nn.TransformerEncoder; norm first or last."""

    def __init__(self, norm_first: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(41, 16)
        layer = nn.TransformerEncoderLayer(16, 4, 24, dropout=0.0, batch_first=True, norm_first=norm_first)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.readout = nn.Linear(16, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.readout(self.encoder(self.embed(tokens)))


class WithWeights(nn.Module):
    """nn.MultiheadAttention asked for its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.attention = nn.Embedding(41, 16), nn.MultiheadAttention(16, 4, batch_first=True)
        self.readout = nn.Linear(16, 5)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        x = self.embed(tokens)
        out, weights = self.attention(x, x, x, need_weights=True, average_attn_weights=False)
        return self.readout(x + out), weights


class Autoencoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encode, self.decode = nn.Sequential(nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 2)), nn.Linear(2, 8)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.decode(torch.relu(self.encode(x))))


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


class Attention(nn.Module):
    """Causal attention written out, einsum and a masked softmax, with a batch folded into heads."""

    def __init__(self, folded: bool) -> None:
        super().__init__()
        self.folded, self.embed, self.unembed = folded, nn.Embedding(41, 16), nn.Linear(16, 41)
        self.q, self.k, self.v, self.o = (nn.Linear(16, 16) for _ in range(4))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        batch, length, _ = x.shape
        q, k, v = (part(x).view(batch, length, 4, 4).transpose(1, 2) for part in (self.q, self.k, self.v))
        mask = torch.full((length, length), float("-inf")).triu(1)
        if self.folded:
            q, k, v = (part.reshape(batch * 4, length, 4) for part in (q, k, v))
            z = torch.bmm(torch.softmax(torch.baddbmm(mask, q, k.transpose(1, 2), alpha=0.5), -1), v)
            z = z.view(batch, 4, length, 4)
        else:
            scores = torch.einsum("bhqd,bhkd->bhqk", q, k) * 0.5 + mask
            z = torch.einsum("bhqk,bhkd->bhqd", scores.softmax(-1), v)
        return self.unembed(x + self.o(z.transpose(1, 2).reshape(batch, length, 16)))
