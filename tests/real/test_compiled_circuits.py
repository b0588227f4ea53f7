"""Transformers that another compiler made: the rule that reads circuits off our weights reads them off these, too.

What each part of them computes is known from the compiler's own record, residual direction by residual direction.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from random import Random

import pytest
import torch
import trained_facts as facts
from torch import Tensor
from trained_table import TRAINED

import cutaway as cw
from cutaway.attribution.edges import EdgeGraph
from cutaway.attribution.metric import output_distance
from cutaway.attribution.mixture import evaluate
from cutaway.claims.statistics import auroc
from cutaway.organisms.rasp import PROGRAMS
from cutaway.organisms.rasp.circuit import Circuit, LayerWeights, circuit_of

NAMES = [name.removeprefix("tracr ") for name in TRAINED if name.startswith("tracr ")]
every = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name == "dyck1")) for name in NAMES]
)
PAIRS = 24
NOTHING = 1e-9
# The queries and keys of a selection of everything give all keys one score, and so does nothing at all. They matter at
# the begin token alone, which this compiler lets attend everywhere, and whose result `reverse` never reads.
ONLY_AT_BEGIN = {"reverse": {"embed -> L0.attn.h0.q", "embed -> L0.attn.h0.k"}}


@cache
def network(name: str, data: Path) -> tuple[torch.nn.Module, dict, Circuit]:
    """The module, the compiler's record of it, and the circuit read off its weights."""
    try:
        module, known = TRAINED[f"tracr {name}"].build(data), facts.program(data, name)
    except FileNotFoundError as absent:
        pytest.skip(f"{name} is not among the shared data: {absent}")
    begin, *tokens = facts.compiled_ids(data, name, words(known))
    layers = [weights(layer) for layer in module.layers]
    embed = module.token_embed.weight[[begin, *tokens]]
    return module, known, circuit_of(embed, module.pos_embed.weight, layers, module.unembed.weight, begin=0)


def words(known: dict) -> list[str]:
    return [word for word in known["input_vocab"] if not word.startswith("compiler")]


def weights(layer: torch.nn.Module) -> LayerWeights:
    apart = {name: layer.attn[name].weight.unflatten(0, (layer.heads, -1)) for name in ("query", "key", "value")}
    return LayerWeights(
        **apart, query_bias=layer.attn["query"].bias.unflatten(0, (layer.heads, -1)),
        out=layer.attn["out"].weight.unflatten(1, (layer.heads, -1)).transpose(0, 1),
        up=layer.mlp["fc1"].weight, down=layer.mlp["fc2"].weight,
    )  # fmt: skip


def drawn(name: str, data: Path, seed: int) -> Tensor:
    """Inputs two tokens short of the greatest length, or one."""
    known, random = facts.program(data, name), Random(seed)
    length = (known["max_seq_len_with_bos"] - 2) // 2 * 2
    rows = []
    for _ in range(PAIRS):
        if name == "dyck1":  # few random strings are balanced
            rows.append(PROGRAMS["dyck-1"].input(random, length))
        elif name == "sort_unique":
            rows.append(random.sample(words(known), length))
        else:
            rows.append(random.choices(words(known), k=length))
    return torch.tensor([facts.compiled_ids(data, name, row) for row in rows])


def lifted_name(edge: str, heads: int) -> str:
    """A single head has one query, key and value, and lifting calls them the layer's."""
    return edge if heads > 1 else edge.replace("attn.h0.", "attn.")


@every
def test_what_each_part_writes_is_what_the_compiler_put_there(name: str, shared_data: Path) -> None:
    module, known, circuit = network(name, shared_data)
    labels = [label.split(":")[0] for label in known["residual_labels"]]
    # The direction between the two halves of a width has a name of its own.
    labels = [label.removesuffix("_selector_width_attn_output") for label in labels]
    written = {
        part: {labels[place] for place in directions.nonzero()[:, 0].tolist()}
        for part, directions in circuit.writes.items()
        if part.startswith("L")
    }
    assigned: dict[str, set[str]] = {}
    for row in known["op_to_module"]:
        # A width is made by a head and read off by the MLP behind it.
        parts = ("attn", "mlp") if row["block"] == "SeriesWithResiduals" else (row["part"],)
        for part in parts:
            assigned.setdefault(f"L{row['layer']}.{part}", set()).add(row["rasp_op"])
    found: dict[str, set[str]] = {}
    for part, ops in written.items():
        found.setdefault(".".join(part.split(".")[:2]), set()).update(ops)
    assert found == assigned


@every
@pytest.mark.parametrize("baseline", ["zero", "counterfactual"])
def test_the_circuit_is_exactly_what_matters(name: str, baseline: str, shared_data: Path) -> None:
    module, known, circuit = network(name, shared_data)
    net, heads = cw.open(module), known["num_heads"]
    clean, corrupted = (net.record(drawn(name, shared_data, seed)) for seed in (0, 1))
    graph, metric = EdgeGraph(clean, corrupted, baseline=baseline), output_distance(clean)
    truth, unseen, at_begin = (
        {lifted_name(edge, heads) for edge in edges}
        for edges in (circuit.edges, circuit.unseen, ONLY_AT_BEGIN.get(name, ()))
    )
    masks = torch.ones(1 + len(graph.edges), *graph.shape(), dtype=torch.bool)
    masks[0] = False
    for edge in truth:
        writer, reader = edge.split(" -> ")
        masks[0, graph.readers.index(reader), graph.writers.index(writer)] = True
    for mask, (row, column) in zip(masks[1:], graph.edges, strict=True):
        mask[row, column] = False
    alone, *without = -evaluate(graph, metric, masks)
    losses = {graph.edge_name(*edge): float(loss.max()) for edge, loss in zip(graph.edges, without, strict=True)}
    assert float(alone.max()) <= NOTHING
    visible = truth - at_begin if baseline == "zero" else truth - unseen
    assert {edge for edge, loss in losses.items() if loss > NOTHING} == visible
    if visible:
        shown = [edge for edge in losses if edge in visible or edge not in truth]
        assert auroc([losses[edge] for edge in shown], [edge in visible for edge in shown]) == 1.0
