"""Weights in a terminal: what was recovered, how sound they are, what changed, what was edited."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from .layout import Data, bar, figure, grid, heading, indent, more

ROWS = 24
COLOURS = {
    "certain": "bold green", "ambiguous": "bold yellow", "partial": "bold yellow", "structure": "bold yellow",
    "unknown": "bold red", "same": "dim", "cast": "dim", "quantised": "yellow", "changed": "bold yellow",
}  # fmt: skip


def recovered(result: Data) -> RenderableType:
    """What `recover` prints."""
    name = result.get("class") or result["family"] or ("plain layers" if result["layers"] else "unknown network")
    head = Text.assemble((result["path"], "bold cyan"), f"  {name}, ")
    head.append(result["confidence"], style=COLOURS[result["confidence"]])
    found: list[RenderableType] = [head, *(indent(Text(sentence)) for sentence in result["why"])]
    table, indented = grid("", "")
    for word, value in result["facts"].items():
        table.add_row(Text(word.replace("_", " "), style="dim"), _said(value))
    found += [heading("Sizes"), indented]
    if result["layers"]:
        table, indented = grid("layer", "kind", "in>", "out>", "kernel")
        for row in result["layers"][:ROWS]:
            kernel = " × ".join(map(str, row.get("kernel", [])))
            table.add_row(Text(row["name"], style="bold"), row["kind"], f"{row['in']:,}", f"{row['out']:,}", kernel)
        note = f"{len(result['layers'])}, in an order that their sizes allow; norms last"
        found += [heading("Layers", note), indented]
    if result["family"] is not None:
        table, indented = grid("", "")
        for word, value in result["config"].items():
            table.add_row(Text(word, style="dim"), _said(value))
        found += [heading(result["config_class"] or "Config", "what shapes say"), indented]
        if len(result["candidates"]) > 1:
            rows = [Text(", ".join(f"{key} = {value}" for key, value in row.items())) for row in result["candidates"]]
            found += [heading("Open", "what fits, the customary first"), *(indent(row) for row in rows[:8])]
        if result["differences"]:
            found += [heading("Differences"), *(indent(Text(line)) for line in result["differences"][:8])]
        if result["unseen"]:
            words = ", ".join(f"{key} = {value}" for key, value in result["unseen"].items())
            found += [heading("Not in any shape", "the family's defaults"), indent(Text(words))]
    return Group(*found)


def _said(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)


def healthy(result: Data) -> RenderableType:
    """What `health` prints."""
    count = "1 matrix" if len(result["matrices"]) == 1 else f"{len(result['matrices'])} matrices"
    head = Text.assemble((result["path"], "bold cyan"), f"  {result['format']}, {count}")
    found: list[RenderableType] = [head, *(indent(Text(f"• {sentence}")) for sentence in result["summary"])]
    table, indented = grid("matrix", "shape", "norm>", "stable rank>", "directions used", "dead>", "twins>", "D>")
    for row in result["matrices"][:ROWS]:
        shape = " × ".join(map(str, row["shape"]))
        if row["not_finite"]:
            table.add_row(Text(row["name"], style="bold red"), shape, f"{row['not_finite']:,} not finite")
            continue
        size, rows = row["spectrum"], row["rows"]
        share = size["participation"] / size["expected"]
        table.add_row(
            Text(row["name"], style="bold"), shape, f"{size['frobenius']:.2f}", f"{size['stable_rank']:.1f}",
            bar(min(share, 1.0), 8), _count(rows["dead"]), _count(rows["twins"]),
            f"{rows['dimensions_per_feature']:.2f}" if "dimensions_per_feature" in rows else "—",
        )  # fmt: skip
    note = "directions used: participation ratio against a random matrix; D: dimensions per row, 1 is no superposition"
    found += [heading("Matrices", note), indented]
    if (rest := len(result["matrices"]) - ROWS) > 0:
        found.append(indent(Text(f"… and {rest} more; --json has every matrix", style="dim")))
    if (heads := result["heads"]) is not None:
        table, indented = grid("head", "copying>")
        for name, score in heads["copying"].items():
            table.add_row(Text(name, style="bold"), figure(score))
        note = "Σ Re λ / Σ |λ| of W_E · OV · W_U: 1 raises the token that it attends to, −1 lowers it"
        found += [heading("Heads", note), indented]
        table, indented = grid("kind", "writer", "reader", "score>")
        for kind, rows in heads["composition"].items():
            for writer, reader, score in rows[:3]:
                table.add_row(kind, Text(writer, style="bold"), Text(reader, style="bold"), f"{score:.3f}")
        found += [heading("Composition", "‖OV · QK‖ / (‖OV‖ ‖QK‖); compare pairs, random ones are not 0"), indented]
    return Group(*found)


def _count(named: Data) -> Text:
    return Text(f"{named['count']:,}", style="bold yellow" if named["count"] else "dim")


def differing(result: Data) -> RenderableType:
    """What `diff` prints."""
    head = Text.assemble((result["paths"][0], "bold cyan"), " → ", (result["paths"][1], "bold cyan"))
    formats = dict.fromkeys(result["formats"])
    head.append(f"  {' → '.join(formats)}", style="dim")
    found: list[RenderableType] = [head, *(indent(Text(f"• {sentence}")) for sentence in result["summary"])]
    rows = result["changes"]
    told = [row for row in rows if row["status"] != "same" or row["name"] != row["other"] or row["transposed"]]
    told.sort(key=lambda row: -(row["figures"].get("relative") or 0))
    if told:
        table, indented = grid("tensor", "", "relative>", "cosine>", "rank>", "rows>", "columns>")
        for row in told[:ROWS]:
            name = Text(row["name"], style="bold")
            if row["other"] != row["name"]:
                name.append(f"\n→ {row['other']}", style="dim")
            types = "" if row["dtypes"][0] == row["dtypes"][1] else f" {row['dtypes'][0]} → {row['dtypes'][1]}"
            turned = " transposed" if row["transposed"] else ""
            table.add_row(
                name, Text(row["status"], style=COLOURS[row["status"]]).append(types + turned, style="dim"),
                _figure(row["figures"].get("relative")), _figure(row["figures"].get("cosine")), _rank(row),
                _part(row["rows"]), _part(row["columns"]),
            )  # fmt: skip
        found += [heading("Tensors", "relative: ‖B − A‖ / ‖A‖"), indented]
        if len(told) > ROWS:
            found.append(indent(Text(f"… and {len(told) - ROWS} more; --json has every tensor", style="dim")))
    for word in ("added", "removed"):
        if result[word]:
            found.append(heading(word.capitalize(), more(result[word], 6)))
    return Group(*found)


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _rank(row: Data) -> Text:
    if row["rank"] is None:
        return Text("")
    text = f"{'' if row['exact'] else '≥ '}{row['rank']} of {row['full']}"
    return Text(text, style="bold magenta" if row["low_rank"] else "")


def _part(where: Data) -> str:
    return f"{where['count']:,} of {where['of']:,}" if where else ""


def edited(result: Data) -> RenderableType:
    """What `edit` prints."""
    head = Text.assemble(("✓ ", "bold green"), (result["out"], "bold cyan"))
    head.append(f"  {result['edit']} at {result['site']}, by {result['way']}")
    checked = Text(
        f"The edited file gives what the intervention gives to {result['error']:.1e} of the largest output, on "
        f"{result['inputs']} sets of inputs; the edit itself changes outputs by {result['change']:.1e}."
    )
    kept = [heading("Kept", f"record {result['record']} in {result['project']}")] if "record" in result else []
    return Group(head, indent(checked), differing(result["difference"]), *kept)
