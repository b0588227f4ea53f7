"""Rows of figures: what every benchmark prints, as JSON or as lines."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]


def row(
    name: str,
    figures: Sequence[float],
    unit: str,
    goal: float | None,
    command: str,
    peers: Row | None = None,
    *,
    better: str = "lower",
    seed: int = 0,
) -> Row:
    """One row: the median of some figures against a goal."""
    ours = round(statistics.median(figures), 3)
    met = None if goal is None else ours <= goal if better == "lower" else ours >= goal
    return {
        "name": name, "ours": ours, "unit": unit, "better": better, "peers": peers or {}, "goal": goal,
        "met": met, "n": len(figures),
        "spread": [round(min(figures), 3), round(max(figures), 3)], "seed": seed, "command": command,
    }  # fmt: skip


def show(rows: list[Row], as_json: bool) -> None:
    """Print the rows."""
    if as_json:
        print(json.dumps({"rows": rows}, indent=1))
        return
    width = max(len(entry["name"]) for entry in rows)
    for entry in rows:
        peers = "".join(f"; {name}: {figure}" for name, figure in entry["peers"].items())
        goal = "" if entry["goal"] is None else f" (goal {entry['goal']}, {'met' if entry['met'] else 'MISSED'})"
        print(f"{entry['name']:<{width}} {entry['ours']:>10} {entry['unit']}{goal}{peers}")
