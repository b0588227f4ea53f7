"""`demo`: the whole way on a bundled network whose mechanism is known, offline and within a minute."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from .. import __version__
from ..formats.writing import write_whole
from ..report import terminal
from . import store
from .verb import Argument, Result, verb

LISTED = 60
SHOWN = 12
PAIRS_SHOWN = 4


@verb("demo", show=terminal.demo, chapter="First steps")
def demo(
    organism: Annotated[str, Argument("A bundled network; `cutaway organisms` lists them.")] = "indirect-object",
    pairs: Annotated[int, Argument("How many pairs of inputs to search on, and as many to test on.", least=2)] = 64,
    seed: Annotated[int, Argument("Which pairs to draw.", least=0)] = 0,
    project: Annotated[str, Argument("Where to keep the result.", shown="cutaway-demo/ORGANISM.cutaway")] = "",
) -> Result:
    """Take a bundled network apart: find the circuit behind its behaviour, test it, and keep the evidence.

    The network's mechanism is known, so the result is compared with the truth. A second run adds nothing twice.
    """
    from ..report.html import page
    from .finding import find, shown_pairs, told
    from .subject import behaving, drawn, facts, held_out, open_model, suited_threads

    began = time.perf_counter()
    subject = behaving(organism)
    path = project or str(Path("cutaway-demo") / f"{organism}.cutaway")
    store.check(path)
    net = open_model(organism)
    examples = drawn(subject, pairs, seed)
    truth = subject.truth
    with suited_threads(net):
        finding = find(net, examples, held_out(subject, examples, pairs, seed), truth=truth, seed=seed)
    listing = finding.clean.listing()
    components = [asdict(part) for part in finding.clean.lift().components()]
    claim = store.stored_form(finding.claim)
    shown = shown_pairs(net, examples, PAIRS_SHOWN)
    text = page(
        {
            "claim": claim,
            "components": components,
            "listing": [asdict(line) for line in list(listing)[:LISTED]],
            "behaviour": subject.behaviour,
            "examples": shown,
            "model": facts(net),
            "version": __version__,
        }
    )
    kept = store.keep_claim(path, facts(net), claim, finding.claim.tensors)
    report = write_whole(Path(kept["project"]).with_suffix(".html"), text.encode())
    return {
        "model": organism,
        "behaviour": subject.behaviour,
        **told(claim),
        "mechanism": subject.truth.mechanism if subject.truth is not None else None,
        "facts": facts(net),
        "components": components,
        "pairs": shown,
        "listing": [asdict(line) for line in list(listing)[:SHOWN]],
        "ops": listing.total,
        **kept,
        "report": str(report),
        "seconds": round(time.perf_counter() - began, 2),
    }
