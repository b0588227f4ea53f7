"""The trained networks with a state: two RWKVs, a character LSTM and an Atari agent."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _linear(width: int, out: int) -> nn.Linear:
    return nn.Linear(width, out, bias=False)


class Mix(nn.Module):
    """What the time mixes of RWKV share: each of `parts` reads a blend of a position and the one before it."""

    def __init__(self, width: int, parts: str) -> None:
        super().__init__()
        for part in parts:
            self.register_parameter(f"time_mix_{part}", nn.Parameter(torch.empty(width)))

    def blend(self, x: Tensor, part: str) -> Tensor:
        """x [batch, pos, width] mixed with itself one position earlier; nothing stands before the first."""
        mix = getattr(self, f"time_mix_{part}")
        return x * mix + F.pad(x, (0, 0, 1, -1)) * (1 - mix)


class TimeMix4(Mix):
    """RWKV-4: a decaying, exponentially weighted mean of values, kept as numerator, denominator and exponent."""

    def __init__(self, width: int) -> None:
        super().__init__(width, "kvr")
        self.time_decay, self.time_first = nn.Parameter(torch.empty(width)), nn.Parameter(torch.empty(width))
        self.key, self.value = _linear(width, width), _linear(width, width)
        self.receptance, self.output = _linear(width, width), _linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        keys, values = self.key(self.blend(x, "k")), self.value(self.blend(x, "v"))
        gate = torch.sigmoid(self.receptance(self.blend(x, "r")))
        over = under = torch.zeros_like(keys[:, 0])
        peak = torch.full_like(keys[:, 0], -1e38)
        means = []
        for key, value in zip(keys.unbind(1), values.unbind(1), strict=True):
            now = self.time_first + key
            top = torch.maximum(peak, now)
            old, new = torch.exp(peak - top), torch.exp(now - top)
            means.append((old * over + new * value) / (old * under + new))
            faded = peak + self.time_decay
            top = torch.maximum(faded, key)
            old, new = torch.exp(faded - top), torch.exp(key - top)
            over, under, peak = old * over + new * value, old * under + new, top
        return self.output(gate * torch.stack(means, 1))


class TimeMix5(Mix):
    """RWKV-5.2: each head keeps a decaying matrix of key by value; the output is normed by head and gated."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, "kvrg")
        self.heads = heads
        self.time_decay = nn.Parameter(torch.empty(heads, width // heads, 1))
        self.time_faaaa = nn.Parameter(torch.empty(heads, width // heads, 1))
        self.key, self.value, self.gate = _linear(width, width), _linear(width, width), _linear(width, width)
        self.receptance, self.output = _linear(width, width), _linear(width, width)
        self.ln_x = nn.GroupNorm(heads, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        shape = (batch, length, self.heads, width // self.heads)
        keys, values = self.key(self.blend(x, "k")).view(shape), self.value(self.blend(x, "v")).view(shape)
        asks, gate = self.receptance(self.blend(x, "r")).view(shape), F.silu(self.gate(self.blend(x, "g")))
        state = x.new_zeros(batch, self.heads, width // self.heads, width // self.heads)
        outputs = []
        for place in range(length):
            key, value, ask = keys[:, place, :, :, None], values[:, place, :, None], asks[:, place, :, None]
            pair = key @ value
            outputs.append(ask @ (self.time_faaaa * pair + state))
            state = pair + self.time_decay * state
        normed = self.ln_x(torch.stack(outputs, 1).reshape(batch * length, width)).view(batch, length, width)
        return self.output(normed * gate)


class ChannelMix(Mix):
    """RWKV's feed-forward layer: squared ReLU, gated by the receptance."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__(width, "kr")
        self.key, self.value, self.receptance = _linear(width, hidden), _linear(hidden, width), _linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.key(self.blend(x, "k"))) ** 2
        return torch.sigmoid(self.receptance(self.blend(x, "r"))) * self.value(hidden)


class RWKVBlock(nn.Module):
    """Two norms, two mixes, two residual adds; the first block norms the embedding too."""

    def __init__(self, width: int, hidden: int, mix: nn.Module, first: bool) -> None:
        super().__init__()
        if first:
            self.ln0 = nn.LayerNorm(width)
        self.ln1, self.ln2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.att, self.ffn = mix, ChannelMix(width, hidden)
        self.first = first

    def forward(self, x: Tensor) -> Tensor:
        x = self.ln0(x) if self.first else x
        x = x + self.att(self.ln1(x))
        return x + self.ffn(self.ln2(x))


class RWKV(nn.Module):
    """A byte-level RWKV language model of version 4 or 5.2."""

    def __init__(self, version: int, layers: int, width: int, hidden: int) -> None:
        super().__init__()
        self.emb = nn.Embedding(256, width)
        mixes = [TimeMix4(width) if version == 4 else TimeMix5(width, 8) for _ in range(layers)]
        self.blocks = nn.Sequential(*(RWKVBlock(width, hidden, mix, not place) for place, mix in enumerate(mixes)))
        self.ln_out, self.head = nn.LayerNorm(width), _linear(width, 256)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.ln_out(self.blocks(self.emb(ids))))


class CharLSTM(nn.Module):
    """An embedding, two layers of torch's own LSTM, a linear readout."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(65, 128)
        self.lstm = nn.LSTM(128, 128, 2, batch_first=True)
        self.out = nn.Linear(128, 65)

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(self.lstm(self.embedding(ids))[0])


class PongAgent(nn.Module):
    """Four convolutions and a GRU cell over frames [batch, time, 1, 80, 80]: logits of six actions, the value, and the
    state at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3, 2, 1)
        self.conv2, self.conv3, self.conv4 = (nn.Conv2d(32, 32, 3, 2, 1) for _ in range(3))
        self.gru = nn.GRUCell(800, 256)
        self.critic_linear, self.actor_linear = nn.Linear(256, 1), nn.Linear(256, 6)

    def forward(self, frames: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        state = frames.new_zeros(len(frames), 256) if state is None else state
        logits, values = [], []
        for frame in frames.unbind(1):
            x = frame
            for layer in (self.conv1, self.conv2, self.conv3, self.conv4):
                x = F.elu(layer(x))
            state = self.gru(x.view(-1, 800), state)
            logits.append(self.actor_linear(state))
            values.append(self.critic_linear(state))
        return torch.stack(logits, 1), torch.stack(values, 1), state
