"""A claim in a terminal: the circuit drawn by layer, the verdict with its reasons, the evidence, and the truth."""

from __future__ import annotations

from itertools import groupby

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from .layout import Data, bar, figure, grid, heading, indent, more

MOST_EDGES = 48
COLOURS = {"supported": "green", "partly supported": "yellow", "not supported": "red"}
# By whether a check passed and whether the verdict depends on it.
SIGNS = {
    (True, True): ("✓", "green"), (True, False): ("✓", "green"),
    (False, True): ("✗", "red"), (False, False): ("!", "yellow"),
}  # fmt: skip
ARROWS = {"higher": "▲ higher", "lower": "▼ lower", "closer to 1": "◆ near 1"}


def claimed(told: Data) -> list[RenderableType]:
    """A circuit with its verdict, its evidence, and the truth where it is known."""
    circuit = told["circuit"]
    share = f"{len(circuit['edges'])} of {circuit['universe']['edges']} edges"
    count = f"{share}; bars: behaviour lost without that {circuit['level']}"
    found = [
        heading("Circuit", count),
        drawing(circuit, told["needs"]),
        verdict(told),
        heading("Evidence"),
        evidence(told["evidence"]),
    ]
    if told["truth"] is not None:
        found += [
            heading("Against the truth", "the mechanism was planted or compiled, so it is known"),
            truth(told["truth"]),
        ]
    return found


def node_of(reader: str) -> str:
    """The part that a reader's name belongs to: without its port, but for the output."""
    return reader.rpartition(".")[0] or reader


def layer_of(node: str) -> str:
    """The layer that a part's name belongs to."""
    return ".".join(node.split(".")[:2])


def drawing(circuit: Data, needs: Data) -> RenderableType:
    """The circuit from input to output: each part with what it reads, from where, and what is lost without that."""
    if circuit["level"] == "node":
        return _nodes(circuit["nodes"], needs)
    table, left = _tree(4), MOST_EDGES
    for place, (readers, silent) in enumerate(_layers(circuit)):
        if place:
            table.add_row(Text("│", style="dim"))
        for node, edges in readers:
            for count, row in enumerate(edges[: max(left, 0)]):
                table.add_row(*_edge("" if count else node, row, needs))
            left -= len(edges)
        # Heads that share keys and values read through their group, which stands above them.
        notes = (Text("◂─ kv", style="dim"), Text("its group, above", style="dim")) if readers else ()
        for node in silent if left > 0 else []:
            table.add_row(Text(node, style="bold" if readers else "bold cyan"), *notes)
    rest = f"… and {-left} more edges; --json has them all"
    return Group(indent(table), indent(Text(rest, style="dim"))) if left < 0 else indent(table)


def _layers(circuit: Data) -> list[tuple[list[tuple[str, list[Data]]], list[str]]]:
    """Layers in order of execution: parts with the edges into them, and parts that no edge leads into."""
    order = {name: place for place, name in enumerate(circuit["nodes"])}
    into: dict[str, list[Data]] = {}
    for row in sorted(circuit["table"], key=lambda row: (row["reader"], order.get(row["writer"], 0))):
        into.setdefault(node_of(row["reader"]), []).append(row)
    layers: dict[str, tuple[list[tuple[str, list[Data]]], list[str]]] = {}
    for node in circuit["nodes"]:
        layers.setdefault(layer_of(node), ([], []))
    for node in sorted(into, key=lambda node: order.get(node, -1)):
        layers.setdefault(layer_of(node), ([], []))[0].append((node, into[node]))
    for node in circuit["nodes"]:
        if node not in into:
            layers[layer_of(node)][1].append(node)
    return list(layers.values())


def _nodes(names: list[str], needs: Data) -> RenderableType:
    """A circuit of nodes: all connections between them are in, so only the parts are drawn."""
    table = _tree(2)
    for place, (_, layer) in enumerate(groupby(names[:MOST_EDGES], key=layer_of)):
        if place:
            table.add_row(Text("│", style="dim"))
        for name in layer:
            table.add_row(Text(name, style="bold"), _loss(needs.get(name)))
    table.add_row(Text("│", style="dim"))
    table.add_row(Text("logits", style="bold cyan"))
    return indent(table)


def _tree(columns: int) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), show_header=False)
    for _ in range(columns):
        table.add_column(no_wrap=True)
    return table


def _edge(node: str, row: Data, needs: Data) -> tuple[Text, Text, Text, Text]:
    port = row["reader"].rpartition(".")[2] if "." in row["reader"] else ""
    place = f" @{row['position']}" if row["position"] is not None else ""
    need = needs.get(row["edge"] + place.strip())
    part = Text(node, style="bold cyan" if node == "logits" else "bold")
    return part, Text(f"◂─ {port:<5}", style="dim"), Text(row["writer"] + place), _loss(need)


def _loss(need: float | None) -> Text:
    return bar(need) if need is not None else Text("")


def verdict(told: Data) -> RenderableType:
    """The verdict in a frame, with the checks behind it."""
    colour = COLOURS.get(told["verdict"], "white")
    body = Text()
    body.append(told["statement"], style="bold")
    for reason in told["reasons"]:
        sign, tone = SIGNS[reason["passed"], reason.get("counts", True)]
        body.append(f"\n{sign} ", style=f"bold {tone}")
        body.append(f"{reason['check']:<13} {reason['text']}")
    tested = (
        "that the search did not see" if told["held_out"] else "that the search saw too: this is no independent test"
    )
    body.append(
        f"\n  tested on {told['examples']} pair{'s' if told['examples'] != 1 else ''} {tested}",
        style="dim" if told["held_out"] else "yellow",
    )
    title = Text(f" {told['verdict'].upper()} ", style=f"bold {colour}")
    return Padding(
        Panel(body, title=title, title_align="left", border_style=colour, padding=(0, 1), expand=False), (1, 0, 0, 0)
    )


def evidence(rows: list[Data]) -> RenderableType:
    """Every figure with its interval, the direction that is better, and under it how it was obtained."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for column in ("figure", "value", "interval", "better"):
        table.add_column(column, justify="right" if column in ("value", "interval") else "left", no_wrap=True)
    table.add_column("how it was obtained", style="dim", ratio=1)
    for row in rows:
        known = row["low"] is not None and row["high"] is not None
        interval = f"{figure(row['low'])} … {figure(row['high'])}" if known else "—"
        name, value = Text(row["name"], style="bold"), Text(figure(row["value"]), style="bold")
        table.add_row(name, value, interval, ARROWS.get(row["better"], row["better"]), row["how"])
    return indent(table)


def truth(facts: Data) -> RenderableType:
    """How the circuit compares with the mechanism that is known."""
    table, indented = grid("", "", "")
    table.add_row(
        "scores against truth",
        Text(figure(facts["auroc"]), style="bold"),
        Text("AUROC over all edges; 0.5 is chance, 1 is perfect", style="dim"),
    )
    testable = len(facts["found"]) + len(facts["missed"])
    share = Text(f"{len(facts['found'])} of {testable}", style="bold green")
    table.add_row("known edges found", share, Text("of those that these pairs can test", style="dim"))
    for name, key, style in (("known, not found", "missed", "bold yellow"), ("found, not known", "beyond", "bold red")):
        listed = facts[key]
        table.add_row(
            name, Text(str(len(listed)), style=style if listed else "bold"), Text(more(listed, 4), style="dim")
        )
    if facts["untestable"]:
        note = f"these pairs cannot show: {more(facts['untestable'], 2)}"
        table.add_row("not testable", Text(str(len(facts["untestable"])), style="bold"), Text(note, style="dim"))
    return indented
