"""Verbs that say what an answer, or a head's attention, depends on in one run."""

from __future__ import annotations

from typing import Annotated

from ..report.attribution_text import attention as attention_text
from ..report.attribution_text import saliency as saliency_text
from .looking import NOTHING, Model, Texts
from .verb import Argument, Result, verb

_METHODS = ("integrated-gradients", "gradient", "gradient-times-input", "smooth-grad", "occlusion", "grad-cam")


@verb("saliency", show=saliency_text, chapter="Explain")
def saliency(
    model: Model,
    text: Texts = NOTHING,
    method: Annotated[str, Argument("How the map is made.", choices=_METHODS)] = "integrated-gradients",
    answer: Annotated[str, Argument("The answer to explain; the network's own when left out.", shown="TOKEN")] = "",
    count: Annotated[int, Argument("How many places of each input to show.", least=1)] = 10,
) -> Result:
    """The places of the inputs that the answer depends on most."""
    from ..attribution.metric import at_position, logit
    from ..attribution.saliency import saliency as explain
    from .subject import facts, inputs_of, open_model

    net = open_model(model)
    trace = net.record(inputs_of(net, text))
    own = at_position(trace.logits, -1).argmax(-1).tolist()
    metric = logit((int(answer) if net.tokenizer is None and answer.isdecimal() else answer) if answer else own)
    found = explain(trace, metric, method)
    batch = len(next(iter(found.maps.values())))
    return {
        "model": model, "facts": facts(net), "method": method, "how": found.facts,
        "examples": [[spot._asdict() for spot in found.top(count, example)] for example in range(batch)],
    }  # fmt: skip


@verb("attention", show=attention_text, chapter="Explain")
def attention(
    model: Model,
    text: Texts = NOTHING,
    head: Annotated[str, Argument("A head, such as L1.attn.h3.")] = "",
    query: Annotated[int, Argument("The position that attends.")] = -1,
    key: Annotated[str, Argument("The position attended to, or 'pattern'; the most attended when left out.")] = "",
    against: Annotated[str, Argument("A position or 'mean': explain the difference from its score.")] = "",
    count: Annotated[int, Argument("How many pairs of sources to show.", least=1)] = 10,
) -> Result:
    """Which sources, on the side of the query and of the key, make a head attend where it does."""
    from ..attribution.qk import explain_attention
    from ..errors import InputError
    from .subject import facts, inputs_of, open_model

    if not head:
        raise InputError("No head is named; give --head, such as --head L1.attn.h0.")
    net = open_model(model)
    trace = net.record(inputs_of(net, text))
    found = explain_attention(trace, head, query=query, key=_place(key), against=_place(against))
    return {
        "model": model, "facts": facts(net), "head": head, "how": found.facts, "score": float(found.score.mean()),
        "error": found.error, "edges": found.edges(),
        "pairs": [dict(zip(("query", "key", "value"), row, strict=True)) for row in found.top(count)],
    }  # fmt: skip


def _place(word: str) -> int | str | None:
    return int(word) if word.lstrip("-").isdecimal() else word or None
