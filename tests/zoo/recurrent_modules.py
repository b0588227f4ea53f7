"""Small recurrent networks, written by hand."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence


class Recurrent(nn.Module):
    """Embedding, one of torch's recurrent layers, a readout of the last step."""

    def __init__(self, kind: type[nn.RNNBase], **options: Any) -> None:
        super().__init__()
        self.embed = nn.Embedding(41, 6)
        self.rnn = kind(6, 5, batch_first=True, **options)
        self.readout = nn.Linear((options.get("proj_size") or 5) * (1 + self.rnn.bidirectional), 4)

    def forward(self, tokens: Tensor) -> Tensor:
        with warnings.catch_warnings():  # torch says that oneDNN knows no projections
            warnings.simplefilter("ignore", UserWarning)
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


class TimeMajor(nn.Module):
    """One of torch's recurrent layers on [time, batch], as is its default; reads out the last step."""

    def __init__(self, kind: type[nn.RNNBase], **options: Any) -> None:
        super().__init__()
        self.embed, self.rnn, self.readout = nn.Embedding(41, 6), kind(6, 5, **options), nn.Linear(5, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.readout(self.rnn(self.embed(tokens))[0][-1])


class Packed(nn.Module):
    """A recurrent layer on sequences of different lengths, packed; reads out the last state of each."""

    def __init__(self, kind: type[nn.RNNBase], **options: Any) -> None:
        super().__init__()
        self.embed = nn.Embedding(41, 6)
        self.rnn, self.readout = kind(6, 5, batch_first=True, **options), nn.Linear(5, 4)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(self.embed(tokens), lengths, batch_first=True, enforce_sorted=False)
        out, last = self.rnn(packed)
        padded, _ = pad_packed_sequence(out, batch_first=True)
        return self.readout(padded.sum(1) + (last[0] if isinstance(last, tuple) else last)[-1])


class LSTMCellLoop(nn.Module):
    """Two LSTMCells, one above the other, in a Python loop."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.readout = nn.Embedding(41, 6), nn.Linear(4, 3)
        self.low, self.high = nn.LSTMCell(6, 5), nn.LSTMCell(5, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        low = high = None
        for step in self.embed(tokens).unbind(1):
            low = self.low(step, low)
            high = self.high(low[0], high)
        return self.readout(high[0])


class EchoState(nn.Module):
    """A fixed reservoir of leaky units; only the readout would be trained."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("inside", torch.randn(8, 2))
        self.register_buffer("reservoir", torch.randn(8, 8) * 0.3)
        self.readout = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        state = x.new_zeros(len(x), 8)
        for step in x.unbind(1):
            state = 0.7 * state + 0.3 * torch.tanh(step @ self.inside.T + state @ self.reservoir.T)
        return self.readout(state)


class Thinker(nn.Module):
    """A recurrent policy that thinks until it is sure enough, then gives its preferences and a value."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.cell = nn.Linear(6, 7), nn.GRUCell(7, 5)
        self.stop, self.policy, self.value = nn.Linear(5, 1), nn.Linear(5, 4), nn.Linear(5, 1)

    def forward(self, seen: Tensor) -> tuple[Tensor, Tensor, int]:
        seen = torch.relu(self.encode(seen))
        state, sure, steps = torch.zeros(len(seen), 5), torch.zeros(len(seen), 1), 0
        while sure.mean() < 1.7:
            state = self.cell(seen, state)
            sure = sure + torch.sigmoid(self.stop(state))
            steps += 1
        return self.policy(state), self.value(state), steps


class Spike(torch.autograd.Function):
    """A step forwards, a smooth bump backwards."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return (x > 0).to(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0] / (1 + 5 * ctx.saved_tensors[0].abs()) ** 2


class Spiking(nn.Module):
    """Leaky membranes that spike, are reset, and drive each other; reads out the mean of the spikes."""

    def __init__(self) -> None:
        super().__init__()
        self.inside, self.back, self.readout = nn.Linear(3, 8), nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        membrane = spikes = torch.zeros(len(x), 8)
        total = torch.zeros(len(x), 8)
        for step in x.unbind(1):
            membrane = 0.8 * membrane * (1 - spikes) + self.inside(step) + self.back(spikes)
            spikes = Spike.apply(membrane - 0.5)
            total = total + spikes
        return self.readout(total / x.shape[1])


class FixedPoint(nn.Module):
    """A deep equilibrium: one layer repeated until it changes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.inside, self.back, self.readout = nn.Linear(6, 5), nn.Linear(5, 5, bias=False), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        drive, state = self.inside(x), torch.zeros(len(x), 5)
        for _ in range(30):
            after = torch.tanh(drive + 0.3 * self.back(state))
            done = (after - state).norm() < 1e-2 * after.norm()
            state = after
            if done:
                break
        return self.readout(state)


class Memory(nn.Module):
    """A controller that reads from and writes to a matrix of memory, weighted by sigmoids of likeness."""

    def __init__(self) -> None:
        super().__init__()
        self.control, self.key = nn.Linear(3 + 4, 6), nn.Linear(6, 4)
        self.erase, self.write, self.readout = nn.Linear(6, 4), nn.Linear(6, 4), nn.Linear(6, 3)
        self.start = nn.Parameter(torch.randn(5, 4) / 2)

    def forward(self, x: Tensor) -> Tensor:
        memory = self.start.expand(len(x), 5, 4)
        read = hidden = x.new_zeros(len(x), 4)
        for step in x.unbind(1):
            hidden = torch.tanh(self.control(torch.cat([step, read], -1)))
            weight = torch.sigmoid(memory @ self.key(hidden)[..., None])
            read = (weight * memory).sum(1)
            memory = memory * (1 - weight * torch.sigmoid(self.erase(hidden))[:, None])
            memory = memory + weight * self.write(hidden)[:, None]
        return self.readout(hidden)


class ConvolutionalLSTM(nn.Module):
    """An LSTM whose states are images."""

    def __init__(self) -> None:
        super().__init__()
        self.gates, self.readout = nn.Conv2d(2 + 3, 12, 3, padding=1), nn.Linear(3, 4)

    def forward(self, frames: Tensor) -> Tensor:
        hidden = cell = frames.new_zeros(len(frames), 3, *frames.shape[-2:])
        for frame in frames.unbind(1):
            i, f, g, o = self.gates(torch.cat([frame, hidden], 1)).chunk(4, 1)
            cell = torch.sigmoid(f) * cell + torch.sigmoid(i) * torch.tanh(g)
            hidden = torch.sigmoid(o) * torch.tanh(cell)
        return self.readout(hidden.mean((-2, -1)))
