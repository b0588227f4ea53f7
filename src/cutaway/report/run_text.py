"""One run in a terminal: the network, its listing, its parts, its answers, and what an edit changed."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from .layout import Data, grid, heading, indent, more

MOST_TOKENS = 24
WIDEST = (48, 14, 24)  # columns of a listing: address, shape, source line


def network(facts: Data) -> RenderableType:
    """One line about a network, and what it is."""
    line = Text.assemble((facts["name"], "bold cyan"), f"  {facts['class']}, {facts['parameters']:,} parameters")
    line.append(f"  {facts['fingerprint']}", style="dim")
    if facts.get("description"):
        line.append(f"\n{facts['description']}", style="dim")
    for row in facts.get("dictionaries", ()):
        line.append(f"\nlatents of '{row['name']}': {row['is']}", style="dim")
    for note in facts.get("notes", ()):
        line.append(f"\n{note}", style="yellow")
    return line


def pairs(rows: list[Data]) -> list[RenderableType]:
    """Clean and corrupted inputs with the tokens that differ, and the answers."""
    found: list[RenderableType] = []
    for row in rows:
        if row["clean"] is None:
            continue
        differ = [one != other for one, other in zip(row["clean"], row["corrupted"], strict=True)]
        for name, answer in (("clean", row["correct"]), ("corrupted", row["wrong"])):
            line = Text.assemble((f"{name:<11}", "dim"))
            for token, changed in list(zip(row[name], differ, strict=True))[-MOST_TOKENS:]:
                line.append(f"{token.strip()} ", style="bold magenta" if changed else "")
            found.append(indent(line.append(f"→ {answer.strip()}", style="bold")))
    return found


def components(rows: list[Data]) -> RenderableType:
    """The parts that lifting found."""
    table, indented = grid("part", "kind", "units>", "", "calls>", "reads", "site")
    for row in rows:
        single = row["count"] == 1 or row["axis"] in ("", "vocab")
        table.add_row(
            Text(row["name"], style="bold"), row["kind"], f"{row['count']:,}", row["axis"] + ("" if single else "s"),
            str(row["calls"]), " ".join(row["reads"]), Text(row["site"], style="dim"),
        )  # fmt: skip
    return indented


def lines(rows: list[Data]) -> RenderableType:
    """A listing, a line an op: loops as bars at the left, then address, shape, source line and operands."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False, expand=True)
    cells = [(_address(row), Text(row["shape"]), Text(row["source"], style="dim"), _operands(row)) for row in rows]
    for column, most in enumerate(WIDEST):
        table.add_column(
            width=min(max((len(row[column]) for row in cells), default=1), most), no_wrap=True, overflow="ellipsis"
        )
    table.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
    for row in cells:
        table.add_row(*row)
    return indent(table)


def _address(row: Data) -> Text:
    turns = f"⟳ ×{row['repeat']} " if row["repeat"] > 1 else ""
    return Text.assemble(("│ " * (row["depth"] - bool(turns)), "cyan"), (turns, "bold cyan"), row["address"])


def _operands(row: Data) -> Text:
    return Text("← " + ", ".join(row["reads"]) if row["reads"] else "", style="dim")


def listing(result: Data) -> RenderableType:
    """What `list` prints."""
    shown = len(result["lines"])
    below = f" below {result['prefix']}" if result["prefix"] else ""
    rolled = "" if shown == result["total"] else f" in {shown} lines; ⟳ marks loops, --flat unrolls them"
    return Group(
        heading(f"Listing of {result['model']}{below}", f"{result['total']} ops{rolled}"), lines(result["lines"])
    )


def parts(result: Data) -> RenderableType:
    """What `lift` prints."""
    stream = result["streams"]
    found = f"{len(stream)} values: {more(stream, 8)}" if stream else "none"
    return Group(
        network(result["facts"]), heading("Parts", "found by following the data, not by their names"),
        components(result["components"]), heading("Residual stream", found),
    )  # fmt: skip


def answers(rows: list[Data]) -> Text:
    """The likeliest answers in one line."""
    line = Text()
    for place, row in enumerate(rows):
        line.append(f"{row['token'].strip() or repr(row['token'])} ", style="bold" if place == 0 else "")
        line.append(f"{row['probability']:.1%}   ", style="dim")
    return line


def recorded(result: Data) -> RenderableType:
    """What `record` prints."""
    graph, output = result["graph"], result["output"]
    shape = "×".join(map(str, output["shape"]))
    found: list[RenderableType] = [
        network(result["facts"]),
        heading("Run", f"{graph['ops']} ops in {graph['module_calls']} module calls; output {shape}"),
    ]
    found += [indent(Text(f"! {problem}", style="yellow")) for problem in graph["problems"]]
    for tokens, top in zip(result["inputs"], result["top"], strict=False):
        if tokens is not None:
            found.append(indent(Text(" ".join(token.strip() for token in tokens[-MOST_TOKENS:]))))
        found.append(indent(Text.assemble(("→ ", "cyan"), answers(top)), 4))
    if not result["top"]:
        found.append(
            indent(Text(f"values from {output['least']:.4g} to {output['most']:.4g}, mean {output['mean']:.4g}"))
        )
    if result["kept"]:
        table, indented = grid("site", "shape", "mean>", "spread>", "least>", "most>")
        for row in result["kept"]:
            figures = ["—" if row[key] is None else f"{row[key]:.4g}" for key in ("mean", "spread", "least", "most")]
            table.add_row(Text(row["site"], style="bold"), "×".join(map(str, row["shape"])) or "scalar", *figures)
        found += [heading("Values"), indented]
    if "project" in result:
        found.append(heading("Kept", f"record {result['record']} in {result['project']}"))
    return Group(*found)


def patched(result: Data) -> RenderableType:
    """What `patch` prints."""
    table, indented = grid("site", "edit", "ran>", "largest change>", "")
    for row in result["receipt"]:
        note = row["note"] or ("the values were already so" if row["change"] == 0 else "")
        table.add_row(
            Text(row["site"], style="bold"),
            result["edit"],
            f"{row['times']}×",
            f"{row['change']:.4g}",
            Text(note, style="yellow"),
        )
    how = "the network took another branch, so it was run live" if result["live"] else "replayed from the recording"
    found: list[RenderableType] = [
        network(result["facts"]),
        heading("Receipt", f"{result['examples']} inputs; {how}"),
        indented,
    ]
    if (metric := result["metric"]) is not None:
        line = Text.assemble(f"{metric['name']} ", (f"{metric['before']:+.3f} → {metric['after']:+.3f}", "bold"))
        if metric["corrupted"] is not None:
            line.append(f"   corrupted inputs give {metric['corrupted']:+.3f}", style="dim")
        found += [heading("Behaviour"), indent(line)]
        if metric["lost"] is not None:
            found.append(
                indent(Text.assemble((f"{metric['lost']:.1%}", "bold"), " of the behaviour is lost by this edit"))
            )
    if result["top_before"]:
        table, indented = grid("", "")
        table.add_row(Text("before", style="dim"), answers(result["top_before"]))
        table.add_row(Text("after", style="dim"), answers(result["top_after"]))
        found += [heading("Answer", "to the first input"), indented]
    if result["output_unchanged"]:
        found.append(Padding(Text("The output is the same to the last bit.", style="yellow"), (1, 0, 0, 2)))
    return Group(*found)
