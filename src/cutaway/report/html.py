"""A claim as one HTML file to hand on: no script, no outside resource, light and dark, on a phone and on paper.

Every text comes from networks, vocabularies and projects that we do not trust. The template escapes all of it
(autoescape), drawings are built as trees, and a content security policy forbids whatever might still slip through.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cache
from typing import TYPE_CHECKING, Any

from ..drawing import charts
from ..drawing.graph import draw, effect
from ..drawing.svg import figure, finite, places, rules, visible
from ..errors import InputError
from .repeat import lines

if TYPE_CHECKING:
    from jinja2 import Template

EDGES, SHOWN_EDGES, LISTED, EXAMPLES = 1000, 20, 60, 50
_SIGNS = {"supported": ("good", "✓"), "partly supported": ("part", "≈"), "not supported": ("bad", "✗")}
_SPACES = {" ": "·", "\n": "⏎", "\t": "⇥", "\r": "␍"}


def page(data: Mapping[str, Any]) -> str:
    """The page of a claim.

    `data`: "claim" (what `Claim.to_dict` gives) and, as far as known, "components" and "listing" (rows as dicts),
    "behaviour" (a sentence), "examples" (dicts of clean, corrupted, correct, wrong), "model" (facts), "version".
    Raises InputError when there is no claim in it.
    """
    from markupsafe import Markup

    claim = data.get("claim")
    if not isinstance(claim, Mapping) or not claim.get("statement"):
        raise InputError("The data of this report holds no claim; give what Claim.to_dict() returns as data['claim'].")
    circuit, details = _mapping(claim.get("circuit")), _mapping(claim.get("details"))
    kind, sign = _SIGNS.get(str(claim.get("verdict")), ("part", "?"))
    drawing = draw(circuit)
    drawings = {"graph": drawing.svg, **_charts(claim, circuit, details)}
    text = _template().render(
        claim=claim,
        kind=kind,
        sign=sign,
        reasons=_rows(claim.get("reasons")),
        evidence=_evidence(_rows(claim.get("evidence"))),
        drawing=asdict(drawing) | {"twofold": any(effect(row) < 0 for row in _rows(circuit.get("edges")))},
        drawn_by=Markup(rules()),
        drawings={name: Markup(svg) for name, svg in drawings.items()},
        edges=_edges(circuit, details),
        nodes=_nodes(circuit, details),
        circuit=circuit,
        levels=_ends(details),
        spread=_mapping(details.get("examples")),
        curve=_rows(_mapping(details.get("curve")).get("rows")),
        metric=_mapping(circuit.get("metric")).get("name"),
        truth=_mapping(details.get("truth")),
        examples=_examples(data.get("examples")),
        components=_rows(data.get("components")),
        listing=_rows(data.get("listing"))[:LISTED],
        listed=len(_rows(data.get("listing"))),
        behaviour=data.get("behaviour"),
        model=_mapping(data.get("model")),
        provenance=_provenance(_mapping(claim.get("provenance"))),
        tested=_tested(_mapping(claim.get("provenance")), len(details.get("null") or [])),
        repeat=lines(claim),
        version=data.get("version"),
    )
    return text.encode("utf-8", "replace").decode("utf-8")


@cache
def _template() -> Template:
    from jinja2 import Environment, PackageLoader

    rooms = Environment(
        loader=PackageLoader(__package__), autoescape=True, finalize=_shown,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    rooms.filters.update(figure=figure, signed=_signed, count=_count, token=token)
    return rooms.get_template("report.html.j2")


def token(text: object) -> str:
    """A token to look at: spaces and line breaks by signs."""
    return "".join(_SPACES.get(character, character) for character in str(text)) or "∅"


def _shown(value: Any) -> Any:
    """What the template prints: nothing for None, safe text as it is, all else without hidden characters."""
    if value is None:
        return ""
    return value if hasattr(value, "__html__") else visible(str(value))


def _signed(value: Any, digits: int = 3) -> str:
    return figure(value, digits, signed=True)


def _count(value: Any) -> str:
    known = finite(value)
    return f"{known:,.0f}" if known is not None else "\N{EN DASH}"


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _rows(value: Any) -> list[Mapping[str, Any]]:
    return [row for row in value if isinstance(row, Mapping)] if isinstance(value, Sequence) else []


def _charts(claim: Mapping[str, Any], circuit: Mapping[str, Any], details: Mapping[str, Any]) -> dict[str, str]:
    """The drawings of a claim by name, "" for those there is nothing to draw for."""
    settings = _mapping(circuit.get("settings"))
    by_name = {row.get("name"): row for row in _rows(claim.get("evidence"))}
    faithfulness = by_name.get("faithfulness", {}).get("value")
    of_nodes = circuit.get("level") == "node"
    size = len(circuit.get("nodes") or []) if of_nodes else len(circuit.get("edges") or [])
    null, example = details.get("null") or [], details.get("per_example") or []
    return {
        "levels": charts.levels(_levels(details), axis=str(_mapping(circuit.get("metric")).get("name", "metric"))),
        "curve": charts.curve(
            circuit.get("curve") or [],
            chosen=(size, circuit.get("faithfulness")),
            target=settings.get("target_faithfulness"),
            unit="nodes" if of_nodes else "edges",
        ),
        "null": charts.histogram(
            null,
            name="null",
            title="Random circuits against this one",
            axis="faithfulness",
            counted="random circuits",
            marks=[("this circuit", faithfulness)],
        ),
        "examples": charts.histogram(
            example,
            name="examples",
            title="Faithfulness of each example",
            axis="1 minus shortfall, in mean behaviours",
            counted="examples",
            marks=[("mean", faithfulness)],
        ),
    }


def _ends(details: Mapping[str, Any]) -> dict[str, str]:
    """The metric on clean and on corrupted inputs, as text, where it is known."""
    known = {key: value for key in ("clean", "corrupted") if (value := finite(details.get(key))) is not None}
    digits = places(max(map(abs, known.values()), default=0.0))
    return {key: figure(value, digits) for key, value in known.items()}


def _levels(details: Mapping[str, Any]) -> list[tuple[str, Any]]:
    names = (("clean run", "clean"), ("circuit alone", "circuit"), ("all but the circuit", "complement"))
    return [(label, details.get(key)) for label, key in (*names, ("corrupted run", "corrupted"))]


def _evidence(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows of the table, each with a drawing of its interval on one scale for all."""
    from markupsafe import Markup

    seen = [value for row in rows for key in ("value", "low", "high") if (value := finite(row.get(key))) is not None]
    bounds = min(0.0, *seen, 0.0), max(1.0, *seen, 1.0)
    found = []
    for place, row in enumerate(rows):
        value, low, high = row.get("value"), row.get("low"), row.get("high")
        drawn = charts.interval(value, low, high, name=f"interval-{place}", what=str(row.get("name")), bounds=bounds)
        found.append(dict(row) | {"drawing": Markup(drawn)})
    return found


def _edges(circuit: Mapping[str, Any], details: Mapping[str, Any]) -> dict[str, Any]:
    """The edges' rows, the strongest first, and what the table has to say about them."""
    needs, truth = _mapping(details.get("needs")), _mapping(details.get("truth"))
    beyond = set(truth.get("beyond") or [])
    listed = sorted(_rows(circuit.get("edges")), key=lambda row: -abs(effect(row)))
    found: list[dict[str, Any]] = []
    for row in listed:
        name, place = str(row.get("edge")), row.get("position")
        need = finite(needs.get(name if place is None else f"{name}@{place}"))
        own = {key: row.get(key) for key in ("exact", "score")}
        found.append({"edge": name, "position": place, "need": need, "beyond": name in beyond, **own})
    return {
        "rows": found[:EDGES],
        "shown": SHOWN_EDGES if len(found) > SHOWN_EDGES + 1 else len(found),
        "digits": places(abs(effect(listed[0])) if listed else 0.0, 3),
        "total": len(found),
        "positions": any(row["position"] is not None for row in found),
        "exact": any(finite(row["exact"]) is not None for row in found),
        "needs": any(row["need"] is not None for row in found),
        "truth": bool(truth),
    }


def _nodes(circuit: Mapping[str, Any], details: Mapping[str, Any]) -> list[dict[str, Any]]:
    """For a circuit of nodes: what faithfulness loses without each."""
    if circuit.get("level") != "node":
        return []
    needs = _mapping(details.get("needs"))
    ranked = sorted(needs.items(), key=lambda item: -abs(finite(item[1]) or 0.0))
    return [{"node": name, "need": need} for name, need in ranked]


def _examples(value: Any) -> list[dict[str, Any]]:
    """Pairs column by column: (clean token, corrupted token, whether they differ)."""
    found = []
    for row in _rows(value)[:EXAMPLES]:
        clean, corrupted = row.get("clean"), row.get("corrupted")
        columns = None
        if isinstance(clean, Sequence) and isinstance(corrupted, Sequence):
            length = max(len(clean), len(corrupted))
            sides = ([*side, *[None] * (length - len(side))] for side in (clean, corrupted))
            columns = [(one, other, one != other) for one, other in zip(*sides, strict=True)]
        found.append({"columns": columns, "correct": row.get("correct"), "wrong": row.get("wrong")})
    return found


def _tested(facts: Mapping[str, Any], random: int) -> str:
    """On what and against what the claim was tested, in a sentence."""
    if finite(facts.get("examples")) is None:
        return ""
    how = "that were not used in the search" if facts.get("held_out") else "that the circuit was found on, too"
    against = f", against {random:,} random circuits" if random else ""
    return f"Tested on {_count(facts['examples'])} pairs of inputs {how}{against}."


def _provenance(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the claim is about, as label and text."""
    metric, versions = _mapping(facts.get("metric")), _mapping(facts.get("versions"))
    held = "not used in the search" if facts.get("held_out") else "the same as in the search"
    examples = f"{facts['examples']}, {held}" if "examples" in facts else None
    rows = [
        ("network", facts.get("model")),
        ("source", facts.get("source")),
        ("weights", facts.get("fingerprint")),
        ("metric", metric.get("name")),
        *((key, _brief(value)) for key, value in metric.items() if key not in ("name", "kind")),
        ("baseline", facts.get("baseline")),
        ("examples", examples),
        ("seed", facts.get("seed")),
        ("versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
    ]
    return [(str(label), str(text)) for label, text in rows if text not in (None, "")]


def _brief(value: Any) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        rest = f" … ({len(value)} in all)" if len(value) > 8 else ""
        return ", ".join(token(item) for item in value[:8]) + rest
    return token(value) if isinstance(value, str) else str(value)
