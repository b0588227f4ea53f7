"""Circuits, claims and tables of effects as finished drawings, from their plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError
from .charts import curve
from .graph import bare, draw, effect
from .heat import heat_map
from .layers import split
from .plot import Plot, compose
from .svg import figure, finite, places

MINUS = ("minus", "below zero: ablating it raises the metric")


def circuit_plot(circuit: Mapping[str, Any], *, control: tuple[Any, Any] = (None, None), title: str = "") -> Plot:
    """A circuit (as `Circuit.to_dict` gives it) by layer, and by position where it tells positions apart, with its
    faithfulness curve; without edges, its sources and the output. `control`: the range of random circuits of its size.
    """
    rows = [row for row in circuit.get("edges") or [] if isinstance(row, Mapping)]
    unit = "nodes" if circuit.get("level") == "node" else "edges"
    size = len(circuit.get("nodes") or []) if unit == "nodes" else len(rows)
    whole = (circuit.get("universe") or {}).get("edges")
    reached = circuit.get("faithfulness")
    by_position = bool(rows) and all(isinstance(row.get("position"), int) for row in rows)
    drawing = draw(circuit, by_position=by_position, tokens=(circuit.get("inputs") or {}).get("tokens") or ())
    measured = "exact effect" if any(finite(row.get("exact")) is not None for row in rows) else "score"
    metric = (circuit.get("metric") or {}).get("name", "metric")
    examples = finite((circuit.get("inputs") or {}).get("examples"))
    n = f", mean of {examples:.0f} examples" if examples is not None else ""
    notes = [f"Faithfulness {figure(reached)} (closer to 1 is better){n}."]
    notes[0] += " Lines lead from writers up to readers." if rows else " There are no edges."
    if drawing.weak:
        notes.append(f"The strongest {drawing.edges - drawing.weak} connections are drawn; {drawing.weak} are weaker.")
    widest = figure(drawing.largest, places(drawing.largest))
    keys = [("plus", f"{measured} on the {metric} above zero; widest {widest}")] if drawing.svg else []
    keys += [MINUS] if any(effect(row) < 0 for row in rows) else []
    target = (circuit.get("settings") or {}).get("target_faithfulness")
    chosen = (size, reached)
    bent = curve(circuit.get("curve") or [], chosen=chosen, target=target, unit=unit, control=control)
    if bent and finite(control[0]) is not None:
        notes.append("Curve: the ring is this circuit, the bar the middle 95 % of random circuits of its size.")
    sources = [str(name) for name in (circuit.get("graph") or {}).get("sources") or ()]
    of = f" of {whole:,}" if isinstance(whole, int) and unit == "edges" else ""
    return compose(title or f"Circuit of {size:,}{of} {unit}", notes, keys, [drawing.svg or bare(sources), bent])


def claim_plot(claim: Mapping[str, Any]) -> Plot:
    """A claim (as `Claim.to_dict` gives it): its circuit under its verdict, with the range of its random circuits."""
    by_name = {row.get("name"): row for row in claim.get("evidence") or [] if isinstance(row, Mapping)}
    null = by_name.get("null faithfulness") or {}
    title = f"{str(claim.get('verdict', 'no verdict')).capitalize()}: {claim.get('statement', '')}"
    return circuit_plot(claim.get("circuit") or {}, control=(null.get("low"), null.get("high")), title=title)


def curve_plot(curve_data: Mapping[str, Any]) -> Plot:
    """A curve (as `Curve.to_dict` gives it): faithfulness and completeness by circuit size, with the areas where there
    are some. Raises InputError when no size holds a part."""
    rows = [row for row in curve_data.get("rows") or [] if row.get("size")]
    facts = curve_data.get("facts") or {}
    unit = "nodes" if facts.get("level") == "node" else "edges"
    panels = [
        curve([(row["size"], row[what]) for row in rows], chosen=(0, None), target=None, unit=unit, what=what)
        for what in ("faithfulness", "completeness")
    ]
    if not any(panels):
        raise InputError("No size of this curve holds a part, so there is nothing to draw.")
    areas = [(name, curve_data.get(name)) for name in ("cpr", "cmd")]
    told = ", ".join(f"{name.upper()} {figure(area['value'])}" for name, area in areas if area)
    notes = [f"{told} (CPR: higher is better; CMD: lower)."] if told else []
    return compose(f"Circuits of the strongest {unit}", notes, [], panels)


def table_plot(
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[Any]],
    *,
    title: str,
    across: str,
    measure: str,
) -> Plot:
    """A table of effects as a heat map. Raises InputError when it holds no finite number."""
    drawn = heat_map(rows, columns, values, across=across, measure=measure)
    if not drawn:
        raise InputError("There is no finite value in this table, so there is nothing to draw.")
    return compose(title, [], [], [drawn])


def by_layer(names: Sequence[str], values: Sequence[Any]) -> tuple[list[str], list[str], list[list[Any]]]:
    """Values of parts as a table: a row for each block, a column for each of its slots; None where there is none."""
    blocks: dict[str, dict[str, Any]] = {}
    for name, value in zip(names, values, strict=True):
        block, unit = split_name(name)
        blocks.setdefault(block, {})[unit] = value
    units = sorted({unit for row in blocks.values() for unit in row}, key=lambda unit: (len(unit), unit))
    return list(blocks), units, [[row.get(unit) for unit in units] for row in blocks.values()]


def split_name(name: str) -> tuple[str, str]:
    """A part's block and its slot there: "L0.attn.h3" is ("L0.attn", "3"), "L0.mlp" is ("L0.mlp", "0")."""
    block, unit = split(name)
    number = unit.lstrip("hncuevk")
    return (block, number) if block != name and number.isdigit() else (name, "0")


def plot(what: Any, path: str | Path | None = None) -> Plot:
    """The drawing of a circuit, a claim, a curve, a sweep or scores, or of the first three's plain data; written to
    `path` (.svg or .png) if one is given. Raises InputError for anything that has no drawing."""
    if isinstance(what, Mapping):
        schema = what.get("schema")
        drawn = claim_plot(what) if schema == "cutaway.claim/1" else None
        drawn = circuit_plot(what) if schema == "cutaway.circuit/1" else drawn
        drawn = curve_plot(what) if schema == "cutaway.curve/1" else drawn
    else:
        drawn = what.plot() if callable(getattr(what, "plot", None)) else None
    if drawn is None:
        raise InputError(f"A {type(what).__name__} has no drawing; give a circuit, a claim, a sweep or scores.")
    if path is not None:
        drawn.save(path)
    return drawn
