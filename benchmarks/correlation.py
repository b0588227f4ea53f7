"""How well cheap scores agree with exact ablation: Pearson's correlation by method and family of networks.

    python benchmarks/correlation.py [--methods NAME ...] [--families NAME ...] [--most 300] [--data FOLDER] [--json]

Families are bundled organisms, networks of tests/zoo (random weights) and trained networks of tests/real (where their
files are found). Exact is the mean over examples of what the metric loses when one edge, or one node with all its
edges, carries its corrupted value; of more than `--most` edges or nodes a random choice is measured. Trained
classifiers and language models are measured by the logits of what the clean and the corrupted run predict; the others
by a random projection of the output. Options of a method are given behind a colon: "local:exact=0,steps=2".
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from rows import Row, row, show
from torch import Tensor

import cutaway as cw
from cutaway import organisms
from cutaway.attribution.edges import EdgeGraph
from cutaway.attribution.methods import score
from cutaway.attribution.metric import Metric
from cutaway.attribution.mixture import evaluate
from cutaway.errors import CutawayError
from cutaway.run.trace import Trace

ROOT = Path(__file__).resolve().parents[1]
GOAL, COMMAND = 0.95, "python benchmarks/correlation.py"
METHODS = (
    "eap", "eap-ig", "gradient:at=both", "relp", "lrp", "ig-activations", "atp*", "local:exact=0", "local:exact=16",
    "local",
)  # fmt: skip
ORGANISMS = ("induction", "indirect-object", "shapes", "counter")
RANDOM = (
    "gpt2", "gpt-neox", "llama", "gemma2", "qwen3", "mixtral", "bert", "t5", "mamba", "rwkv", "jamba", "lenet",
    "resnet", "convnext", "mlp-mixer", "rnn", "gru", "lstm", "vit", "swin", "unet", "autoencoder", "actor-critic",
)  # fmt: skip
TRAINED = (
    "stories260K", "nano-GPT sort", "reverse encoder", "RWKV 4", "RWKV 5", "char-LSTM Shakespeare",
    "LeNet MNIST", "ResNet-20 CIFAR", "Captum CIFAR", "Tiny VGG", "VAE MNIST", "PPO CartPole", "ACAS Xu 1,1",
)  # fmt: skip
Runs = tuple[Trace, Trace, Metric]


def projection(output: Tensor) -> Metric:
    """A random linear functional of the output."""
    weight = torch.randn(output[0].numel(), generator=torch.Generator().manual_seed(11)) / output[0].numel() ** 0.5
    return cw.custom(lambda out: out.flatten(1) @ weight.to(out), "random projection")


def organism(name: str) -> Runs:
    """An organism's own behaviour, on 16 pairs."""
    pairs = organisms.load(name).pairs(16, seed=1)
    net = cw.open(name)
    metric = cw.logit_difference(pairs.correct, pairs.wrong, position=-1 if pairs.position is None else pairs.position)
    return net.record(pairs.clean), net.record(pairs.corrupted), metric


def random_network(name: str) -> Runs:
    """A network of the zoo on two sets of inputs."""
    from zoo import ZOO

    module, args, kwargs = ZOO[name].make()
    net = cw.open(module)
    clean = net.record(*args, **kwargs)
    torch.manual_seed(5)
    args, kwargs = ZOO[name].inputs()
    return clean, net.record(*args, **kwargs), projection(clean.logits)


def trained(name: str, data: Path) -> Runs:
    """A trained network on real inputs: what it says on some of them against what it says on others."""
    from trained_table import TRAINED as TABLE
    from trained_table import Entry

    module, args, _ = Entry(TABLE[name], data).make()
    net = cw.open(module)
    clean = net.record(*args)
    corrupted = net.record(*Entry(TABLE[name], data).inputs(2)[0])
    out, other = (run.logits if run.logits.ndim < 3 else run.logits[:, -1] for run in (clean, corrupted))
    if out.ndim != 2 or name in ("VAE MNIST", "PPO CartPole"):
        return clean, corrupted, projection(clean.logits)
    right, wrong = out.argmax(1), other.argmax(1)
    wrong = torch.where(wrong == right, out.topk(2).indices[:, 1], wrong)
    return clean, corrupted, cw.logit_difference(right, wrong)


def families(data: Path) -> Iterator[tuple[str, Callable[[], Runs]]]:
    """Every family by name, with how its runs are made."""
    for name in ORGANISMS:
        yield f"organism {name}", lambda name=name: organism(name)
    for name in RANDOM:
        yield f"random {name}", lambda name=name: random_network(name)
    for name in TRAINED:
        yield f"trained {name}", lambda name=name: trained(name, data)


def exact(graph: EdgeGraph, metric: Metric, most: int) -> dict[str, tuple[Tensor, Tensor]]:
    """For "edge" and "node": (places in the flattened scores, what the metric loses without each)."""
    generator = torch.Generator().manual_seed(3)
    readers, writers, _ = graph.shape()
    edges = graph.valid.flatten().nonzero()[:, 0]
    nodes = graph.valid.any(0).nonzero()[:, 0]
    found = {}
    for level, places in (("edge", edges), ("node", nodes)):
        places = places[torch.randperm(len(places), generator=generator)[:most]]
        whole = evaluate(graph, metric, torch.ones(1, *graph.shape(), dtype=torch.bool)).mean()
        losses = []
        for chunk in places.split(64):
            masks = torch.ones(len(chunk), readers * writers, dtype=torch.bool)
            if level == "edge":
                masks[torch.arange(len(chunk)), chunk] = False
            masks = masks.view(len(chunk), readers, writers, 1)
            if level == "node":
                masks[torch.arange(len(chunk)), :, chunk] = False
            losses.append(whole - evaluate(graph, metric, masks).mean(1))
        found[level] = places, torch.cat(losses)
    return found


def correlation(a: Tensor, b: Tensor) -> float:
    """Pearson's."""
    return float(torch.corrcoef(torch.stack([a.double(), b.double()]))[0, 1])


def rows_of(name: str, make: Callable[[], Runs], chosen: list[tuple[str, dict[str, object]]], most: int) -> list[Row]:
    """The rows of one family."""
    clean, corrupted, metric = make()
    graph = EdgeGraph(clean, corrupted)
    start = time.process_time()
    wanted = exact(graph, metric, most)
    took = time.process_time() - start
    found = []
    for method, options in chosen:
        start = time.process_time()
        scores = score(graph, metric, method=method, **options)
        spent = time.process_time() - start
        for level, (places, losses) in wanted.items():
            table = {"edge": scores.edges, "node": scores.nodes}[level]
            if table is None or len(places) < 3 or float(losses.std()) < 1e-9:
                continue
            said = ",".join(f"{key}={value}" for key, value in options.items())
            label = f"{name}: {method}{f'({said})' if said else ''}, {level}s"
            figure = correlation(table.sum(-1).flatten()[places], losses)
            entry = row(label, [figure], "correlation", None, COMMAND) | {"better": "higher", "goal": GOAL}
            facts = {"family": name, "method": label.split(": ")[1].split(",")[0], "level": level, "n": len(places)}
            found.append(entry | facts | {"met": figure >= GOAL, "seconds": round(spent, 3), "exact": round(took, 3)})
    return found


def chosen_method(text: str) -> tuple[str, dict[str, object]]:
    """A method's name and options from "name:option=value,option=value"."""
    name, _, options = text.partition(":")
    given = dict(part.split("=") for part in options.split(",") if part)
    return name, {key: int(value) if value.isdecimal() else value for key, value in given.items()}


def main() -> None:
    """Print the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="*", default=list(METHODS))
    parser.add_argument("--families", nargs="*", default=None, help="parts of families' names")
    parser.add_argument("--most", type=int, default=300)
    default = os.environ.get("CUTAWAY_DATA") or ROOT.parent / "shared" / "data"
    parser.add_argument("--data", type=Path, default=Path(default))
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    for folder in sorted({file.parent for file in (ROOT / "tests").rglob("*.py")}):
        sys.path.insert(0, str(folder))
    warnings.simplefilter("ignore")
    chosen = [chosen_method(text) for text in asked.methods]
    found: list[Row] = []
    for name, make in families(asked.data):
        if asked.families is not None and not any(part in name for part in asked.families):
            continue
        try:
            made = rows_of(name, make, chosen, asked.most)
            found += made
            said = " ".join(f"{entry['method']}/{entry['level'][0]} {entry['ours']:.3f}" for entry in made)
            print(f"{name}: {said} ({made[0]['exact'] if made else 0:.0f} s for exact)", file=sys.stderr, flush=True)
        except (CutawayError, FileNotFoundError) as absent:
            print(f"{name} is left out: {absent}", file=sys.stderr)
    show(found, asked.json)


if __name__ == "__main__":
    main()
