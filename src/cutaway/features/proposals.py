"""Labels that a language model proposes, under the same test as rules: it has to say where the latent fires.

It sees training examples and answers with a sentence; then it is shown held-out examples, half of which fire, and has
to tell which. A rule of the kind that `rules` runs may come with the sentence; then the rule is what is tested, on all
held-out rows. The rule that was learned without it is scored on the same rows as a control.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InputError
from .endpoint import Endpoint, json_in
from .label_test import detection
from .labels import THRESHOLD, Label, firing, halves, label_one
from .rule_search import f1
from .rules import Rule

if TYPE_CHECKING:
    from .index import LatentIndex

SHOWN, ASKED, AROUND = 12, 40, 12
_LONGEST = 200
_TASK = (
    "You describe when one unit of a neural network fires. Examples are texts in which one token is marked «so». "
    "Answer with JSON alone."
)


def propose(
    index: LatentIndex, latent: int, endpoint: Endpoint, *, threshold: float = THRESHOLD, asked: int = ASKED,
    seed: int = 0,
) -> Label:  # fmt: skip
    """A label in the words of a language model, tested on `asked` held-out rows, half of which fire (so precision is at
    that rate, not the natural one). Raises ResourceError for an endpoint that gives no usable answer, InputError for a
    latent that fires too seldom or inputs that are no texts."""
    if index.facts["kind"] != "text" or index.facts["axes"] != 1:
        raise InputError("A language model is shown texts, and the inputs of this index are none.")
    limit, parts = threshold * float(index.largest[latent]), halves(index, seed)
    plain = label_one(index, parts, latent, threshold, seed)
    if plain is None or plain.rule is None:
        raise InputError(f"Latent {latent} fires on too few rows for a label to be tested.")
    generator = np.random.default_rng([seed, latent])
    fires = [firing(index, latent, rows, limit) for rows in (parts.train_rows, parts.test_rows)]
    shown = [_drawn(mask, side, SHOWN, generator) for mask in fires[:1] for side in (True, False)]
    lines = [_line(index, int(parts.train_rows[row])) for row in shown[0]]
    others = [_line(index, int(parts.train_rows[row])) for row in shown[1]]
    prompt = (
        "It fires on these:\n" + "\n".join(lines) + "\nIt does not fire on these:\n" + "\n".join(others)
        + '\nAnswer {"label": "when it fires, in at most 20 words"}.'
    )  # fmt: skip
    answer = json_in(endpoint.ask(_messages(prompt)), lambda found: isinstance(found.get("label"), str), "a label")
    text = plainly(answer["label"])
    if not text:
        raise InputError(f"The endpoint's label for latent {latent} is empty; ask again or another model.")
    how = plain.how | {"made by": f"endpoint, model {endpoint.model}", "asked": asked}
    if "rule" in answer:
        try:
            rule = Rule.from_dict(answer["rule"])
            said = rule.holds(parts.test)
        except InputError as error:
            how["rule refused"] = str(error)
        else:
            score = detection(said, fires[1], parts.test.group, seed)
            controls = plain.controls | {"rule learned without it": plain.score.f1}
            return Label(latent, text, rule, limit, score, controls, how, parts.test.vocabulary)
    rows = np.sort(np.concatenate([_drawn(fires[1], side, asked // 2, generator) for side in (True, False)]))
    rows = generator.permutation(rows)
    numbered = [f"{place}. {_line(index, int(parts.test_rows[row]))}" for place, row in enumerate(rows)]
    prompt = (
        f"A unit fires: {text}\nOn which of these does it fire?\n" + "\n".join(numbered)
        + '\nAnswer {"fires": [numbers]}.'
    )  # fmt: skip
    answer = json_in(endpoint.ask(_messages(prompt)), lambda found: _numbers(found.get("fires"), len(rows)),
                     f"numbers from 0 to {len(rows) - 1}")  # fmt: skip
    said = np.zeros(len(rows), bool)
    said[np.array(answer["fires"], dtype=np.int64)] = True
    truth = fires[1][rows]
    controls = {
        "rule on the same rows": f1(plain.rule.holds(parts.test)[rows], truth),
        "everything": f1(np.ones_like(truth), truth),
    }
    return Label(latent, text, None, limit, detection(said, truth, parts.test.group[rows], seed), controls, how)


def plainly(text: str) -> str:
    """A proposed label as one line of at most 200 visible characters."""
    kept = "".join(mark if unicodedata.category(mark)[0] != "C" else " " for mark in text)
    return " ".join(kept.split())[:_LONGEST]


def _messages(prompt: str) -> list[dict[str, str]]:
    return [{"role": "system", "content": _TASK}, {"role": "user", "content": prompt}]


def _numbers(found: Any, count: int) -> bool:
    return isinstance(found, list) and all(type(one) is int and 0 <= one < count for one in found)


def _drawn(fires: np.ndarray, side: bool, count: int, generator: np.random.Generator) -> Sequence[int]:
    rows = np.flatnonzero(fires == side)
    picked: list[int] = generator.choice(rows, min(count, len(rows)), replace=False).tolist()
    return picked


def _line(index: LatentIndex, row: int) -> str:
    example, at = int(index.arrays["example"][row]), int(index.arrays["position"][row, 0])
    words = [index.token_text(int(token)) for token in index.example(example)[max(at - AROUND, 0) : at + 1]]
    spaced = any(word[:1].isspace() or word[-1:].isspace() for word in words)
    return ("" if spaced else " ").join([*words[:-1], f"«{words[-1]}»"]).replace("\n", "↵")
