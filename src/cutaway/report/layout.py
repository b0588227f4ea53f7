"""The few shapes that all terminal output is made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

Data = dict[str, Any]
BAR = 16


def heading(text: str, note: str = "") -> RenderableType:
    """A heading, with a note in a quieter voice."""
    line = Text.assemble(("▌", "cyan"), (text, "bold"))
    if note:
        line.append(f"  {note}", style="dim")
    return Padding(line, (1, 0, 0, 0))


def grid(*columns: str) -> tuple[Table, RenderableType]:
    """A table without lines, and the same indented; a column's name may end in > for figures."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=any(columns), header_style="dim")
    for name in columns:
        table.add_column(
            name.rstrip(">"), justify="right" if name.endswith(">") else "left", no_wrap=name.endswith(">")
        )
    return table, indent(table)


def more(names: Sequence[str], most: int) -> str:
    """The first names, and how many there are besides."""
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


def indent(what: RenderableType, by: int = 2) -> RenderableType:
    """Something some columns to the right, its further lines too."""
    return Padding(what, (0, 0, 0, by))


def bar(share: float, width: int = BAR) -> Text:
    """A share of the behaviour as a bar and a figure; what grows when it should shrink is red."""
    filled = min(round(abs(share) * width * 8), width * 8)
    blocks = "█" * (filled // 8) + ("▏▎▍▌▋▊▉"[filled % 8 - 1] if filled % 8 else "")
    return Text.assemble((f"{blocks:<{width}}", "cyan" if share >= 0 else "red"), f" {share:>6.1%}")


def size(count: int | None) -> str:
    """Bytes as a person says them."""
    if count is None:
        return "—"
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def figure(value: float | None) -> str:
    """A figure with three places; no minus before a zero."""
    if value is None:
        return "—"
    text = f"{value:.3f}"
    return text.removeprefix("-") if float(text) == 0 else text
