"""A short way to write down which components a network has."""

from __future__ import annotations

Units = dict[str, tuple[int, int]]


def parts(unembed: int, source: str = "input", **kinds: int | list[int | tuple[int, int]]) -> Units:
    """Sources (several names with spaces between), then the units of each block of each kind, in order.

    A block that runs more than once is (units, calls). An unembedding of 0 is none.
    """
    found: Units = dict.fromkeys(source.split(), (1, 1))
    for kind, blocks in kinds.items():
        for place, units in enumerate(blocks if isinstance(blocks, list) else [blocks]):
            found[f"L{place}.{kind}"] = units if isinstance(units, tuple) else (units, 1)
    return found | ({"unembed": (unembed, 1)} if unembed else {})


def states(unembed: int, steps: int, *units: int, cells: bool = False, source: str = "embed") -> Units:
    """Recurrent layers of so many units, each run for `steps` steps; with `cells`, an LSTM's."""
    kinds: dict[str, list[int | tuple[int, int]]] = {"rnn": [(count, steps) for count in units]}
    return parts(unembed, source, **(kinds | {"cell": kinds["rnn"]} if cells else kinds))
