"""The trained transformers that are not Hugging Face's, written from their descriptions."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class NanoAttention(nn.Module):
    """Causal attention of the nanoGPT family, written out; one layer makes queries, keys and values."""

    def __init__(self, width: int, heads: int, context: int, bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.c_attn, self.c_proj = nn.Linear(width, 3 * width, bias=bias), nn.Linear(width, width)
        self.register_buffer("bias", torch.tril(torch.ones(context, context))[None, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = (
            part.view(batch, length, self.heads, -1).transpose(1, 2) for part in self.c_attn(x).split(width, dim=2)
        )
        scores = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.shape[-1]))
        scores = scores.masked_fill(self.bias[:, :, :length, :length] == 0, float("-inf"))
        out = F.softmax(scores, dim=-1) @ v
        return self.c_proj(out.transpose(1, 2).contiguous().view(batch, length, width))


class TanhGELU(nn.Module):
    """GELU by its tanh formula, written out."""

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))))


class NanoBlock(nn.Module):
    """Attention and MLP, each after a norm."""

    def __init__(self, width: int, heads: int, context: int, bias: bool) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = NanoAttention(width, heads, context, bias)
        self.mlp = nn.ModuleDict(
            {"c_fc": nn.Linear(width, 4 * width), "c_proj": nn.Linear(4 * width, width), "act": TanhGELU()}
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp["c_proj"](self.mlp["act"](self.mlp["c_fc"](self.ln_2(x))))


class NanoGPT(nn.Module):
    """makemore's and minGPT's transformer: learnt positions, no tied head."""

    def __init__(self, words: int, context: int, layers: int, heads: int, width: int, bias: bool = True) -> None:
        super().__init__()
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(words, width),
                "wpe": nn.Embedding(context, width),
                "h": nn.ModuleList(NanoBlock(width, heads, context, bias) for _ in range(layers)),
                "ln_f": nn.LayerNorm(width),
            }
        )
        self.lm_head = nn.Linear(width, words, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        places = torch.arange(0, ids.shape[1], dtype=torch.long).unsqueeze(0)
        x = self.transformer["wte"](ids) + self.transformer["wpe"](places)
        for block in self.transformer["h"]:
            x = block(x)
        return self.lm_head(self.transformer["ln_f"](x))


class PackedAttention(nn.Module):
    """Attention to every position whose projection packs query, key and value within each head."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv_proj, self.o_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        packed = self.qkv_proj(x).reshape(batch, length, self.heads, -1).permute(0, 2, 1, 3)
        q, k, v = packed.chunk(3, dim=-1)
        pattern = F.softmax(torch.matmul(q, k.transpose(-2, -1)) / math.sqrt(q.shape[-1]), dim=-1)
        return self.o_proj(torch.matmul(pattern, v).permute(0, 2, 1, 3).reshape(batch, length, width))


class NormLastBlock(nn.Module):
    """Norms after the residual adds."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.self_attn = PackedAttention(width, heads)
        self.linear_net = nn.Sequential(
            nn.Linear(width, hidden), nn.Dropout(0.1), nn.ReLU(inplace=True), nn.Linear(hidden, width)
        )
        self.norm1, self.norm2, self.dropout = nn.LayerNorm(width), nn.LayerNorm(width), nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(x + self.dropout(self.self_attn(x)))
        return self.norm2(x + self.dropout(self.linear_net(x)))


class ReverseEncoder(nn.Module):
    """Reads one-hot digits [batch, pos, 10], adds sinusoidal positions, and gives logits of a digit a position."""

    def __init__(self) -> None:
        super().__init__()
        self.input_net = nn.Sequential(nn.Dropout(0.0), nn.Linear(10, 32))
        self.transformer = nn.ModuleDict({"layers": nn.ModuleList([NormLastBlock(32, 1, 64)])})
        self.output_net = nn.Sequential(
            nn.Linear(32, 32), nn.LayerNorm(32), nn.ReLU(inplace=True), nn.Dropout(0.0), nn.Linear(32, 10)
        )
        angles = torch.arange(64)[:, None] * torch.exp(torch.arange(0, 32, 2) * (-math.log(10000.0) / 32))
        table = torch.stack([torch.sin(angles), torch.cos(angles)], -1).flatten(1)
        self.register_buffer("table", table[None], persistent=False)

    def forward(self, digits: Tensor) -> Tensor:
        x = self.input_net(digits)
        x = x + self.table[:, : x.shape[1]]
        for layer in self.transformer["layers"]:
            x = layer(x)
        return self.output_net(x)


class ModularAttention(nn.Module):
    """Attention written with einsum, over all positions; its pattern is softmax·share + (1 - share)."""

    def __init__(self, width: int, heads: int, share: float) -> None:
        super().__init__()
        self.share = share
        for name in ("W_Q", "W_K", "W_V"):
            self.register_parameter(name, nn.Parameter(torch.empty(heads, width // heads, width)))
        self.W_O = nn.Parameter(torch.empty(width, width))

    def forward(self, x: Tensor) -> Tensor:
        k = torch.einsum("ihd,bpd->biph", self.W_K, x)
        q = torch.einsum("ihd,bpd->biph", self.W_Q, x)
        v = torch.einsum("ihd,bpd->biph", self.W_V, x)
        scores = torch.einsum("biph,biqh->biqp", k, q)
        pattern = F.softmax(scores / math.sqrt(k.shape[-1]), dim=-1)
        pattern = pattern * self.share + (1 - self.share)
        z = torch.einsum("biph,biqp->biqh", v, pattern)
        flat = z.permute(0, 2, 1, 3).reshape(*x.shape[:2], -1)
        return torch.einsum("df,bqf->bqd", self.W_O, flat)


class ModularAddition(nn.Module):
    """One block without norms on pairs of numbers [batch, 2]; the answer is read at the last position."""

    def __init__(self, share: float, modulus: int = 59, width: int = 128) -> None:
        super().__init__()
        self.embed, self.pos_embed, self.unembed = nn.Module(), nn.Module(), nn.Module()
        self.embed.W_E = nn.Parameter(torch.empty(width, modulus))
        self.pos_embed.W_pos = nn.Parameter(torch.empty(2, width))
        self.unembed.W_U = nn.Parameter(torch.empty(width, modulus))
        block = nn.Module()
        block.attn, block.mlp = ModularAttention(width, 4, share), nn.Module()
        block.mlp.W_in, block.mlp.b_in = nn.Parameter(torch.empty(512, width)), nn.Parameter(torch.empty(512))
        block.mlp.W_out, block.mlp.b_out = nn.Parameter(torch.empty(width, 512)), nn.Parameter(torch.empty(width))
        self.blocks = nn.ModuleList([block])

    def forward(self, pairs: Tensor) -> Tensor:
        x = torch.einsum("dbp->bpd", self.embed.W_E[:, pairs])
        x = x + self.pos_embed.W_pos[: x.shape[1]]
        block = self.blocks[0]
        x = x + block.attn(x)
        hidden = F.relu(torch.einsum("md,bpd->bpm", block.mlp.W_in, x) + block.mlp.b_in)
        x = x + torch.einsum("dm,bpm->bpd", block.mlp.W_out, hidden) + block.mlp.b_out
        return (x @ self.unembed.W_U)[:, -1]


class CompiledLayer(nn.Module):
    """A layer as Tracr compiles it: no norms, every position attends to every position, ReLU."""

    def __init__(self, width: int, heads: int, key: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        names = ("query", "key", "value")
        self.attn = nn.ModuleDict({name: nn.Linear(width, heads * key) for name in names})
        self.attn["out"] = nn.Linear(heads * key, width)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, hidden), "fc2": nn.Linear(hidden, width)})

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (self.attn[name](x).unflatten(-1, (self.heads, -1)) for name in ("query", "key", "value"))
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(q.shape[-1])
        z = torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v)
        x = x + self.attn["out"](z.flatten(-2))
        return x + self.mlp["fc2"](torch.relu(self.mlp["fc1"](x)))


class Compiled(nn.Module):
    """A transformer compiled from a RASP program, built from the numbers in its program.json."""

    def __init__(self, program: dict) -> None:
        super().__init__()
        width, heads = program["d_model"], program["num_heads"]
        self.token_embed = nn.Embedding(len(program["input_vocab"]), width)
        self.pos_embed = nn.Embedding(program["max_seq_len_with_bos"], width)
        self.layers = nn.ModuleList(
            CompiledLayer(width, heads, program["key_size"], program["mlp_hidden_size"])
            for _ in range(program["num_layers"])
        )
        self.unembed = nn.Linear(width, len(program["output_labels"]), bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.token_embed(ids) + self.pos_embed(torch.arange(ids.shape[1]))
        for layer in self.layers:
            x = layer(x)
        return self.unembed(x)
