"""A dictionary as one safetensors file: its tensors, and in the metadata everything else as JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors.torch import save
from torch import Tensor

from ..errors import CutawayError, FormatError
from ..formats import open_checkpoint
from ..formats.writing import write_whole
from .card import Card
from .dictionary import Dictionary

SCHEMA, VERSION = "cutaway.dictionary", 1
_KNOWN = frozenset({"encoder", "decoder", "encoder_bias", "center", "decoder_bias", "skip"})


def save_dictionary(dictionary: Dictionary, path: str | Path) -> Path:
    """Write a dictionary, whole or not at all. Raises ResourceError when it cannot be written."""
    tensors = {f"weights.{name}": tensor for name, tensor in dictionary.weights.items()}
    tensors |= {f"extra.{name}": tensor for name, tensor in dictionary.extra.items()}
    head = {
        "version": VERSION, "kind": dictionary.kind, "activation": dictionary.activation, "k": dictionary.k,
        "per_row": dictionary.per_row, "card": dictionary.card.to_dict(),
    }  # fmt: skip
    told = msgspec.json.encode(head).decode()
    # A clone each: safetensors refuses tensors that share memory, such as a tied encoder and decoder.
    apart = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    return write_whole(path, save(apart, {SCHEMA: told}))


def read_dictionary(path: str | Path) -> Dictionary:
    """Read a dictionary; nothing is executed from the file.

    Raises FormatError for a file that is none, is damaged, or was written by a later version.
    """
    checkpoint = open_checkpoint(path)
    metadata = checkpoint.metadata.get("metadata", {})
    if SCHEMA not in metadata:
        raise FormatError(f"{str(path)!r} is no dictionary of Cutaway: its metadata lack '{SCHEMA}'.")
    try:
        head: dict[str, Any] = msgspec.json.decode(metadata[SCHEMA])
        if head["version"] > VERSION:
            raise FormatError(
                f"{str(path)!r} was written by a later Cutaway (dictionary version {head['version']}, which this one "
                "does not know); update Cutaway to read it."
            )
        tensors = {name: tensor_of(checkpoint.numbers(name)) for name in checkpoint.tensors}
        parts = {
            part: {name.removeprefix(f"{part}."): t for name, t in tensors.items() if name.startswith(f"{part}.")}
            for part in ("weights", "extra")
        }
        if strange := set(parts["weights"]) - _KNOWN:
            raise FormatError(f"{str(path)!r} has a tensor '{min(strange)}' that no dictionary has.")
        if missing := {"encoder", "decoder"} - set(parts["weights"]):
            raise FormatError(f"{str(path)!r} lacks the {min(missing)}; it is no complete dictionary.")
        return Dictionary(
            str(head["kind"]), head["activation"], parts["weights"], int(head["k"]), parts["extra"],
            str(head["per_row"]), Card.from_dict(head["card"]),
        )  # fmt: skip
    except FormatError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, CutawayError, msgspec.MsgspecError) as error:
        raise FormatError(f"{str(path)!r} is a damaged dictionary ({error}); get it again.") from error


def tensor_of(array: Any) -> Tensor:
    """A NumPy array as a tensor of its own."""
    return torch.from_numpy(array.copy())
