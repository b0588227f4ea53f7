"""Write each organism's truth beside its weights: planted edges that matter, and everything measured about them.

    python tests/organisms/record_figures.py [NAME ...]      (two minutes for all)

The texts (mechanism, how_known) of an existing JSON file are kept; nodes, edges and figures are measured again. Those
of an aligned network come from its program.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from ablation import all_edges, effects, gap, run

from cutaway import organisms
from cutaway.organisms.interchange import PROGRAMS
from cutaway.organisms.interchange.program import Program
from cutaway.organisms.training import measure

FOLDER = Path(organisms.__file__).parent / "weights"
MATTERS = 0.01  # of the clean logit difference: what the strongest of the three cuts must reach
PLANTED = {
    "induction": (
        "pos_embed -> L0.attn.h0.q", "pos_embed -> L0.attn.h0.k", "embed -> L0.attn.h0.v",
        "embed -> L1.attn.h1.q", "L0.attn.h0 -> L1.attn.h1.k", "embed -> L1.attn.h1.v", "L1.attn.h1 -> logits",
    ),
    "indirect-object": (
        "embed -> L0.attn.h0.q", "pos_embed -> L0.attn.h0.q", "embed -> L0.attn.h0.k", "pos_embed -> L0.attn.h0.k",
        "pos_embed -> L0.attn.h0.v", "pos_embed -> L1.attn.h1.q", "embed -> L1.attn.h1.k", "pos_embed -> L1.attn.h1.k",
        "L0.attn.h0 -> L1.attn.h1.v", "L1.attn.h1 -> L2.attn.h2.q", "embed -> L2.attn.h2.k",
        "pos_embed -> L2.attn.h2.k", "embed -> L2.attn.h2.v", "L2.attn.h2 -> L2.mlp.in", "L2.mlp -> logits",
    ),
}  # fmt: skip

HOW_ALIGNED = (
    "Trained by strict interchange: with an edge that stands for a dependency of the program carrying what it carries "
    "on another input, the network answers as the program does; with all others exchanged it answers as before. "
    "The accuracies under exchange stand in the figures. Nothing is forbidden by masks: what lies outside the program "
    "is not zero, only without consequence."
)


def mechanism(program: Program) -> str:
    """What each node of an aligned network holds and what it is made of."""
    said = []
    for variable in program.variables[:-1]:
        if variable.name not in ("back", "distractor"):
            made = ", ".join(f"{a.variable}{f' ({a.ports[0]})' if a.ports[0] else ''}" for a in variable.arguments)
            said.append(f"{variable.node}: {variable.name}, from {made}")
    return "; ".join(said) + "."


def connected(organism: organisms.Organism, outputs: int) -> list[str]:
    """Edges that carry anything at all to the behaviour's outputs: noise put on them is seen there."""
    pairs, generator, found = organism.pairs(8, 3), torch.Generator().manual_seed(0), []
    clean, values = run(organism, pairs.clean)
    for edge in all_edges(organism):
        value = values[edge.split(" -> ")[0]]
        noise = 3 * torch.randn(value.shape, generator=generator)
        noisy, _ = run(organism, pairs.clean, {edge: value + noise})
        if (noisy - clean)[..., :outputs].abs().max() > 2e-4:
            found.append(edge)
    return found


def record(name: str) -> dict[str, Any]:
    """The figures, nodes and edges of one organism whose weights are in place."""
    recipe, program = organisms._recipe(name), PROGRAMS.get(name.removeprefix("aligned:"))
    path = FOLDER / f"{recipe.name}.json"
    stored = json.loads(path.read_text()) if path.exists() else {"mechanism": "", "how_known": ""}
    texts = {key: stored[key] for key in ("mechanism", "how_known")}
    if name.startswith("aligned:"):
        texts = {"mechanism": mechanism(program), "how_known": HOW_ALIGNED}
    else:
        program = None
    module = organisms.load(name, trained=True).module if path.exists() else loaded(name)
    figures: dict[str, Any] = measure(recipe, module, 2, 1000)
    figures |= {"outputs": list(recipe.outputs), "behaviour_outputs": recipe.behaviour_outputs}
    figures |= {"seed": 0, "steps": recipe.schedule.steps, "weights": sum(p.numel() for p in module.parameters())}
    nodes: list[str] = []
    edges: list[str] = []
    if recipe.pairs is None:
        figures["directions"] = rounded(module.weight.detach().T.tolist())
    else:
        organism = organisms.Organism(name, module, None, None, None, "", recipe.pairs)
        nodes, edges, found = measured(organism, recipe.behaviour_outputs, program)
        figures |= found
    return {"nodes": nodes, "edges": edges, **texts, "figures": rounded(figures)}


@torch.no_grad()
def measured(
    organism: organisms.Organism, outputs: int, program: Program | None
) -> tuple[list[str], list[str], dict[str, Any]]:
    """Nodes, edges and the effects of cutting them: all edges of a program, and those planted ones that act."""
    planted = program.edges() if program else PLANTED.get(organism.name) or connected(organism, outputs)
    pairs = organism.pairs(100, 7)
    clean, values = run(organism, pairs.clean)
    least = MATTERS * gap(clean, pairs)
    of_edges = dict(effects(organism, pairs, list(planted)))
    edges = [edge for edge in planted if program or max(of_edges[edge].values()) >= least]
    nodes = [w for w in values if any(edge.startswith(f"{w} -> ") for edge in edges)]
    of_nodes = dict(effects(organism, pairs, list(values)))
    return nodes, edges, {
        "edge_effects": {edge: of_edges[edge] for edge in edges},
        "node_effects": {node: of_nodes[node] for node in nodes},
        "other_node_effects": {node: effect for node, effect in of_nodes.items() if node not in nodes},
        "planted_without_effect": [edge for edge in planted if edge not in edges],
    }  # fmt: skip


def loaded(name: str) -> torch.nn.Module:
    """The module with its stored weights, for an organism that has no truth file yet."""
    from safetensors.torch import load_file

    recipe = organisms._recipe(name)
    module = recipe.build().eval()
    module.load_state_dict(load_file(FOLDER / f"{recipe.name}.safetensors"))
    return module


def rounded(value: Any) -> Any:
    """The same structure with floats to four places."""
    if isinstance(value, dict):
        return {key: rounded(part) for key, part in value.items()}
    if isinstance(value, list):
        return [rounded(part) for part in value]
    return round(value, 4) + 0.0 if isinstance(value, float) else value


if __name__ == "__main__":
    torch.set_num_threads(1)
    for wanted in sys.argv[1:] or (*organisms.names(), *organisms.aligned()):
        text = json.dumps(record(wanted), indent=1, ensure_ascii=False)
        (FOLDER / f"{organisms._recipe(wanted).name}.json").write_text(text + "\n", encoding="utf-8")
