"""The plain transformer that programs are compiled to: no norms, softmax attention, ReLU."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


@dataclass(frozen=True)
class Size:
    """The shape of a transformer. `places` counts the begin token; `causal` hides later keys from a query."""

    vocabulary: int
    places: int
    width: int
    layers: int
    heads: int
    head_width: int
    hidden: int
    outputs: int
    causal: bool


class Attention(nn.Module):
    """Multi-head attention in which the begin token, at place 0, attends to itself alone."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.heads, self.head_width, self.causal = size.heads, size.head_width, size.causal
        inner = size.heads * size.head_width
        self.query, self.key = nn.Linear(size.width, inner), nn.Linear(size.width, inner, bias=False)
        self.value, self.out = nn.Linear(size.width, inner, bias=False), nn.Linear(inner, size.width, bias=False)

    def forward(self, x: Float[Tensor, "n places width"]) -> Float[Tensor, "n places width"]:
        n, places, _ = x.shape
        q, k, v = (
            project(x).view(n, places, self.heads, self.head_width).transpose(1, 2)
            for project in (self.query, self.key, self.value)
        )
        at = torch.arange(places, device=x.device)
        seen = (at[None, :] <= at[:, None]) if self.causal else (at[None, :] == 0) | (at[:, None] > 0)
        scores = (q @ k.transpose(-1, -2) / math.sqrt(self.head_width)).masked_fill(~seen, float("-inf"))
        return self.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(n, places, -1))


class Layer(nn.Module):
    """Attention, then an MLP, each added to the stream."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.attention = Attention(size)
        self.up, self.down = nn.Linear(size.width, size.hidden), nn.Linear(size.hidden, size.width, bias=False)

    def forward(self, x: Float[Tensor, "n places width"]) -> Float[Tensor, "n places width"]:
        x = x + self.attention(x)
        return x + self.down(torch.relu(self.up(x)))


class CompiledTransformer(nn.Module):
    """Tokens (n, places), the begin token first -> outputs (n, places, outputs)."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.embed = nn.Embedding(size.vocabulary, size.width)
        self.pos_embed = nn.Embedding(size.places, size.width)
        self.layers = nn.ModuleList(Layer(size) for _ in range(size.layers))
        self.unembed = nn.Linear(size.width, size.outputs, bias=False)

    def forward(self, tokens: Int[Tensor, "n places"]) -> Float[Tensor, "n places outputs"]:
        x = self.embed(tokens) + self.pos_embed(torch.arange(tokens.shape[1], device=tokens.device))
        for layer in self.layers:
            x = layer(x)
        return self.unembed(x)


def empty(size: Size) -> CompiledTransformer:
    """A transformer whose weights are all zero, without gradients, in eval mode."""
    with torch.random.fork_rng(devices=[]):
        module = CompiledTransformer(size).eval()
    for parameter in module.parameters():
        parameter.data.zero_()
    return module
