"""What `train` prints: the dictionary, how sparse and how good it is on rows that it was not trained on."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from .layout import Data, grid, heading, indent


def trained(result: Data) -> RenderableType:
    """A trained dictionary in a few lines."""
    found, how = result["reference"], result["training"]
    reads, writes = (" + ".join(place["site"] for place in result[end]) for end in ("reads", "writes"))
    line = Text.assemble((result["kind"], "bold cyan"), f"  {result['latents']:,} latents of {reads}")
    if writes != reads:
        line.append(f", writing {writes}")
    if result["network"]:
        line.append(f"  {result['network']}", style="dim")
    table, indented = grid("", "")
    rule = "" if how["rule"] == result["kind"] else f" ({how['rule']})"
    for name, figure in (
        ("variance unexplained (FVU, lower is better)", f"{found['fvu']:.4f}"),
        ("latents firing on a row (L0)", f"{found['l0']:.2f}, asked for {result['k']:g}"),
        ("dead latents", f"{how['dead']:,}: none of the last {how['dead_after']:,.0f} rows made them fire"),
        ("trained on", f"{how['samples']:,} rows in {how['steps']:,} steps of {how['batch']:,}, seed {how['seed']}"),
        ("took", f"{how['seconds']:.1f} s"),
        ("written to", result["out"]),
    ):
        table.add_row(name, Text(figure, style="bold"))
    notes = [indent(Text(note, style="yellow")) for note in how.get("notes", [])]
    head = heading(f"On {found['rows']:,} rows that were kept out", result["activation"] + rule)
    return Group(line, head, indented, *notes)
