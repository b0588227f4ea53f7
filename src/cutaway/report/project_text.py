"""Files, projects, organisms and the machine in a terminal."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from .claim_text import COLOURS, claimed
from .layout import Data, grid, heading, size
from .run_text import network

SEVERITIES = {"error": "bold red", "high": "bold red", "medium": "yellow", "note": "yellow", "low": "dim"}


def project(result: Data) -> RenderableType:
    """What `show` prints: the whole project, or one claim."""
    if "told" in result:
        return Group(
            *([network(result["claim_facts"])] if result["claim_facts"] else []),
            *claimed(result["told"]),
            heading("Made by", result["provenance"].get("command", "")),
        )
    stored = (
        f"{result['tensor_files']} tensor files, {size(result['tensor_bytes'])}; {result['entries']} entries of history"
    )
    found: list[RenderableType] = [Text.assemble((result["path"], "bold cyan"), (f"  {stored}", "dim"))]
    found += [Padding(network(facts), (1, 0, 0, 2)) for facts in result["models"].values()]
    table, indented = grid("claim", "", "statement")
    for claim in result["claims"]:
        table.add_row(
            Text(claim["id"], style="bold"),
            Text(claim["verdict"], style=COLOURS.get(claim["verdict"], "")),
            claim["statement"],
        )
    if result["claims"]:
        hint = f"`cutaway show {result['path']} {result['claims'][0]['id']}` shows one with its evidence"
        found += [heading("Claims", hint), indented]
    if result["records"]:
        found.append(heading("Records", ", ".join(f"{count} {kind}" for kind, count in result["records"].items())))
    if result["names"] or result["comments"]:
        table, indented = grid("site", "name", "comments")
        for site in dict.fromkeys([*result["names"], *result["comments"]]):
            said = "\n".join(comment["text"] for comment in result["comments"].get(site, []))
            table.add_row(Text(site, style="bold"), Text(result["names"].get(site, ""), style="green"), said)
        found += [heading("Names and comments"), indented]
    table, indented = grid("entry>", "time", "verb", "subject")
    for entry in result["recent"][::-1]:
        style = "dim strike" if entry["undone_by"] else "dim"
        table.add_row(
            str(entry["id"]),
            Text(entry["time"][:19], style="dim"),
            entry["verb"],
            Text(str(entry["subject"]), style=style),
        )
    return Group(*found, heading("Last changes", "`cutaway undo` takes the newest back"), indented)


def changed(result: Data) -> RenderableType:
    """What the verbs print that change one thing."""
    return Text.assemble(("✓ ", "green"), result["done"], (f"   ({result['project']})", "dim"))


def organisms(result: Data) -> RenderableType:
    """What `organisms` prints."""
    table, indented = grid("name", "parameters>", "known edges>", "what it is")
    for row in result["organisms"]:
        edges = str(row["known_edges"]) if row["known_edges"] else "—"
        about = Text(row["description"]).append(
            f"\n{row['behaviour'] or 'It decides nothing: an organism for dictionaries.'}\n", style="dim"
        )
        table.add_row(Text(row["name"], style="bold"), f"{row['parameters']:,}", edges, about)
    return Group(
        heading("Organisms", "networks whose mechanism is known; `cutaway demo --organism NAME` takes one apart"),
        indented,
    )


def trained(result: Data) -> RenderableType:
    """What `organisms train` prints."""
    table, indented = grid("", ">")
    for name, value in result["figures"].items():
        table.add_row(name.replace("_", " "), f"{value:.4g}" if isinstance(value, float) else str(value))
    return Group(
        Text.assemble(
            ("✓ ", "green"), f"{result['name']} trained with seed {result['seed']}: ", (result["path"], "bold")
        ),
        indented,
    )


def doctor(result: Data) -> RenderableType:
    """What `doctor` prints."""
    gpu = "a GPU" if result["gpu"] else "no GPU"
    machine = f"Python {result['python']}, {result['system']}, {result['cores']} cores, {gpu}"
    found: list[RenderableType] = [Text.assemble((f"cutaway {result['cutaway']}", "bold cyan"), f"  {machine}")]
    table, indented = grid("", "")
    for row in result["packages"]:
        style = "" if row["version"] else "red" if row["needed"] else "dim"
        table.add_row(
            row["name"],
            Text(row["version"] or ("missing" if row["needed"] else "not installed (optional)"), style=style),
        )
    found += [
        heading("Packages"),
        indented,
        heading("Projects", f"{result['folder']}, {size(result['disk_free'])} free"),
    ]
    if not result["problems"]:
        return Group(*found, Padding(Text.assemble(("✓ ", "bold green"), "nothing is known to be wrong"), (1, 0, 0, 0)))
    table, indented = grid("", "")
    for problem in result["problems"]:
        table.add_row(
            Text(problem["severity"], style=SEVERITIES[problem["severity"]]),
            Text(problem["text"]).append(f"\n→ {problem['cure']}", style="dim"),
        )
    return Group(*found, heading("Problems"), indented)
