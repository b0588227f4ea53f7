"""Opening dictionaries, whoever wrote them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ..errors import FormatError, InputError
from .dictionary import Dictionary
from .files import read_dictionary
from .foreign import read_foreign


def load_dictionaries(path: str | Path) -> list[Dictionary]:
    """The dictionaries in a file of Cutaway, or in the files of SAELens, dictionary_learning, sparsify, Gemma Scope or
    circuit-tracer; transcoders of a whole network come one a layer. Nothing is executed from the files.

    Raises FormatError when there is none, or a file is damaged or of a later version.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"There is no {str(path)!r}; give a dictionary's file or folder.")
    own = path.is_file() and path.suffix != ".npz"
    found = [read_dictionary(path)] if own else read_foreign(path)
    for one in found:
        for name, tensor in {**one.weights, **one.extra}.items():
            if not bool(tensor.isfinite().all()):
                raise FormatError(f"The {name} of the dictionary in {str(path)!r} has numbers that are not finite.")
    return found


def load_dictionary(path: str | Path, site: str = "", out_site: str = "") -> Dictionary:
    """The one dictionary in a file or folder; `site` says where it belongs when the file does not, or in other words
    than this network's, `out_site` what a transcoder writes.

    Raises FormatError as `load_dictionaries` does, and when there are several.
    """
    found = load_dictionaries(path)
    if len(found) > 1:
        raise FormatError(f"{str(path)!r} holds {len(found)} dictionaries; load_dictionaries gives them all.")
    [one] = found
    reads = tuple(replace(place, site=site or place.site) for place in one.card.reads)
    same = one.card.same_place
    writes = tuple(replace(place, site=(out_site or (same and site)) or place.site) for place in one.card.writes)
    if (site and len(reads) > 1) or (out_site and len(writes) > 1):
        raise InputError(f"{str(path)!r} reads {len(reads)} places and writes {len(writes)}; one name is not enough.")
    return one.but(card=one.card.but(reads=reads, writes=writes))
