"""From a circuit's data back to a circuit on recorded runs."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor

from ..attribution.baselines import NAMES, Baseline
from ..attribution.edges import EdgeGraph
from ..attribution.metric import Metric, kl_divergence, logit, logit_difference, output_distance
from ..attribution.mixture import ends, evaluate
from ..attribution.scores import Scores
from ..errors import FormatError, InputError, MetricError
from ..run.trace import Trace
from .circuit import Circuit
from .files import read_circuit
from .whole import sources


def load_circuit(
    path: str | Path,
    clean: Trace,
    corrupted: Trace | None = None,
    metric: Metric | None = None,
    *,
    baseline: Baseline | None = None,
    format: str = "cutaway",
) -> Circuit:
    """A circuit file put on recorded runs of a network that has its nodes; its faithfulness is measured anew on them.

    `metric` and `baseline` are the file's unless given. Raises FormatError for a bad file, InputError, naming the
    first one, for edges that this network does not have, MetricError for a metric that no file can hold.
    """
    data = read_circuit(path, format)
    metric = metric or metric_from(data["metric"], clean)
    graph = graph_from(data, clean, corrupted, baseline)
    circuit = onto(graph, data, metric)
    with torch.no_grad():
        good, bad = ends(graph, metric)
        kept = evaluate(graph, metric, circuit.mask[None])[0]
    gap = float((good - bad).mean())
    reached = float((kept - bad).mean()) / gap if gap else math.nan
    settings = {**circuit.settings, "read_from": Path(path).name}
    return Circuit(
        graph, metric, circuit.mask, circuit.scores, circuit.exact, circuit.level, reached, circuit.curve, settings
    )


def graph_from(
    data: Mapping[str, Any], clean: Trace, corrupted: Trace | None, baseline: Baseline | None = None
) -> EdgeGraph:
    """The edge graph that a circuit's data is about, on recorded runs.

    Raises InputError when its baseline was made of constants, which data does not hold, and none is given.
    """
    settings = data["settings"]
    facts = settings.get("baseline") or data.get("provenance", {}).get("baseline") or {"kind": "counterfactual"}
    facts = facts if isinstance(facts, Mapping) else {}
    kind = baseline if baseline is not None else str(facts.get("kind"))
    if isinstance(kind, str) and kind not in NAMES:
        raise InputError(f"The circuit's baseline is '{kind}', made of constants that are not stored; give baseline=.")
    flags = {name: bool(settings.get(name, False)) for name in ("positions", "neurons")}
    seed = facts.get("seed", 0)
    return EdgeGraph(clean, corrupted, baseline=kind, seed=seed if isinstance(seed, int) else 0, **flags)


def onto(graph: EdgeGraph, data: Mapping[str, Any], metric: Metric, mask: Tensor | None = None) -> Circuit:
    """The circuit that data describes, on a graph; `mask` where it is known beside the data.

    Edges that a whole graph lists give their scores too. Raises InputError for an edge that the graph does not have,
    FormatError where a whole graph says otherwise than the circuit's edges which ones are in.
    """
    places = _Places(graph)
    table = torch.zeros(graph.shape())
    exact: dict[tuple[int, int, int], float] = {}
    inside = torch.zeros(graph.shape(), dtype=torch.bool)
    whole = data.get("graph")
    listed = [
        (row["writer"], row["reader"], row["position"], row["score"], row["exact"], True) for row in data["edges"]
    ]
    if whole:
        rows = listed
        listed = [
            (_name(whole["writers"], wire[1]), _name(whole["readers"], wire[0]), *wire[2:]) for wire in whole["edges"]
        ]
        _check_same(places, rows, listed)
    for writer, reader, position, score, effect, member in listed:
        if not member and not score and not places.known(writer, reader):
            continue  # EAP-IG lists an MLP in every layer; what is out and has no effect need not be here
        found = places.of(writer, reader, position)
        for place in found:
            table[place] = math.nan if score is None else score / len(found)
            inside[place] |= member
            if effect is not None:
                exact[place] = effect / len(found)
    for row in data["edges"]:
        if row["edge"] != (named := f"{row['writer']} -> {row['reader']}"):
            raise FormatError(f"An edge is called {row['edge']!r} and its ends say '{named}'; correct one of them.")
    chosen = mask if mask is not None else inside & graph.valid[:, :, None]
    curve = tuple((int(size), math.nan if value is None else float(value)) for size, value in data["curve"])
    settings = dict(data["settings"])
    scores = Scores(table, None, str(settings.get("scores", "")), 0)
    reached = math.nan if data["faithfulness"] is None else float(data["faithfulness"])
    return Circuit(graph, metric, chosen, scores, exact, data["level"], reached, curve, settings)


def _name(names: Sequence[str], place: int) -> str:
    if place >= len(names):
        raise FormatError(f"An edge of the whole graph names part {place}, and only {len(names)} are listed.")
    return names[place]


def _check_same(places: _Places, rows: Sequence[tuple[Any, ...]], wires: Sequence[tuple[Any, ...]]) -> None:
    """Raise FormatError when the circuit's edges are not those that the whole graph marks as in it."""
    told, marked = (
        {place: (writer, reader) for writer, reader, at, _, _, member in some if member
         for place in places.of(writer, reader, at)}
        for some in (rows, wires)
    )  # fmt: skip
    for one, other, what in ((told, marked, "list"), (marked, told, "do not list")):
        if apart := [place for place in one if place not in other]:
            writer, reader = one[apart[0]]
            at = f" at position {apart[0][2]}" if places.graph.positions > 1 else ""
            raise FormatError(
                f"The circuit's 'edges' {what} '{writer} -> {reader}'{at} and its 'graph' says otherwise; make them "
                "agree, or take 'graph' out to load what 'edges' lists."
            )


class _Places:
    """Where edges stand in a graph's tables, by the names of their ends.

    "input" stands for all sources, and a part without ports for all its ports, as in formats that do not tell them
    apart.
    """

    def __init__(self, graph: EdgeGraph) -> None:
        self.graph = graph
        self.writers = {name: [place] for place, name in enumerate(graph.writers)}
        self.readers = {name: [place] for place, name in enumerate(graph.readers)}
        for place, name in enumerate(graph.readers):
            if (part := name.rpartition(".")[0]) and part not in graph.readers:
                self.readers.setdefault(part, []).append(place)
        self.writers.setdefault("input", [graph.writers.index(name) for name in sources(graph)])

    def known(self, writer: str, reader: str) -> bool:
        """Whether both ends of an edge are here."""
        return writer in self.writers and reader in self.readers

    def of(self, writer: str, reader: str, position: int | None) -> list[tuple[int, int, int]]:
        """[reader, writer, position] of every edge that is meant."""
        graph = self.graph
        for name, known, what in ((writer, self.writers, "writer"), (reader, self.readers, "reader")):
            if name not in known:
                near = difflib.get_close_matches(name, known, n=2)
                meant = f"; near it are {' and '.join(near)}" if near else f"; there are {', '.join(list(known)[:4])} …"
                raise InputError(
                    f"'{graph.net.name}' has no edge '{writer} -> {reader}': it has no {what} '{name}'{meant}."
                )
        pairs = [(row, column) for row in self.readers[reader] for column in self.writers[writer]]
        pairs = [pair for pair in pairs if graph.wired[pair]]
        if not pairs:
            raise InputError(
                f"'{graph.net.name}' has no edge '{writer} -> {reader}': no wiring leads from one to the other."
            )
        if position is not None and position >= graph.positions:
            raise InputError(
                f"'{writer} -> {reader}' is at position {position}, and these runs have {graph.positions}."
            )
        spots = [position] if position is not None else range(graph.positions)
        return [(row, column, spot) for row, column in pairs for spot in spots]


def metric_from(facts: Mapping[str, Any], clean: Trace) -> Metric:
    """A metric from its stored facts; an output distance is from `clean`. Raises MetricError for one made of code."""
    try:
        stored = msgspec.convert(dict(facts), _Facts)
    except msgspec.ValidationError as error:
        raise MetricError(f"The stored metric cannot be read ({error}); give the metric in Python.") from None
    if stored.kind == "output_distance":
        return output_distance(clean)
    if stored.kind == "kl_divergence":
        return kl_divergence(clean, stored.position)
    position = -1 if stored.position is None else stored.position
    correct: Any = stored.correct
    wrong: Any = stored.wrong
    answer: Any = stored.answer
    if stored.kind == "logit_difference" and correct is not None and wrong is not None:
        return logit_difference(correct, wrong, position, labels=stored.labels)
    if stored.kind == "logit" and answer is not None:
        return logit(answer, position)
    raise MetricError(f"The metric '{stored.name}' is made of code, which is not stored; give it in Python instead.")


class _Facts(msgspec.Struct):
    """The facts of a metric that can be made again from them."""

    name: str = ""
    kind: str = ""
    position: int | None = -1
    correct: str | int | list[str | int] | None = None
    wrong: str | int | list[str | int] | None = None
    answer: str | int | list[str | int] | None = None
    labels: bool = False
