"""What the examples of a run have in common, token by token."""

from __future__ import annotations

from ..run.structure import tensors
from ..run.trace import Trace

VARIES = "…"


def template(trace: Trace) -> tuple[str, ...]:
    """The token at each position, or "…" where examples differ; () where the inputs are no tokens."""
    net = trace.net
    found = next((given for given in tensors((trace.args, trace.kwargs)) if given.ndim == 2), None)
    if net.tokenizer is None or found is None or found.is_floating_point():
        return ()
    same = (found == found[:1]).all(0).tolist()
    return tuple(net.token_text(token) if one else VARIES for token, one in zip(found[0].tolist(), same, strict=True))
