"""What each verb prints in a terminal, from its result. The texts themselves are made in the files beside this one."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from .claim_text import claimed
from .file_text import checkpoint
from .layout import Data, grid, heading, indent
from .project_text import changed, doctor, organisms, project, trained
from .run_text import components, lines, listing, network, pairs, parts, patched, recorded

__all__ = [
    "changed", "checkpoint", "circuit", "demo", "doctor", "listing", "organisms", "parts", "patched", "project",
    "recorded", "trained", "verified",
]  # fmt: skip

LINES_SHOWN = 6


def demo(result: Data) -> RenderableType:
    """What `demo` prints: the whole way, in the order in which it went."""
    return Group(
        network(result["facts"]),
        *behaviour(result),
        heading("Listing", f"the first of {result['ops']} ops; `cutaway list {result['model']}` shows them all"),
        lines(result["listing"][:LINES_SHOWN]),
        heading("Parts", "found by following the data, not by their names"),
        components(result["components"]),
        *claimed(result),
        *further(result),
    )


def behaviour(result: Data) -> list[RenderableType]:
    """What is to be explained, with examples."""
    metric = result["metric"]
    measured = Text.assemble(
        (f"{metric['name']}: ", "dim"), (f"{metric['clean']:+.2f}", "bold"), (" on clean inputs, ", "dim"),
        (f"{metric['corrupted']:+.2f}", "bold"), (" on corrupted ones", "dim"),
    )  # fmt: skip
    said = [indent(Text(result["behaviour"]))] if result.get("behaviour") else []
    return [heading("Behaviour"), *said, *pairs(result["pairs"][:2]), indent(measured)]


def circuit(result: Data) -> RenderableType:
    """What `circuit` prints."""
    kept = (
        f"claim {result['claim']} in {result['project']}"
        if "project" in result
        else "not kept; name a project with --project"
    )
    written = [heading(title, result[key]) for title, key in (("Saved", "saved"), ("Drawn", "plot")) if key in result]
    return Group(network(result["facts"]), *behaviour(result), *claimed(result), heading("Kept", kept), *written)


def verified(result: Data) -> RenderableType:
    """What `verify` prints."""
    what = "fresh pairs" if result["fresh"] else "the stored inputs"
    word, colour = ("agrees", "green") if result["agrees"] else ("does not agree", "red")
    line = Text.assemble(
        ("✓ " if result["agrees"] else "✗ ", f"bold {colour}"), f"claim {result['of']} {word} on {what}"
    )
    line.append(f"   it was {result['was']}", style="dim")
    table, indented = grid("figure", "then>", "now>", "interval now", "")
    for row in result["figures"]:
        was, now = ("—" if value is None else f"{value:.4f}" for value in (row["was"], row["now"]))
        interval = f"{row['low']:.3f} … {row['high']:.3f}" if row["low"] is not None else "—"
        mark = "" if result["fresh"] else Text("✓" if row["agrees"] else "✗", style="green" if row["agrees"] else "red")
        table.add_row(Text(row["name"], style="bold"), was, now, interval, mark)
    kept = heading("Kept", f"record {result['record']} in {result['project']}")
    return Group(network(result["facts"]), line, *claimed(result), heading("Then and now"), indented, kept)


def further(result: Data) -> list[RenderableType]:
    """Where the result lies and how to look further."""
    kept = "new" if result["new"] else "was there already, nothing added"
    inner = [name for name in result["circuit"]["nodes"] if "." in name] or result["circuit"]["nodes"]
    table, indented = grid("", "")
    python = "\n".join(
        (
            "import cutaway as cw",
            f'net = cw.open("{result["model"]}")',
            f'project = cw.Project("{result["project"]}")',
            f'print(project.claim("{result["claim"]}")["reasons"])',
        )
    )
    rows = {
        "project": f"{result['project']}   claim {result['claim']} ({kept})",
        "report": f"{result['report']}   open it in a browser",
        "see the claim": f"cutaway show {result['project']} {result['claim']}",
        "test it again": f"cutaway verify {result['project']} {result['claim']}",
        "break a part": f"cutaway patch {result['model']} --site {inner[-1]} --edit zero",
        "in Python": python,
    }
    for name, text in rows.items():
        table.add_row(Text(name, style="dim"), text)
    return [heading("Further", f"this took {result['seconds']:.1f} s"), indented]
