"""What network a checkpoint belongs to, from the names and shapes of its tensors.

Families of `transformers` are rows of a table (`families`); a chain of plain layers is read off its shapes (`chains`).
What shapes leave open is listed with every value that fits, and never chosen. "certain" means that a network built from
the recovered config has exactly these names and shapes, that no other known family has them too, and that nothing was
left open; `check` does the building, as this file loads no torch.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cutaway.errors import InputError
from cutaway.formats import Checkpoint
from cutaway.weights.chains import chain, facts_of
from cutaway.weights.families import FAMILIES, Family
from cutaway.weights.shapes import Shapes, evaluated, unwrapped

SHOWN = 64  # candidates that are listed
# Buffers that older versions of libraries saved and that hold nothing learnt.
LEFTOVERS = re.compile(r"(\.attn\.(masked_)?bias|\.attention\.(masked_)?bias|rotary_emb\.inv_freq|position_ids)$")


@dataclass
class Match:
    """A family whose marks are there: its config, what that leaves open, and how a network built from it compares.

    `cls` is the class that was built; `differences` says how its names and shapes differ, empty for none; `unseen` are
    settings taken from the family's defaults. `given` are answers to what was open.
    """

    family: Family
    prefix: str
    outer: str
    config: dict[str, Any]
    candidates: list[dict[str, Any]]
    tied: bool | None = None
    cls: str = ""
    differences: list[str] = field(default_factory=list)
    unseen: dict[str, Any] = field(default_factory=dict)

    @property
    def exact(self) -> bool:
        """Whether a network was built and has the same names and shapes."""
        return bool(self.cls) and not self.differences


@dataclass
class Recovery:
    """What was recovered. `confidence`: certain, ambiguous, partial, structure or unknown; `why` says it in sentences.

    `match` is the family, `layers` the chain of plain layers where there is one, `facts` sizes in plain words.
    """

    confidence: str
    why: list[str]
    match: Match | None
    facts: dict[str, Any]
    layers: list[dict[str, Any]] = field(default_factory=list)
    also: list[str] = field(default_factory=list)

    def record(self) -> dict[str, Any]:
        """Everything as JSON-able data."""
        found: dict[str, Any] = {"confidence": self.confidence, "why": self.why, "facts": self.facts}
        found |= {"layers": self.layers, "also": self.also, "family": None}
        if (match := self.match) is not None:
            found |= {
                "family": match.family.name, "class": match.cls or None, "config_class": match.family.config,
                "config": match.config, "candidates": match.candidates[:SHOWN], "unseen": match.unseen,
                "differences": match.differences[:SHOWN],
            }  # fmt: skip
        return found


Check = Callable[[Match, dict[str, tuple[int, ...]]], None]


def recover(checkpoint: Checkpoint, check: Check | None = None, given: dict[str, Any] | None = None) -> Recovery:
    """Recover a checkpoint's network. `check` builds a match and notes differences (`cutaway.weights.build.check`).

    `given` settles fields of the config, as {"num_attention_heads": 12}, and under "family" the row of the table.
    Raises InputError when it fits no candidate.
    """
    outer = unwrapped(checkpoint.tensors)
    shapes = {
        name[len(outer) :]: tensor.shape for name, tensor in checkpoint.tensors.items() if not LEFTOVERS.search(name)
    }
    known = {name[len(outer) :]: tensor.shape for name, tensor in checkpoint.tensors.items()}
    given = dict(given or {})
    rows = _named(given.pop("family", None))
    matches = [match for family in rows for match in _matched(family, Shapes(known), checkpoint, outer)]
    for match in matches:
        _settle(match, given)
        if check is not None and match.candidates:
            check(match, shapes)
    best = [match for match in matches if match.exact] or matches
    if best:
        return _judged(best, check is not None)
    layers, breaks = chain(shapes)
    facts = facts_of(Shapes(shapes))
    if layers:
        why = ["Every tensor belongs to a plain layer, and in some order each takes what the one before it gives, "
               "which does not prove that this is their order."]  # fmt: skip
        if breaks:
            some = ", ".join(breaks[:3])
            why = [f"Every tensor belongs to a plain layer; in no order does each take what the one before it gives "
                   f"({some}{' …' if len(breaks) > 3 else ''}), so there are branches or skips."]  # fmt: skip
        why.append("What stands between layers (activations, pooling, dropout, skips) is not in the file.")
        return Recovery("structure", why, None, facts | {"layers": len(layers)}, layers)
    why = ["No family in the table has these names, and not every tensor belongs to a plain layer."]
    return Recovery("unknown", why, None, facts)


def _named(name: str | None) -> tuple[Family, ...]:
    rows = tuple(family for family in FAMILIES if name in (None, family.name))
    if not rows:
        raise InputError(f"No family is called '{name}'; known are {', '.join(family.name for family in FAMILIES)}.")
    return rows


def _matched(family: Family, known: Shapes, checkpoint: Checkpoint, outer: str) -> list[Match]:
    for prefix in known.prefixes(family.marks[0]):
        shapes = known.below(prefix)
        if all(shapes.get(mark) for mark in family.marks) and not any(shapes.get(mark) for mark in family.absent):
            read = {key: evaluated(cell, shapes) for key, cell in family.sizes.items()}
            config: dict[str, Any] = {key: value for key, value in read.items() if value is not None}
            tied = _tied(family, shapes, checkpoint, outer)
            if family.head and tied is not None:
                config["tie_word_embeddings"] = tied
            return [Match(family, prefix, outer, config, family.left(shapes), tied)]
    return []


def _tied(family: Family, shapes: Shapes, checkpoint: Checkpoint, outer: str) -> bool | None:
    """Whether the unembedding is the embedding: it is absent, lies on the same bytes, or holds the same numbers."""
    head = shapes.get(family.head) if family.head else None
    if head is None:
        return True if family.head and shapes.prefix else None
    wanted = outer + family.head.removeprefix("/")
    cell = next((str(cell) for cell in family.sizes.values() if str(cell).endswith(":0")), "")
    name = outer + shapes.prefix + cell.removesuffix(":0")
    if name not in checkpoint.tensors or checkpoint.tensors[name].shape != head:
        return False
    one, other = checkpoint.tensors[name], checkpoint.tensors[wanted]
    if (one.place.path, one.place.offset) == (other.place.path, other.place.offset):
        return True
    return one.dtype == other.dtype and bool(np.array_equal(checkpoint.read(name), checkpoint.read(wanted)))


def _settle(match: Match, given: dict[str, Any]) -> None:
    """Keep the candidates that agree with what is given; fields that no candidate has go into the config."""
    open_fields = {key for row in match.candidates for key in row}
    fitting = [row for row in match.candidates if all(row.get(key, value) == value for key, value in given.items())]
    if match.candidates and not fitting:
        some = "; ".join(_said(row) for row in match.candidates[:4])
        raise InputError(f"{_said(given)} does not fit these shapes; what fits is {some}.")
    match.candidates = fitting
    match.config |= {key: value for key, value in given.items() if key not in open_fields}
    if len(fitting) == 1:
        match.config |= fitting[0]


def _judged(best: list[Match], checked: bool) -> Recovery:
    match = best[0]
    others = [other.family.name for other in best[1:]]
    facts = _facts(match)
    if not match.exact:
        reason = (
            "no network of transformers has them"
            if not match.family.classes
            else "its matrices are stored transposed, so that another implementation of it made the file"
            if match.differences and all(map(_turned, match.differences))
            else f"a network built from it differs in {len(match.differences)} tensors, first: {match.differences[0]}"
            if match.differences
            else "no size of heads divides its widths"
            if not match.candidates
            else "it was not compared with a network built from it"
            if not checked
            else "no such network could be built here"
        )
        why = [f"The names are those of {match.family.name}, but {reason}."]
        return Recovery("partial", why, match, facts, also=others)
    why = [f"A {match.cls} built from this config has exactly these names and shapes."]
    if others:
        why.append(f"{' and '.join(others)} name their tensors the same way, and compute something else.")
    if len(match.candidates) > 1:
        fields = ", ".join(match.candidates[0])
        why.append(f"Shapes do not say {fields}: {len(match.candidates)} choices fit; customary is "
                   f"{_said(match.candidates[0])}.")  # fmt: skip
    if match.unseen:
        why.append(f"No shape shows {', '.join(match.unseen)}; here they are the family's defaults.")
    certain = not others and len(match.candidates) == 1
    return Recovery("certain" if certain else "ambiguous", why, match, facts, also=others)


def _turned(difference: str) -> bool:
    """Whether a difference is that of a matrix stored transposed."""
    sizes = re.findall(r"\[(\d+), (\d+)\]", difference)
    return len(sizes) == 2 and sizes[0] == sizes[1][::-1]


_FACTS = {
    "layers": "num_hidden_layers", "width": "hidden_size", "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads", "head_size": "head_dim", "vocabulary": "vocab_size",
    "mlp": "intermediate_size", "experts": "num_experts", "states": "state_size",
}  # fmt: skip
_MLP = ("n_inner", "ffn_dim", "ffn_hidden_size", "d_ff", "encoder_ffn_dim")


def _facts(match: Match) -> dict[str, Any]:
    """Sizes in plain words, as far as they are settled."""
    config, words = match.config, match.family.fields
    facts = {word: config.get(words.get(name, name)) for word, name in _FACTS.items()}
    facts["mlp"] = facts["mlp"] or next((config[name] for name in _MLP if name in config), None)
    found = {word: value for word, value in facts.items() if value is not None}
    return found | {"norm": match.family.norm} | ({} if match.tied is None else {"tied_embeddings": match.tied})


def _said(row: dict[str, Any]) -> str:
    return ", ".join(f"{key} = {value}" for key, value in row.items())
