"""Claims made by hand for the report's tests, and a reader of the pages made from them."""

import random
from html.parser import HTMLParser
from typing import Any

VOID = {"meta", "link", "br", "img", "hr", "input"}


def edge(writer: str, reader: str, exact: float | None, score: float, position: int | None = None) -> dict[str, Any]:
    """A row of a circuit's table."""
    name = f"{writer} -> {reader}"
    return {"edge": name, "writer": writer, "reader": reader, "position": position, "score": score, "exact": exact}


def circuit(edges: list[dict[str, Any]], nodes: list[str], level: str = "edge") -> dict[str, Any]:
    """A circuit as `Circuit.to_dict` gives it."""
    return {
        "schema": "cutaway.circuit/1",
        "level": level,
        "metric": {"name": "logit difference", "kind": "logit_difference", "correct": [1, 2], "wrong": [3, 4]},
        "nodes": nodes,
        "edges": edges,
        "faithfulness": 0.97,
        "curve": [[1, 0.0], [2, 0.4], [3, 0.97], [4, 1.02]],
        "universe": {"edges": 81, "writers": 9, "readers": 25},
        "settings": {"scores": "EAP-IG, 5 steps", "target_faithfulness": 0.9},
    }


CHAIN = [
    edge("embed", "L0.attn.h0.v", 13.46, 14.1),
    edge("L0.attn.h0", "L1.attn.h1.k", 12.9, 14.0),
    edge("embed", "L1.attn.h1.q", -1.25, -0.9),
    edge("L1.attn.h1", "logits", 13.45, 13.4),
]
NODES = ["embed", "L0.attn.h0", "L1.attn.h1"]


def evidence(name: str, value: Any, low: Any = None, high: Any = None, better: str = "higher") -> dict[str, Any]:
    """A piece of evidence."""
    return {"name": name, "value": value, "low": low, "high": high, "better": better, "how": f"how {name} was found"}


def claim(drawn: dict[str, Any] | None = None) -> dict[str, Any]:
    """A claim as `Claim.to_dict` gives it, with everything in it."""
    drawn = drawn or circuit(CHAIN, NODES)
    return {
        "schema": "cutaway.claim/1",
        "statement": "In toy, 4 of 81 edges over 3 nodes carry the logit difference.",
        "verdict": "partly supported",
        "reasons": [
            {"check": "faithful", "passed": True, "text": "the circuit alone keeps 98% of the behaviour"},
            {"check": "complete", "passed": False, "text": "corrupting it removes 41% of the behaviour"},
        ],
        "evidence": [evidence("faithfulness", 0.98, 0.91, 1.04, "closer to 1"), evidence("null p", 0.0099)],
        "circuit": drawn,
        "details": {
            "null": [0.0, 0.1, 0.1, -0.2, 0.35],
            "needs": {row["edge"]: 0.25 for row in drawn["edges"]},
            "per_example": [0.5, 0.9, 1.3, 1.1],
            "clean": 13.5,
            "corrupted": -0.25,
            "circuit": 13.1,
            "complement": 0.5,
            "truth": {
                "auroc": 0.9,
                "how": "3 known edges among 81 testable",
                "found": [CHAIN[0]["edge"]],
                "missed": ["embed -> L1.attn.h1.v"],
                "beyond": [CHAIN[2]["edge"]],
                "untestable": ["pos_embed -> L0.attn.h0.q"],
            },
        },
        "provenance": {
            "model": "toy",
            "source": "organism:toy",
            "fingerprint": "f46f8843d778938e",
            "metric": {
                "name": "logit difference",
                "kind": "logit_difference",
                "correct": list(range(20)),
                "wrong": [1],
            },
            "baseline": "counterfactual: the values of the corrupted run",
            "examples": 64,
            "held_out": True,
            "seed": 7,
            "versions": {"cutaway": "0.1.0", "python": "3.11.7"},
        },
    }


def data(**changed: Any) -> dict[str, Any]:
    """Everything that a page may be made of."""
    whole = {
        "claim": claim(),
        "components": [
            {
                "name": "L0.attn",
                "kind": "attention",
                "site": "layers.0/matmul.1",
                "axis": "head",
                "count": 4,
                "calls": 1,
                "reads": ["q", "k"],
            }
        ],
        "listing": [
            {
                "address": "embed/embedding.0",
                "op": "embedding",
                "shape": "64×18",
                "dtype": "float32",
                "reads": ["input:0"],
                "source": "toy.py:42",
                "depth": 1,
                "repeat": 16,
                "span": 2,
            }
        ],
        "behaviour": "After A B … A the model predicts B.",
        "examples": [
            {"clean": ["<s>", " a", " b"], "corrupted": ["<s>", " a", " c"], "correct": " b", "wrong": " c"},
            {"clean": None, "corrupted": None, "correct": "circle", "wrong": "square"},
        ],
        "model": {
            "name": "toy",
            "class": "Toy",
            "parameters": 37120,
            "fingerprint": "f46f8843d778938e",
            "source": "organism:toy",
        },
        "version": "0.1.0",
    }
    return whole | changed


def crowd(count: int = 260, layers: int = 12) -> dict[str, Any]:
    """A circuit of very many edges over a deep network."""
    draw = random.Random(3)
    nodes = [
        "embed",
        *(f"L{layer}.attn.h{head}" for layer in range(layers) for head in sorted(draw.sample(range(12), 4))),
    ]
    pairs = [
        (writer, f"{reader}.{port}")
        for place, writer in enumerate(nodes)
        for reader in nodes[place + 1 :]
        if reader.split(".")[0] != writer.split(".")[0]
        for port in "qkv"
    ]
    pairs += [(node, "logits") for node in nodes]
    rows = [edge(*pair, draw.uniform(-1, 1) ** 5 * 9, draw.uniform(-9, 9)) for pair in draw.sample(pairs, count)]
    return circuit(rows, nodes)


class Page(HTMLParser):
    """A page read strictly: every element with its attributes and own text; unbalanced tags raise."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str], list[str]]] = []
        self._open: list[int] = []
        self.feed(text)
        self.close()
        assert not self._open, f"never closed: {[self.elements[place][0] for place in self._open]}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs), f"an attribute twice: {tag} {attrs}"
        self.elements.append((tag, {name: value or "" for name, value in attrs}, []))
        if tag not in VOID:
            self._open.append(len(self.elements) - 1)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}, []))

    def handle_endtag(self, tag: str) -> None:
        assert self._open and self.elements[self._open[-1]][0] == tag, f"</{tag}> closes nothing that is open"
        self._open.pop()

    def handle_data(self, data: str) -> None:
        for place in self._open:
            self.elements[place][2].append(data)

    def text(self, tag: str, kind: str | None = None) -> list[str]:
        """The text of each element with this tag (and class)."""
        found = [item for item in self.elements if item[0] == tag]
        return ["".join(text) for _, given, text in found if kind is None or kind in given.get("class", "").split()]
