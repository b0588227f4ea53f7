"""Writes docs/zoo.md: every network of the zoo and what lifting found in it. Run: python tests/zoo/table.py"""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "zoo.md"
HEAD = """# The zoo

Small networks with random weights, each built from a config or as a plain module. All go through `cutaway zoo`: the
recorded output is the untouched network's; replay gives the recording again; edits and gradients are those of plain
hooks; every reader's input is the sum of what its writers contribute; and lifting finds the components below. Any other
network takes the same way with `cutaway.check(module, inputs)`, or `cutaway check NAME|FOLDER --text …` in a terminal.

Components of a kind are written with their layers and units (heads, neurons, channels, states): `attn L0–1 4` is
`L0.attn` and `L1.attn` with four heads each. After × stands how often one is called. A
network without components leaves torch on purpose, or is there for another trap. This page is made by
`python tests/zoo/table.py`.

"""


def row(name: str, module: object, found: dict[str, tuple[int, int]]) -> str:
    """One line of the table."""
    kinds: dict[str, list[tuple[str, str]]] = {}  # to the layers of a kind, each with what it has
    for part, (units, calls) in found.items():
        layer, _, kind = part.rpartition(".")
        kinds.setdefault(kind, []).append((layer, str(units) + (f"×{calls}" if calls > 1 else "")))
    parts = "; ".join(f"{kind} {', '.join(spans(layers))}" for kind, layers in kinds.items())
    return f"| {name} | `{type(module).__name__}` | {parts or '—'} |"


def spans(layers: list[tuple[str, str]]) -> list[str]:
    """Layers that have the same, one after another, as one."""
    found: list[list[str]] = []
    for layer, has in layers:
        if found and found[-1][2] == has and int(found[-1][1][1:]) + 1 == int(layer[1:]):
            found[-1][1] = layer
        else:
            found.append([layer, layer, has])
    return [
        has if not first else f"{first} {has}" if first == last else f"{first}–{last[1:]} {has}"
        for first, last, has in found
    ]


def found_in(name: str) -> dict[str, tuple[int, int]]:
    """What lifting finds in an entry; nothing where the entry says that it cannot be followed."""
    from zoo import case

    found = case(name)
    if found.entry.problems:
        return {}
    return {part.name: (part.count, part.calls) for part in found.trace.lift().components()}


def page() -> str:
    """The whole page."""
    from zoo import ZOO, case

    rows = [row(name, case(name).module, found_in(name)) for name in ZOO]
    count = f"{len(rows)} networks.\n\n"
    return HEAD + count + "\n".join(["| network | class | found |", "|---|---|---|", *rows]) + "\n"


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2] / "src")]
    warnings.simplefilter("ignore")
    PAGE.write_text(page(), encoding="utf-8")
