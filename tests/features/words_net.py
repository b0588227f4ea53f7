"""A small network on words, to collect from."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import cutaway as cw
from cutaway.run.network import Network


class Words(nn.Module):
    """Reads ids [batch, pos]; a row depends on all ids before it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(50, 8)
        self.up = nn.Linear(8, 12)
        self.down = nn.Linear(12, 8)

    def forward(self, ids: Tensor) -> Tensor:
        here = self.embed(ids).cumsum(1)
        return here + self.down(self.up(here).relu())


def words() -> Network:
    return cw.open(Words(), tokenizer=[f"w{number}" for number in range(50)])


def ids(count: int, length: int = 6) -> Tensor:
    return torch.randint(0, 50, (count, length), generator=torch.Generator().manual_seed(1))
