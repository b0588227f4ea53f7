"""Dictionaries: sparse coordinates for the values of any site, where they belong, and how well they do."""

from __future__ import annotations

from .card import Card, Place
from .codes import Codes
from .dictionary import Dictionary, fvu
from .files import save_dictionary
from .opening import load_dictionaries, load_dictionary
from .rows import InMemory, Rows

__all__ = [
    "Card", "Codes", "Dictionary", "InMemory", "Place", "Rows", "fvu", "load_dictionaries", "load_dictionary",
    "save_dictionary",
]  # fmt: skip
