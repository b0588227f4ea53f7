"""Find a circuit, test it on pairs it was not found on, and say both as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..circuits.circuit import Circuit
from ..circuits.search import find_circuit
from ..claims.claim import Claim
from ..claims.verify import verify
from ..organisms.organism import Truth
from ..run.network import Network
from ..run.trace import Trace
from .progress import report
from .subject import Examples, answer_names, answer_text, in_words, outputs_text, runs


@dataclass(frozen=True)
class Finding:
    """A tested circuit and the runs it was found on."""

    clean: Trace
    corrupted: Trace
    circuit: Circuit
    claim: Claim


def find(
    net: Network,
    examples: Examples,
    test: Examples | None,
    *,
    truth: Truth | None = None,
    seed: int = 0,
    **options: Any,
) -> Finding:
    """The circuit of the behaviour in `examples`, tested on `test`, or on the same examples if there is no other.

    `options` are those of `find_circuit`; neurons are told apart where the truth does.
    """
    options["neurons"] = options.get("neurons", False) or (truth is not None and truth.neurons)
    clean, corrupted = runs(net, examples)
    circuit = find_circuit(clean, corrupted, examples.metric(clean), progress=report, **options)
    fresh: tuple[Any, ...] = runs(net, test) if test is not None else (None, None)
    fresh = (*fresh, test.metric(fresh[0]) if test is not None else None)
    known, unseen = (truth.edges, truth.unseen) if truth is not None else (None, ())
    claim = verify(circuit, *fresh, truth=known, unseen=unseen, seed=seed, progress=report)
    return Finding(clean, corrupted, circuit, claim)


def told(claim: Mapping[str, Any]) -> dict[str, Any]:
    """A claim, in the form that a project keeps, as the verbs tell it: the circuit by names, each figure by name."""
    figures = {row["name"]: row for row in claim["evidence"]}
    details, provenance, circuit = claim["details"], claim["provenance"], claim["circuit"]
    truth = details.get("truth")
    return {
        "statement": claim["statement"],
        "verdict": claim["verdict"],
        "circuit": {
            "level": circuit["level"],
            "nodes": circuit["nodes"],
            "edges": [row["edge"] for row in circuit["edges"]],
            "table": circuit["edges"],
            "universe": circuit["universe"],
        },
        "metric": {"name": provenance["metric"]["name"], "clean": details["clean"], "corrupted": details["corrupted"]},
        "faithfulness": {key: figures["faithfulness"][key] for key in ("value", "low", "high")},
        "null": {"mean": figures["null faithfulness"]["value"], "p": figures["null p"]["value"]},
        "truth_auroc": truth["auroc"] if truth else None,
        "truth": truth,
        "reasons": claim["reasons"],
        "evidence": claim["evidence"],
        "needs": details["needs"],
        "examples": provenance["examples"],
        "held_out": provenance["held_out"],
    }


def shown_pairs(net: Network, examples: Examples, count: int) -> list[dict[str, Any]]:
    """The first pairs in words, as far as there are words for them."""
    some = examples.rows(range(min(count, len(examples))))
    names = answer_names(net)
    words = (in_words(net, some.clean), in_words(net, some.corrupted))
    if some.correct is None:
        answers = [outputs_text(net, part, names) for part in (some.clean, some.corrupted)]
    else:
        answers = [[answer_text(net, one, names) for one in part] for part in (some.correct, some.wrong)]
    keys = ("clean", "corrupted", "correct", "wrong")
    return [dict(zip(keys, row, strict=True)) for row in zip(*words, *answers, strict=True)]
