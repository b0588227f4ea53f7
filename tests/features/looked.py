"""Dictionaries and examples that the tests of indexes, pages and labels share."""

from __future__ import annotations

import torch

import cutaway as cw
from cutaway import organisms
from cutaway.features import Card, Dictionary, Place
from cutaway.run.network import Network

WIDTH = 84  # of the residual stream of `talk`


def directions(site: str, width: int, latents: int, *, network: str = "", k: int = 4, seed: int = 0) -> Dictionary:
    """A random dictionary of a site."""
    rows = torch.randn(latents, width, generator=torch.Generator().manual_seed(seed))
    rows = rows / rows.norm(dim=1, keepdim=True)
    place = Place(site, width, network)
    return Dictionary("random", "topk", {"encoder": rows, "decoder": rows}, k, card=Card((place,), (place,), "net"))


def talk(count: int = 60) -> tuple[Network, torch.Tensor]:
    """A bundled language model and texts for it."""
    return cw.open("indirect-object"), organisms.load("indirect-object").pairs(count, 0).clean


def shapes(count: int = 24) -> tuple[Network, torch.Tensor, list[int]]:
    """A bundled image network, images, and their classes."""
    pairs = organisms.load("shapes").pairs(count, 0)
    return cw.open("shapes"), pairs.clean, [int(one) for one in pairs.correct]
