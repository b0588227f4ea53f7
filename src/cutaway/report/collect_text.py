"""What `collect` prints: how many rows of which sites lie where, or would."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from .layout import Data, grid, heading, indent, size


def collected(result: Data) -> RenderableType:
    """The sites with their widths, then what was left out, and how to go on."""
    if told := result.get("forecast"):
        head = heading("Forecast", f"{result['model']}, nothing written")
        said = (
            f"{told['rows']:,} rows of {told['examples']:,} examples in {told['passes']:,} passes: "
            f"{size(told['bytes'])} on disk ({size(told['free'])} free), about {told['seconds']:.0f} s"
        )
        return Group(head, _sites(told["sites"], {}), indent(Text(said)), *_notes(told["notes"]))
    manifest = result["manifest"]
    counts = manifest["counts"]
    head = heading(result["out"], f"{result['model']}, {manifest['dtype']}")
    said = (
        f"{counts['rows']:,} rows of {counts['examples']:,} examples, {size(counts['bytes'])} in {counts['shards']:,} "
        f"shard{'s' * (counts['shards'] != 1)}"
    )
    onward = Text(f"cutaway train {result['out']} --latents … --k … --out FILE", style="dim")
    return Group(
        head, _sites(manifest["sites"], result["mean_norm"]), indent(Text(said)), *_notes(manifest["notes"]),
        indent(onward),
    )  # fmt: skip


def _sites(sites: list[Data], norms: dict[str, float]) -> RenderableType:
    table, indented = grid("site", "numbers a row>", "mean length of a row>" if norms else "")
    for site in sites:
        along = f" along {site['axis']}" if site["axis"] else ""
        norm = f"{norms[site['site']]:.4g}" if norms else ""
        table.add_row(Text(site["site"]), f"{site['width']}{along}", norm)
    return indented


def _notes(notes: list[str]) -> list[RenderableType]:
    return [indent(Text(f"note: {note}", style="dim")) for note in notes]
