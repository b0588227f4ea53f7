"""What `zoo` and `check` print: the errors and components of networks, and what is wrong below them."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from .layout import Data, grid, heading, indent, more

FIGURES = ("parity", "replay_error", "gradient_error", "hook_error", "edge_error")
MEASURED = dict(zip(FIGURES, ("output", "replay", "gradients", "edits", "sums over edges"), strict=True))
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
    return [heading(row["name"]), *(indent(Text(line)) for line in row["problems"])]


def checked(result: Data) -> RenderableType:
    """One network's errors, what is wrong, what to know, and what was found in it."""
    table, indented = grid("compared", "largest error>")
    for field in FIGURES:
        table.add_row(MEASURED[field], "untested" if result[field] is None else _figure(result[field]))
    lines = [Text(f"problem: {text}", style="bold red") for text in result["problems"]]
    lines += [Text(f"note: {text}", style="dim") for text in result["notes"]]
    parts = [f"{part} {units}" for part, (units, _) in (result["found"] or {}).items()]
    lines += [Text(f"found: {', '.join(parts)}")] if parts else []
    said = "agrees with plain PyTorch" if result["ok"] else "is not verified"
    return Group(heading(result["name"], said), indented, *(indent(line) for line in lines))
