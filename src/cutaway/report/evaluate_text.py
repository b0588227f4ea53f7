"""What `evaluate` prints: a figure a line with an arrow to where it is better, beside the controls'."""

from __future__ import annotations

from itertools import groupby

from rich.console import Group, RenderableType
from rich.text import Text

from .layout import Data, grid, heading, indent

_BETTER = {"higher": "↑", "lower": "↓", "nearer to 1": "→1"}
_BARS = " ▁▂▃▄▅▆▇█"


def evaluated(result: Data) -> RenderableType:
    """Tables of figures, one for each set of controls, how often latents fire, and notes."""
    facts = result["facts"]
    tables = [
        _table(list(some), names) for names, some in groupby(result["figures"], lambda one: tuple(one["controls"]))
    ]
    told = [indent(Text(f"{name}: {about}", style="dim")) for name, about in facts["controls"].items()]
    note = f"{facts['rows']:,} row{'s' * (facts['rows'] != 1)}" + (
        f" of '{facts['network']}'" if facts["network"] else ""
    )
    notes = [indent(Text(line, style="yellow")) for line in result["notes"]]
    return Group(heading(facts["dictionary"], note), *tables, *told, *_densities(result["densities"]), *notes)


def _table(figures: list[Data], others: tuple[str, ...]) -> RenderableType:
    table, indented = grid("figure", "value>", "±>", *(f"{name}>" for name in others))
    for one in figures:
        half = "" if one["low"] is None else f"{(one['high'] - one['low']) / 2:.1g}"
        table.add_row(
            Text.assemble(one["name"], (f" {_BETTER[one['better']]}", "cyan")),
            Text(_short(one["value"]), style="bold"), Text(half, style="dim"),
            *(_short(one["controls"][name]) for name in others),
        )  # fmt: skip
    return indented


def _densities(densities: Data) -> list[RenderableType]:
    """How many latents fire how often, as bars from rare to frequent."""
    counts, edges = densities["latents"], densities["log10_edges"]
    most = max([*counts, 1])
    bars = "".join(_BARS[round(count / most * (len(_BARS) - 1))] if count else "·" for count in counts)
    said = f"  from 10^{edges[0]:g} to all of the rows; {densities['never']:,} latents never" if edges else ""
    return [heading("How often latents fire"), indent(Text.assemble((bars, "cyan"), (said, "dim")))]


def _short(value: float | None) -> str:
    return "—" if value is None else f"{value:.3g}"
