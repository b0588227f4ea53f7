"""Attribution graphs over latents: which latents, errors and inputs make which latents and outputs, on one input.

Ameisen et al. 2025, "Circuit Tracing: Revealing Computational Graphs in Language Models"; Dunefsky, Chlenski, Nanda
2024, "Transcoders Find Interpretable LLM Feature Circuits" (arXiv:2406.11944).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..attribution.metric import Metric
from ..errors import DivergenceError, InputError
from ..features import Dictionary
from ..features.fit import check_fit, refuse
from ..run.trace import Trace
from .direct_effects import biases, effects, latent_targets, total_effects
from .graph_nodes import ERROR, LATENT, OUTPUT, PART, SOURCE, GraphNode, graph_nodes, output_nodes
from .obstacles import notes
from .outputs import Outputs, outputs
from .pruning import influence, pruned, shares
from .replacement import kept, replacement
from .stream_building import by_stream

if TYPE_CHECKING:
    from ..drawing.plot import Plot
    from .attribution_graph import AttributionGraph
    from .latent_attention import LatentAttention

_SURE = 1e-4  # the largest relative error of sums that the quick way may have
_LOOSE = 1e-3  # the largest that is shown at all
_HELD = (
    "patterns of attention, scales of norms, gates of nonlinearities that are in no dictionary and no component (a "
    "ReLU before an autoencoder, choices of max pooling), derivatives of what bends behind the last linear map (a cap "
    "on logits, a softmax)"
)


@dataclass(frozen=True, eq=False)
class FeatureGraph:
    """Direct effects between nodes on one input, all else frozen as it was in the run.

    `table` [targets, writers]: rows are the latents and then the outputs, columns the latents, errors, components and
    embeddings; `nodes` are the columns' and then the outputs. A row and its `bias` add up to `values`, what the target
    was before its rule in the run, within `error`, relative to the largest. `answers` are the shares of themselves by
    which latents change when they read one unit more, `outputs` what the graph ends in; `facts` say how it was made.
    """

    trace: Trace
    dictionaries: tuple[Dictionary, ...]
    nodes: tuple[GraphNode, ...]
    table: Float[Tensor, "targets writers"]
    bias: Float[Tensor, " targets"]
    values: Float[Tensor, " targets"]
    answers: Float[Tensor, " latents"]
    outputs: Outputs
    error: float
    facts: dict[str, Any]
    supernodes: dict[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def weights(self) -> Float[Tensor, " outputs"]:
        """What each output counts in influence: its probability."""
        return self.outputs.weights

    def __repr__(self) -> str:
        counts = {kind: self.count(kind) for kind in (LATENT, ERROR, PART, SOURCE, OUTPUT)}
        told = ", ".join(f"{count:,} {kind}s" for kind, count in counts.items() if count)
        return " ".join([f"FeatureGraph({told}; {int((self.table != 0).sum()):,} edges)", *self.notes])

    @property
    def notes(self) -> tuple[str, ...]:
        """What to know before reading it: which dictionaries' latents do not reach the targets, and why."""
        return tuple(self.facts.get("notes", ()))

    def count(self, kind: str) -> int:
        """How many nodes of a kind there are."""
        return sum(node.kind == kind for node in self.nodes)

    @property
    def latents(self) -> int:
        """How many latents there are: the first rows and the first columns."""
        return len(self.table) - len(self.weights)

    @property
    def targets(self) -> tuple[GraphNode, ...]:
        """The nodes of the table's rows."""
        return (*self.nodes[: self.latents], *self.nodes[self.table.shape[1] :])

    @property
    def edges(self) -> list[tuple[GraphNode, GraphNode, float]]:
        """(writer, target, direct effect) of every edge, the strongest first."""
        rows, columns = self.table.nonzero(as_tuple=True)
        weights = self.table[rows, columns]
        order, targets = weights.abs().argsort(descending=True), self.targets
        found = zip(rows[order].tolist(), columns[order].tolist(), weights[order].tolist(), strict=True)
        return [(self.nodes[column], targets[row], weight) for row, column, weight in found]

    def influence(self) -> Float[Tensor, " writers"]:
        """How much of the outputs each writer makes by direct and indirect paths (see `pruning`)."""
        return influence(shares(self.table), self.weights)

    def top(self, count: int = 10, kind: str = "") -> list[tuple[GraphNode, float]]:
        """The nodes of most influence, of one kind if given."""
        scores = self.influence()
        order = scores.argsort(descending=True).tolist()
        found = [(self.nodes[at], float(scores[at])) for at in order if kind in ("", self.nodes[at].kind)]
        return found[:count]

    def scores(self) -> dict[str, float]:
        """Of 1 at best, both higher is better: `replacement`, the share of paths from the outputs back that end at
        embeddings and not at errors or components; `completeness`, the share of what enters nodes, weighted by their
        influence, that comes from latents and embeddings. Published definitions; components count as errors."""
        parts, latents = shares(self.table), self.latents
        found = influence(parts, self.weights)
        kinds = [node.kind for node in self.nodes[: self.table.shape[1]]]
        sources = torch.tensor([kind == SOURCE for kind in kinds])
        missed = torch.tensor([kind in (ERROR, PART) for kind in kinds])
        begun, lost = float(found[sources].sum()), float(found[missed].sum())
        # a leaf of a graph counts as explained: outputs and latents are the only nodes with anything entering
        weighing = torch.cat([found[:latents], self.weights])
        rest = float(found[latents:].sum())
        whole = float(weighing.sum()) + rest
        explained = float(((1 - parts[:, missed].sum(1)) * weighing).sum()) + rest
        return {
            "replacement": begun / (begun + lost) if begun + lost else 0.0,
            "completeness": explained / whole if whole else 0.0,
        }

    def prune(self, nodes: float = 0.8, edges: float = 0.98) -> FeatureGraph:
        """The graph with the nodes that make up a share of all influence, and of those the edges that do.

        Embeddings and outputs stay. Raises InputError for a share that is none.
        """
        width, latents = self.table.shape[1], self.latents
        always = torch.tensor([node.kind == SOURCE for node in self.nodes[:width]])
        staying, left = pruned(self.table, self.weights, always, nodes, edges)
        rows = torch.cat([staying[:latents], torch.ones(len(self.weights), dtype=torch.bool)])
        picked = staying.tolist()
        shown = tuple(node for at, node in enumerate(self.nodes) if at >= width or picked[at])
        facts = {**self.facts, "node_share": nodes, "edge_share": edges}
        return replace(
            self, nodes=shown, table=(self.table * left)[rows][:, staying], bias=self.bias[rows],
            values=self.values[rows], answers=self.answers[staying[:latents]], facts=facts,
        )  # fmt: skip

    def grouped(self, supernodes: dict[str, Sequence[str]]) -> FeatureGraph:
        """The graph with nodes, by name, put together under labels, which files keep. Raises InputError for a name that
        no node has."""
        known = {node.name for node in self.nodes}
        if lost := [name for names in supernodes.values() for name in names if name not in known]:
            raise InputError(f"The graph has no node '{lost[0]}'; names are as in '{self.nodes[0].name}'.")
        return replace(self, supernodes={label: tuple(names) for label, names in supernodes.items()})

    def attention(self, head: str, *, query: int = -1, key: int | None = None) -> LatentAttention:
        """Which pairs of nodes make a head attend from a query to a key (see `latent_attention.attention_of`)."""
        from .latent_attention import attention_of

        return attention_of(self, head, query=query, key=key)

    def to_attribution_graph(self) -> AttributionGraph:
        """The graph as circuit-tracer and Neuronpedia read it; `.save(path)` writes the file."""
        from .graph_export import attribution_data

        return attribution_data(self)

    def plot(self, count: int = 24) -> Plot:
        """The nodes of most influence with the edges among them, by position."""
        from .graph_export import drawn

        return drawn(self, count)


def _strange(trace: Trace, dictionaries: Sequence[Dictionary], force: bool) -> list[str]:
    """What is to be said of dictionaries that another network's values made; those made for this one are not measured,
    which would cost as much as the graph."""
    told: list[str] = []
    for number, one in enumerate(dictionaries):
        ends = (one.card.reads, one.card.writes)
        if any(ends == (other.card.reads, other.card.writes) for other in dictionaries[:number]):
            raise InputError(f"Two dictionaries read and write the same places ({one!r}); give one of them.")
        if {place.network for side in ends for place in side} - {"", trace.net.fingerprint}:
            fit = check_fit(one, trace)
            if not force:
                refuse(fit)
            told += [fit.note] if fit.note else []
    return told


def feature_graph(
    trace: Trace,
    dictionaries: Sequence[Dictionary],
    *,
    targets: Sequence[str | int] | Metric | Callable[[Tensor], Tensor] | None = None,
    position: int = -1,
    most_outputs: int = 10,
    most_nodes: int = 8192,
    progress: Callable[[int, int], None] | None = None,
    force: bool = False,
) -> FeatureGraph:
    """The attribution graph of a run of one example, over the latents that fire in it.

    `targets`: tokens or classes; a metric or a function of the output, linearised; nothing for the largest outputs, up
    to 95 % of probability and at most `most_outputs`. Latents that have no effect on the targets by any path are no
    nodes; of more than `most_nodes` others, those of the largest total effect are, and the rest count to the errors.
    Where no latent of a dictionary reaches the targets, `notes` names the blocks in the way.
    A dictionary of another network is held against its card on this run: notes say what differs, and figures that are
    clearly off are refused unless `force`. Raises InputError for dictionaries that do not fit the run, for two at the
    same places, and where nothing reaches the targets, MetricError for targets that the run does not have.
    """
    strange = _strange(trace, dictionaries, force)
    model = replacement(trace, dictionaries)
    ends = outputs(model.output, model.held[model.output.value], trace.net, targets, position, most_outputs)
    totals = total_effects(model, ends.targets(0), ends.weights, most_nodes)
    fired, told = sum(map(len, totals)), [*strange, *notes(model, totals)]
    sizes = torch.cat(totals).abs()
    least = float(sizes.topk(most_nodes).values[-1]) if most_nodes < fired else 0.0
    model = kept(model, [total.abs().ge(least) & (total != 0) for total in totals])
    groups, count = [], 0
    for stand in model.stands:
        groups += latent_targets(stand, count)
        count += len(stand.codes.latents)
    last = ends.targets(count)
    bias, values = biases(model, [*groups, last])

    def missed(table: Tensor) -> float:
        return float((table.sum(1) + bias - values).abs().max()) / (float(values.abs().max()) or 1.0)

    found = by_stream(model, groups, last)
    table = found if found is not None and missed(found) <= _SURE else effects(model, [*groups, last], progress)
    error = missed(table)
    if error > _LOOSE:
        raise DivergenceError(
            f"Direct effects add up to the targets only within {error:.1e}, so something in '{trace.net.name}' could "
            "not be held linear; use dictionaries at other places."
        )
    facts = {
        "targets": ends.told,
        "layers": len(model.written),
        "latents_that_fire": fired,
        "frozen": _HELD,
        "notes": told,
    }
    if not table[-len(ends.weights) :].any():
        raise InputError(" ".join(["Nothing in the graph has an effect on the targets; choose others.", *told]))
    answers = torch.cat([stand.answers for stand in model.stands])
    nodes = (*graph_nodes(model), *output_nodes(model, ends))
    return FeatureGraph(trace, tuple(dictionaries), nodes, table, bias, values, answers, ends, error, facts)
