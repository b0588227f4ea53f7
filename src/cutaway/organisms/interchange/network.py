"""The transformer that is aligned to a program, and its evaluation with some edges carrying another input's values."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attention import Attention

LAYERS, HEADS, HEAD_WIDTH, HIDDEN = 2, 4, 8, 32
WIDTH = HEADS * HEAD_WIDTH
WRITERS = ("embed", "pos_embed") + tuple(
    name for layer in range(LAYERS) for name in (*(f"L{layer}.attn.h{head}" for head in range(HEADS)), f"L{layer}.mlp")
)
_HEAD_READERS = [
    [f"L{layer}.attn.h{head}.{port}" for port in "qkv" for head in range(HEADS)] for layer in range(LAYERS)
]
READERS = tuple(name for layer in range(LAYERS) for name in (*_HEAD_READERS[layer], f"L{layer}.mlp.in")) + ("logits",)


class Block(nn.Module):
    """Pre-norm attention and MLP, (n, positions, width) -> the same."""

    def __init__(self, causal: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(WIDTH, eps=1e-3), nn.RMSNorm(WIDTH, eps=1e-3)
        self.attention = Attention(WIDTH, HEADS, HEAD_WIDTH, causal=causal)
        self.up, self.down = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)

    def mlp(self, x: Tensor) -> Tensor:
        """What the MLP adds to the stream."""
        added: Tensor = self.down(F.gelu(self.up(self.norm2(x))))
        return added

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(x)


class AlignedNet(nn.Module):
    """Tokens (n, length) -> logits (n, length, outputs)."""

    def __init__(self, alphabet: int, length: int, outputs: int, causal: bool) -> None:
        super().__init__()
        self.embed, self.pos_embed = nn.Embedding(alphabet, WIDTH), nn.Embedding(length, WIDTH)
        self.blocks = nn.ModuleList(Block(causal) for _ in range(LAYERS))
        self.norm = nn.RMSNorm(WIDTH, eps=1e-3)
        self.unembed = nn.Linear(WIDTH, outputs, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens) + self.pos_embed(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.unembed(self.norm(x))
        return logits


def interchanged(module: AlignedNet, inputs: Tensor, source: Tensor, swapped: Tensor) -> Tensor:
    """Logits on `inputs` where the edges in `swapped` (n, readers, writers) carry what they carry on `source`.

    An edge that is not swapped carries what its writer writes in the run that is being computed.
    """
    n, length = inputs.shape
    both = torch.cat([source, inputs])
    written = [module.embed(both), module.pos_embed(torch.arange(length)).expand(2 * n, -1, -1)]
    row = 0

    def read(readers: int) -> tuple[Tensor, Tensor]:
        """What all see on the source (n, length, width); what the next readers see (readers, n, length, width)."""
        nonlocal row
        total = torch.stack(written).sum(0)
        apart = torch.stack([value[:n] - value[n:] for value in written], 1).flatten(2)
        carried = torch.bmm(swapped[:, row : row + readers, : len(written)].to(apart), apart)
        row += readers
        return total[:n], total[n:] + carried.view(n, readers, length, WIDTH).transpose(0, 1)

    for block in module.blocks:
        assert isinstance(block, Block)
        there, here = read(3 * HEADS)
        there_scale, here_scale = (_scale(x, block.norm1) for x in (there, here))
        ports = []
        for port, part in enumerate((block.attention.query, block.attention.key, block.attention.value)):
            weight = (part.weight * block.norm1.weight).view(HEADS, HEAD_WIDTH, WIDTH).mT
            mine = slice(port * HEADS, (port + 1) * HEADS)
            seen = torch.cat([there.expand(HEADS, -1, -1, -1), here[mine]], 1).flatten(1, 2)
            scale = torch.cat([there_scale.expand(HEADS, -1, -1, -1), here_scale[mine]], 1)
            ports.append((seen @ weight).view(HEADS, 2 * n, length, HEAD_WIDTH) * scale)
        q, k, v = ports
        pattern = block.attention.hide(q @ k.mT / math.sqrt(HEAD_WIDTH)).softmax(-1)
        out = block.attention.out.weight.view(WIDTH, HEADS, HEAD_WIDTH).permute(1, 2, 0)
        written += ((pattern @ v).flatten(1, 2) @ out).view(HEADS, 2 * n, length, WIDTH).unbind(0)
        there, here = read(1)
        written.append(block.mlp(torch.cat([there, here[0]])))
    logits: Tensor = module.unembed(module.norm(read(1)[1][0]))
    return logits


def _scale(x: Tensor, norm: nn.RMSNorm) -> Tensor:
    """(..., 1): what an RMS norm multiplies each vector by, before its weight."""
    return (torch.linalg.vector_norm(x, dim=-1, keepdim=True).square() / WIDTH + norm.eps).rsqrt()
