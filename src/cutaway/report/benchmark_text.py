"""Benchmarks on the terminal: one row a figure, with its goal and its peers."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text


def benchmark(result: dict[str, Any]) -> RenderableType:
    """The benchmarks there are, or the rows of one."""
    if "benchmarks" in result:
        listed = Table.grid(padding=(0, 2))
        for one in result["benchmarks"]:
            listed.add_row(Text(one["name"], style="bold"), one["what"])
        return listed
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name, side in (("figure", "left"), ("ours", "right"), ("", "left"), ("goal", "left"), ("peers", "left")):
        table.add_column(name, justify="right" if side == "right" else "left", overflow="fold")
    for row in result["rows"]:
        sign = "≤" if row["better"] == "lower" else "≥"
        mark = {None: "", True: " met", False: " missed"}[row["met"]]
        goal = "" if row["goal"] is None else f"{sign} {row['goal']:g}{mark}"
        peers = "; ".join(f"{name}: {figure}" for name, figure in row["peers"].items())
        style = "red" if row["met"] is False else "green" if row["met"] else ""
        table.add_row(row["name"], f"{row['ours']:g}", row["unit"], Text(goal, style=style), peers)
    missed = sum(row["met"] is False for row in result["rows"])
    asked = sum(row["met"] is not None for row in result["rows"])
    return Group(table, Text(f"{asked - missed} of {asked} goals met; n, spread and seeds with --json", style="dim"))
