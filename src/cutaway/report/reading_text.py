"""What `strings` and `xrefs` print."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from .layout import Data, bar, grid, heading, indent, size
from .run_text import network

ENTRIES = 5
ROW = {"writers": ("Writers", "who writes what it reads"), "readers": ("Readers", "who reads what it writes")}
MOST_TOKENS = 24


def strings(result: Data) -> RenderableType:
    """Units and what they say: what a direction points to after +, what it points away from after −."""
    table, indented = grid("unit", "side", "z>", "says")
    for row in result["rows"]:
        table.add_row(Text(row["site"], style="bold"), row["side"], _number(row["z"]), _said(row))
    what = f"matching {result['grep']!r}" if result["grep"] else "furthest above random directions"
    note = f"{len(result['rows'])} {what}, of {result['searched']:,} searched in {result['seconds']:.1f} s"
    notes = [indent(Text(note, style="dim")) for note in result["notes"]]
    shown = indented if result["rows"] else indent(Text("nothing matches", style="yellow"))
    return Group(network(result["facts"]), heading("Strings", note), shown, heading("How"), *notes)


def _said(row: Data) -> Text:
    said = Text(overflow="fold")
    for key, sign, colour in (("top", "+ ", "green"), ("low", "− ", "red")):
        if row[key]:
            said.append("" if key == "top" else "\n").append(sign, style="dim")
            said.append("  ".join(_shown(entry["entry"]) for entry in row[key][:ENTRIES]), style=colour)
    if row["text"]:
        said.append("\n" if row["top"] else "").append(row["text"], style="dim" if row["top"] else "")
    if row["through"].endswith(")"):
        said.append(f"\n{row['through']}", style="dim")
    return said


def _shown(entry: str) -> str:
    """An entry with its spaces visible, and nothing that a terminal would act on."""
    return "".join("␣" if mark == " " else mark if mark.isprintable() else f"\\x{ord(mark):02x}" for mark in entry)


def xrefs(result: Data) -> RenderableType:
    """Writers and readers of a site with their shares."""
    found: list[RenderableType] = [network(result["facts"])]
    how = "by weights" if result["how"] == "static" else "in this run"
    found += [Text.assemble((result["site"], "bold"), f"  {how}"), indent(Text(result["note"], style="dim"))]
    if result.get("inputs") and result["inputs"][0]:
        found.append(indent(Text(" ".join(token.strip() for token in result["inputs"][0][-MOST_TOKENS:]), style="dim")))
    for side in ("writers", "readers"):
        if result[side]:
            found += _side(result, side)
    if result["how"] == "static":
        kept = f"; index of {size(result['bytes'])} {_kept(result)}"
        found.append(heading("Asked", f"in {result['seconds']:.3f} s{kept}"))
    return Group(*found)


def _side(result: Data, side: str) -> list[RenderableType]:
    rows = result[side]
    static = result["how"] == "static"
    table, indented = grid("", "strength>" if static else "", "share")
    if not static:
        table, indented = grid("", "into" if side == "writers" else "", "at>", "share")
    several = len({row["port"] for row in rows}) > 1
    for row in rows:
        shown = Text(row["name"], style="bold")
        if static and side == "writers" and several:
            shown.append(f" → {row['port']}", style="dim")
        port = row["port"] if side == "writers" and several else ""
        if static:
            table.add_row(shown, f"{row['strength']:.3f}", bar(row["share"]))
        else:
            table.add_row(shown, port, "" if row["position"] < 0 else str(row["position"]), bar(row["share"]))
    name, note = ROW[side]
    constants = {site: part for site, part in result.get("constants", {}).items() if abs(part) >= 0.005}
    if side == "writers" and constants:
        note += "; constants: " + ", ".join(f"{site} {part:.1%}" for site, part in constants.items())
    return [heading(name, note), indented]


def _kept(result: Data) -> str:
    if not result["project"]:
        return "made and not kept; name a project with --project"
    where = f"record {result['record']} in {result['project']}"
    return f"made in {result['opened']:.1f} s and kept as {where}" if result["built"] else f"from {where}"


def _number(value: float | None) -> str:
    return "—" if value is None else f"{value:.1f}"
