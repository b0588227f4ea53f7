"""Small networks with torch's own attention layers, or attention written out."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn


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


class Seq2Seq(nn.Module):
    """nn.Transformer: an encoder, and a decoder that reads it; time-major when `batch_first` is off."""

    def __init__(self, norm_first: bool = False, batch_first: bool = True) -> None:
        super().__init__()
        self.source, self.target = nn.Embedding(41, 16), nn.Embedding(41, 16)
        with warnings.catch_warnings():  # it says that it will not nest tensors
            warnings.simplefilter("ignore", UserWarning)
            self.transformer = nn.Transformer(
                16, 4, 1, 1, 24, dropout=0.0, batch_first=batch_first, norm_first=norm_first
            )
        self.readout = nn.Linear(16, 5)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        length = target.shape[1 if self.transformer.batch_first else 0]
        mask = nn.Transformer.generate_square_subsequent_mask(length)
        out = self.transformer(self.source(source), self.target(target), tgt_mask=mask, tgt_is_causal=True)
        return self.readout(out)


class Capsules(nn.Module):
    """Capsules whose outputs are found by two rounds of routing by agreement."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 12)
        self.votes = nn.Parameter(torch.randn(4, 3, 5, 3) / 2)  # from 4 capsules of 3 numbers to 3 of 5

    def forward(self, x: Tensor) -> Tensor:
        inside = squash(self.first(x).view(-1, 4, 3))
        votes = torch.einsum("bid,ijed->bije", inside, self.votes)
        logits = torch.zeros(votes.shape[:3])
        out = votes[:, 0]
        for _ in range(2):
            out = squash((logits.softmax(2)[..., None] * votes).sum(1))
            logits = logits + (votes * out[:, None]).sum(-1)
        return out.norm(dim=-1)


def squash(x: Tensor) -> Tensor:
    """A vector made shorter than one."""
    size = (x * x).sum(-1, keepdim=True)
    return x * size / (1 + size) / (size + 1e-6).sqrt()
