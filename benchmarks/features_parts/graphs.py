"""Attribution graphs over latents: their cost in forwards, and whether what they say of a trained network is so.

    python benchmarks/features_parts/graphs.py [cost] [truth] [--seeds 2] [--peer PYTHON ...] [--json]

Cost: a network of GPT-2-small's shape with random weights, 16 tokens, random TopK 16 transcoders of 12,288 latents for
every MLP; CPU time of one thread over that of the plain forward, in the same process. Recording the run and lifting it
are not counted, nor is building the replacement model in circuit-tracer. Both leave out what they hold to be no node:
we latents without a path to the outputs, circuit-tracer all of the first position.

Truth: latents of most influence are taken away in the network; correlation of the predicted with the actual change of
the outputs, for transcoders trained on a bundled organism and for random ones of the same size and L0.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

SIDE = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(SIDE)]

import torch  # noqa: E402
from rows import Row, row, show  # noqa: E402

import cutaway as cw  # noqa: E402
from cutaway import organisms  # noqa: E402
from cutaway.circuits.feature_graph import FeatureGraph, feature_graph  # noqa: E402
from cutaway.circuits.graph_test import verify_graph  # noqa: E402
from cutaway.features import Card, Dictionary, InMemory, Place  # noqa: E402

COMMAND = "python benchmarks/features_parts/graphs.py"
TOKENS, LATENTS, TOPK, FEW = 16, 12_288, 16, 1024
GOAL = 12.0
ORGANISM = "indirect-object"


def random_transcoder(read: str, write: str, width: int, latents: int, k: int, seed: int) -> Dictionary:
    """A transcoder that was never trained."""
    generator = torch.Generator().manual_seed(seed)
    weights = {
        "encoder": torch.randn(latents, width, generator=generator) / width**0.5,
        "decoder": torch.randn(latents, width, generator=generator) * 0.1,
    }
    return Dictionary(
        "random", "topk", weights, k=k, card=Card((Place(read, width),), (Place(write, width),))
    )  # fmt: skip


def cost(seeds: int, peers: list[str]) -> list[Row]:
    """One graph over all latents, and one over the 1,024 strongest."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.set_num_threads(1)
    torch.manual_seed(0)
    module = GPT2LMHeadModel(GPT2Config()).eval()
    found = [
        random_transcoder(f"transformer.h.{at}.ln_2", f"L{at}.mlp_out", 768, LATENTS, TOPK, at) for at in range(12)
    ]
    figures: dict[str, list[float]] = {"all": [], "few": []}
    nodes: dict[str, int] = {}
    for seed in range(seeds):
        ids = torch.randint(1, 50257, (1, TOKENS), generator=torch.Generator().manual_seed(seed))
        trace = cw.open(module).record(ids)
        trace.lift()
        for name, most in (("all", 8192), ("few", FEW)):
            forward = statistics.median(_seconds(lambda ids=ids: _plain(module, ids)) for _ in range(7))
            made: list[FeatureGraph] = []
            spent = _seconds(lambda trace=trace, most=most, made=made: made.append(
                feature_graph(trace, found, most_nodes=most)
            ))  # fmt: skip
            figures[name].append(spent / forward)
            nodes[name] = made[0].latents
    rows = []
    for name, most in (("all", 0), ("few", FEW)):
        goal = GOAL if name == "all" else None
        told = f"attribution graph, {TOKENS} tokens, TopK {TOPK}, 12 transcoders, {nodes[name]:,} latents"
        rows.append(row(told, figures[name], "forwards", goal, f"{COMMAND} cost", _peers(peers, most)))
    return rows


def _plain(module: torch.nn.Module, ids: torch.Tensor) -> None:
    with torch.no_grad():
        module(ids)


def _seconds(work: Any) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def _peers(peers: list[str], most: int) -> dict[str, Any]:
    """What circuit-tracer takes in each environment that has it."""
    found: dict[str, Any] = {}
    for python in peers:
        words = [python, str(SIDE / "peers" / "circuit_tracer_graph.py"), *map(str, (TOKENS, LATENTS, TOPK, most))]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        line = next((line for line in done.stdout.splitlines() if line.startswith("{")), "")
        if line:
            told = json.loads(line)
            found[f"{told['name']}, {told['nodes']:,} latents"] = round(told["forwards"], 1)
        elif "No module named 'circuit_tracer'" not in done.stderr:
            found["circuit-tracer"] = (done.stderr.strip().splitlines() or ["no answer"])[-1][:120]
    return found


def truth(seeds: int) -> list[Row]:
    """Trained transcoders of an organism and random ones: scores, and what taking latents away does."""
    from cutaway.features.train import train_dictionary

    net, organism = cw.open(ORGANISM), organisms.load(ORGANISM)
    layers = [name.partition(".")[0] for name in net.record(organism.pairs(1, seed=0).clean).lift().sites
              if name.endswith(".mlp_out")]  # fmt: skip
    data = net.record(organism.pairs(512, seed=1).clean)
    trained, random = [], []
    for number, layer in enumerate(layers):
        values = {site: data[site].flatten(0, -2) for site in (f"{layer}.resid_mid", f"{layer}.mlp_out")}
        read, write = values
        width = values[read].shape[-1]
        rows = InMemory(values)
        trained.append(train_dictionary(
            rows, 256, 8.0, kind="transcoder", reads=(read,), writes=(write,), samples=200_000, seed=0
        ))  # fmt: skip
        random.append(random_transcoder(read, write, width, 256, 8, number))
    figures: dict[str, dict[str, list[float]]] = {}
    for name, found in (("trained", trained), ("random", random)):
        for seed in range(seeds):
            trace = net.record(organism.pairs(1, seed=100 + seed).clean)
            graph = feature_graph(trace, found)
            tested = verify_graph(graph, count=16, seed=seed)
            for figure, value in (*graph.scores().items(), ("correlation", tested.correlation[0])):
                figures.setdefault(figure, {}).setdefault(name, []).append(value)
    made = []
    for figure, both in figures.items():
        control = {"random transcoders of the same size and L0": round(statistics.median(both["random"]), 3)}
        name = f"attribution graph of {ORGANISM}: {figure}"
        made.append(row(name, both["trained"], "of 1", None, f"{COMMAND} truth", control, better="higher"))
    return made


def rows(seeds: int, peers: list[str]) -> list[Row]:
    """All rows."""
    return [*cost(seeds, peers), *truth(seeds)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--peer", action="append", default=[])
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    wanted = asked.parts or ["cost", "truth"]
    made = cost(asked.seeds, asked.peer) if "cost" in wanted else []
    show([*made, *(truth(asked.seeds) if "truth" in wanted else [])], asked.json)
