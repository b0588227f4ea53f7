"""Products between rows and the few latents that each row needs, and sums over the few rows that each latent met.

Entries are grouped: group `i` has those from `offsets[i]` to `offsets[i + 1]`. Nothing of the size rows × latents is
made, and no copy of a row or latent for each entry.
"""

from __future__ import annotations

import warnings

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional


def sampled_products(
    rows: Float[Tensor, "rows d"],
    latents: Float[Tensor, "latents d"],
    offsets: Int[Tensor, "rows_and_one"],
    picked: Int[Tensor, "entries"],
) -> Float[Tensor, "entries"]:
    """Of each row, its products with the latents that are picked for it, in full precision."""
    zeros = rows.new_zeros(len(picked))
    with warnings.catch_warnings():  # that they are in beta, and that offsets are trusted
        warnings.simplefilter("ignore", UserWarning)
        pattern = torch.sparse_csr_tensor(offsets, picked, zeros, (len(rows), len(latents)), check_invariants=False)
        return torch.sparse.sampled_addmm(pattern, rows, latents.T, beta=0.0).values()


def group_sums(
    table: Float[Tensor, "rows d"],
    offsets: Int[Tensor, "groups_and_one"],
    picked: Int[Tensor, "entries"],
    factors: Float[Tensor, "entries"],
) -> Float[Tensor, "groups d"]:
    """Of each group, the sum of the rows of the table that it picks, each times its factor; zeros where it has none."""
    if len(picked) == 0:
        return table.new_zeros(len(offsets) - 1, table.shape[1])
    return functional.embedding_bag(picked, table, offsets[:-1], mode="sum", per_sample_weights=factors)


def offsets_of(groups: Int[Tensor, "entries"], count: int) -> Int[Tensor, "groups_and_one"]:
    """Where each of `count` groups begins among entries that are sorted by group."""
    offsets = torch.zeros(count + 1, dtype=torch.long, device=groups.device)
    offsets[1:] = torch.bincount(groups, minlength=count).cumsum(0)
    return offsets
