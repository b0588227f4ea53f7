"""What `zoo` prints: a line a network with its errors and its components, and what is wrong below it."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from .layout import Data, grid, heading, indent, more

FIGURES = ("parity", "replay_error", "gradient_error", "hook_error", "edge_error")
PARTS_SHOWN = 4


def zoo(result: Data) -> RenderableType:
    """The table of the zoo, then the networks that are not as they should be."""
    table, indented = grid("network", "output>", "replay>", "gradient>", "edits>", "edges>", "s>", "found")
    rows = result["networks"]
    for row in rows:
        name = Text(row["name"], style="" if row["ok"] else "bold red")
        parts = [f"{part} {units}" for part, (units, _) in (row["found"] or {}).items()]
        figures = [_figure(row[field]) for field in FIGURES]
        table.add_row(name, *figures, f"{row['seconds']:.1f}", Text(more(parts, PARTS_SHOWN), style="dim"))
    bad = [row for row in rows if not row["ok"]]
    said = f"{len(rows) - len(bad)} of {len(rows)} networks are as they should be"
    return Group(heading("Zoo", said), indented, *(line for row in bad for line in _wrong(row)))


def _figure(error: float | None) -> str:
    return "—" if error is None else "0" if error == 0 else f"{error:.0e}"


def _wrong(row: Data) -> list[RenderableType]:
    lines = list(row["problems"])
    if row["expected"] is not None and row["expected"] != row["found"]:
        found = row["found"] or {}
        names = [name for name in {**row["expected"], **found} if row["expected"].get(name) != found.get(name)]
        pairs = [(name, found.get(name, "nothing"), row["expected"].get(name, "nothing")) for name in names]
        lines += [f"{name}: found {got}, expected {wanted}" for name, got, wanted in pairs]
    return [heading(row["name"]), *(indent(Text(line)) for line in lines)]
