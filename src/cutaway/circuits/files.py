"""Circuits written to files and read as plain data, in our own format, EAP-IG's, and Neuronpedia's.

A format is a row of a table: how it is made from a circuit's data, and how it is read. Reading needs no network and
no torch; `loading.py` puts what was read on a graph again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from ..errors import FormatError, InputError
from ..formats.writing import write_whole
from . import attribution_graph, eap_ig
from .reading import checked, dumped, read_bytes
from .schema import CircuitData

if TYPE_CHECKING:
    from .circuit import Circuit


@dataclass(frozen=True)
class Format:
    """How a circuit's data (with its whole graph) becomes a file's text, and back (None: it is read otherwise)."""

    write: Callable[[dict[str, Any]], bytes]
    read: Callable[[bytes], dict[str, Any]] | None


def _own(data: bytes) -> dict[str, Any]:
    found = msgspec.json.decode(dumped(checked(data, CircuitData, "a circuit of Cutaway")))
    if found["graph"] is None:
        del found["graph"]
    return found


FORMATS = {
    "cutaway": Format(dumped, _own),
    "eap-ig": Format(eap_ig.exported, eap_ig.imported),
    "neuronpedia": Format(attribution_graph.exported, None),
}


def save_circuit(circuit: Circuit, path: str | Path, format: str = "cutaway", *, whole: bool = True) -> Path:
    """Write a circuit, whole or not at all, and return the path.

    `format`: "cutaway" (with `whole`, every edge of the graph and its score; without, only the circuit's), "eap-ig"
    or "neuronpedia". Raises InputError for a format that does not exist or cannot hold this circuit, ResourceError
    when the file cannot be written.
    """
    from .whole import whole_graph

    made = _format(format)
    data = circuit.to_dict()
    if whole or format != "cutaway":
        data["graph"] = whole_graph(circuit)
    return write_whole(path, made.write(data))


def read_circuit(path: str | Path, format: str = "cutaway") -> dict[str, Any]:
    """A circuit file as plain data, as `Circuit.to_dict` gives it, without a network.

    Raises FormatError for a file that is not of this format, InputError for a format that cannot be read as a circuit.
    """
    read = _format(format).read
    if read is None:
        raise InputError(f"A file of the format '{format}' is read by cutaway.read_attribution_graph.")
    try:
        return read(read_bytes(path))
    except FormatError as error:
        raise FormatError(f"{str(path)!r}: {error}") from None


def _format(name: str) -> Format:
    if name not in FORMATS:
        raise InputError(f"There is no format '{name}' of circuits; choose {', '.join(FORMATS)}.")
    return FORMATS[name]
