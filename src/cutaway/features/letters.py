"""Labels that a language model's rows have by themselves: the first letter of each token.

Absorption was found on these (Chanin et al. 2024, arXiv:2409.14507): every token is labelled, and models know how words
are spelled.
"""

from __future__ import annotations

import string

import torch
from jaxtyping import Bool
from torch import Tensor

from ..errors import InputError
from ..run.network import Network
from .store import Activations


def first_letters(net: Network, rows: Activations) -> dict[str, Bool[Tensor, "rows"]]:
    """For each letter, the rows that lie at a token that begins with it, large or small.

    Raises InputError when the rows are not one a token, or the network has no tokenizer.
    """
    if net.tokenizer is None:
        raise InputError(f"'{net.name}' has no tokenizer, so its tokens have no letters; give labels instead.")
    found = torch.full((len(rows),), -1, dtype=torch.int8)
    letters: dict[int, int] = {}
    for number in rows.where(torch.arange(len(rows)))[0].unique().tolist():
        example = rows.examples[number]
        tokens = next((one for one in example.inputs.values() if not one.is_floating_point() and one.ndim == 1), None)
        if tokens is None or len(example.grid) != 1 or len(tokens) < example.rows:
            raise InputError("Letters are for rows of texts, one a token; these lie elsewhere. Give labels instead.")
        ids = tokens[len(tokens) - example.rows :].tolist()  # first positions may have been left out
        for token in set(ids) - set(letters):
            begins = net.token_text(token).strip()[:1].lower()
            letters[token] = string.ascii_lowercase.find(begins) if begins else -1
        found[example.row : example.row + example.rows] = torch.tensor([letters[token] for token in ids])
    return {
        letter: found == place for place, letter in enumerate(string.ascii_lowercase) if bool((found == place).any())
    }
