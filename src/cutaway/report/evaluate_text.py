"""What `evaluate` prints: a figure a line with an arrow to where it is better, beside the controls'."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from .layout import Data, grid, heading, indent

_BETTER = {"higher": "↑", "lower": "↓", "nearer to 1": "→1"}
_BARS = " ▁▂▃▄▅▆▇█"


def evaluated(result: Data) -> RenderableType:
    """The table of figures, how often latents fire, and notes."""
    facts, figures = result["facts"], result["figures"]
    others = list(dict.fromkeys(name for one in figures for name in one["controls"]))
    table, indented = grid("figure", "value>", "95 %>", *(f"{name}>" for name in others))
    table.columns[0].no_wrap = True
    for one in figures:
        beside = [one["controls"].get(name) for name in others]
        span = "" if one["low"] is None else f"{_short(one['low'])}…{_short(one['high'])}"
        table.add_row(
            Text.assemble(one["name"], (f" {_BETTER[one['better']]}", "cyan")),
            Text(_short(one["value"]), style="bold"), Text(span, style="dim"), *map(_short, beside),
        )  # fmt: skip
    told = [indent(Text(f"{name}: {about}", style="dim")) for name, about in facts["controls"].items()]
    note = f"{facts['rows']:,} rows" + (f" of '{facts['network']}'" if facts["network"] else "")
    notes = [indent(Text(line, style="yellow")) for line in result["notes"]]
    return Group(heading(facts["dictionary"], note), indented, *told, *_densities(result["densities"]), *notes)


def _densities(densities: Data) -> list[RenderableType]:
    """How many latents fire how often, as bars from rare to frequent."""
    counts, edges = densities["latents"], densities["log10_edges"]
    most = max([*counts, 1])
    bars = "".join(_BARS[round(count / most * (len(_BARS) - 1))] if count else "·" for count in counts)
    said = f"  from 10^{edges[0]:g} to all of the rows; {densities['never']:,} latents never" if edges else ""
    return [heading("How often latents fire"), indent(Text.assemble((bars, "cyan"), (said, "dim")))]


def _short(value: float | None) -> str:
    return "—" if value is None else f"{value:.3g}"
