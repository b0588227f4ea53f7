"""What `saliency` and `attention` print: the largest parts, a line each."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from .layout import Data, grid, heading
from .run_text import network


def saliency(result: Data) -> RenderableType:
    """The top places of each input."""
    parts: list[RenderableType] = [network(result["facts"])]
    for number, spots in enumerate(result["examples"]):
        table, indented = grid("part>", "place")
        for spot in spots:
            table.add_row(f"{spot['value']:+.4f}", Text(spot["text"]))
        parts += [heading(f"Input {number}", result["method"]), indented]
    return Group(*parts)


def attention(result: Data) -> RenderableType:
    """The largest pairs of sources of a head's score."""
    table, indented = grid("part>", "query side", "key side")
    for row in result["pairs"]:
        table.add_row(f"{row['value']:+.4f}", Text(row["query"]), Text(row["key"]))
    said = f"score {result['score']:+.4f} on average; the parts add up to it within {result['error']:.0e}"
    return Group(network(result["facts"]), heading(result["head"], said), indented)
