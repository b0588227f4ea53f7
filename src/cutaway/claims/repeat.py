"""From a stored claim back to a circuit that can be tested again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from ..attribution.edges import EdgeGraph
from ..attribution.metric import Metric, logit, logit_difference
from ..attribution.scores import Scores
from ..circuits.circuit import Circuit
from ..errors import InputError, MetricError
from ..run.network import Network
from ..run.trace import Trace


def rebuild(net: Network, claim: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Circuit:
    """The circuit of a stored claim on the inputs it was tested on, ready for `verify`.

    `claim` is what `Claim.to_dict` gave, `arrays` its tensors. Raises InputError when the network is not the one the
    claim is about, MetricError for a metric made of code, which is not stored.
    """
    provenance = claim["provenance"]
    if net.fingerprint != provenance["fingerprint"]:
        raise InputError(
            f"The claim is about weights {provenance['fingerprint']} and '{net.name}' has {net.fingerprint}; "
            "open the network that the claim is about."
        )
    settings = dict(claim["circuit"]["settings"])
    clean = _recorded(net, arrays, "clean")
    corrupted = _recorded(net, arrays, "corrupted") if any(name.startswith("corrupted.") for name in arrays) else None
    baseline = settings["baseline"]
    options = {"baseline": baseline["kind"], "seed": baseline.get("seed", 0)}
    options |= {name: settings[name] for name in ("positions", "neurons")}
    graph = EdgeGraph(clean, corrupted, **options)
    mask = torch.from_numpy(np.array(arrays["mask"])).bool()
    if tuple(mask.shape) != graph.shape():
        raise InputError("The stored circuit has other nodes than this version of Cutaway finds; find it again.")
    table = torch.zeros(graph.shape())
    exact: dict[tuple[int, int, int], float] = {}
    for row in claim["circuit"]["edges"]:
        place = (graph.readers.index(row["reader"]), graph.writers.index(row["writer"]), row["position"] or 0)
        table[place] = row["score"]
        if row["exact"] is not None:
            exact[place] = row["exact"]
    curve = tuple((int(size), float(value)) for size, value in claim["circuit"]["curve"])
    metric = metric_from(provenance["metric"])
    level, reached = claim["circuit"]["level"], claim["circuit"]["faithfulness"]
    scores = Scores(table, None, settings["scores"], 0)
    return Circuit(graph, metric, mask, scores, exact, level, reached, curve, settings)


def metric_from(facts: Mapping[str, Any]) -> Metric:
    """A metric from its stored facts. Raises MetricError for one made of code."""
    if facts.get("kind") == "logit_difference":
        return logit_difference(facts["correct"], facts["wrong"], facts["position"])
    if facts.get("kind") == "logit":
        return logit(facts["answer"], facts["position"])
    raise MetricError(
        f"The metric '{facts.get('name')}' is made of code, which a project does not store; verify in Python instead."
    )


def _recorded(net: Network, arrays: Mapping[str, np.ndarray], side: str) -> Trace:
    """The run on the stored inputs of one side: numbered ones by position, the others by keyword."""
    given = {name.partition(".")[2]: array for name, array in arrays.items() if name.startswith(f"{side}.")}
    held = {name: torch.from_numpy(np.array(array)) for name, array in given.items()}
    positional = [held[name] for name in sorted((name for name in held if name.isdigit()), key=int)]
    named: dict[str, Any] = {name: tensor for name, tensor in held.items() if not name.isdigit()}
    return net.record(*positional, **named)
