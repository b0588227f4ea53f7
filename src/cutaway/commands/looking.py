"""Verbs that look at one run of a network: its listing, its parts, its values."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

from .. import site as addresses
from ..report import terminal
from . import store
from .verb import Argument, Result, verb

if TYPE_CHECKING:
    from ..run.trace import Trace

Model = Annotated[str, Argument("A bundled organism, a folder with config.json, or a hub id.", positional=True)]
Texts = Annotated[list[str], Argument("An input; several times for a batch. Organisms need none.", shown="TEXT")]
Dictionaries = Annotated[
    list[str],
    Argument("A dictionary whose latents become sites; FILE@SITE puts it elsewhere. May be repeated.", shown="FILE"),
]
NOTHING: list[str] = []


@verb("list", show=terminal.listing, chapter="Look")
def list_ops(
    model: Model,
    text: Texts = NOTHING,
    prefix: Annotated[str, Argument("Only ops below this module or site.")] = "",
    flat: Annotated[bool, Argument("Write loops out instead of rolling them up.")] = False,
) -> Result:
    """The disassembly of a run: every op with its site, shape, operands and source line."""
    trace = _run(model, text, "none")
    found = trace.listing(prefix, roll=not flat)
    if prefix and not len(found):
        modules = [call.path for call in trace.graph.modules if call.path]
        raise addresses.unknown(prefix, dict.fromkeys([*modules, *trace.sites()]))
    return {"model": model, "prefix": prefix, "total": found.total, "lines": [asdict(line) for line in found]}


@verb("lift", show=terminal.parts, chapter="Look")
def lift(model: Model, text: Texts = NOTHING, dictionary: Dictionaries = NOTHING) -> Result:
    """The parts of a network: heads, neurons, channels, states and the residual stream, found by dataflow."""
    from .subject import facts

    trace = _run(model, text, "all", dictionary)
    lifted = trace.lift()
    components = [asdict(part) for part in lifted.components()]
    return {"model": model, "facts": facts(trace.net), "components": components, "streams": lifted.streams}


@verb("record", show=terminal.recorded, chapter="Look")
def record(
    model: Model,
    text: Texts = NOTHING,
    keep: Annotated[
        list[str], Argument("A site whose values to keep; several times for more.", shown="SITE")
    ] = NOTHING,
    dictionary: Dictionaries = NOTHING,
    project: Annotated[str, Argument("The project that keeps the record.")] = "",
) -> Result:
    """Run a network once: what it computed, what it answered, and the values at the sites asked for."""
    from .subject import facts, in_words, inputs_of, open_model, organism_of, top

    if project:
        store.check(project)
    net = open_model(model, dictionary)
    inputs = inputs_of(net, text)
    trace = net.record(inputs)
    values = {site: trace.value(site) for site in keep}
    organism = organism_of(net)
    decides = trace.logits.ndim in (2, 3) and (organism is None or organism.behaviour is not None)
    result: dict[str, Any] = {
        "model": model,
        "inputs": in_words(net, inputs),
        "graph": {
            "ops": len(trace.graph.ops),
            "module_calls": len(trace.graph.modules) - 1,
            "problems": trace.tape.problems,
        },
        "output": {"shape": list(trace.logits.shape), **_summary(trace.logits)},
        "top": top(net, trace.logits) if decides else [],
        "kept": [{"site": site, "shape": list(value.shape), **_summary(value)} for site, value in values.items()],
    }
    result = store.plain(result)
    if project:
        arrays = {site: value.detach().cpu().numpy() for site, value in values.items()}
        result |= store.keep_record(project, facts(net), "run", result, arrays)
    return result | {"facts": facts(net)}


def _run(model: str, text: list[str], keep: str, dictionaries: list[str] = NOTHING) -> Trace:
    from .subject import inputs_of, open_model

    net = open_model(model, dictionaries)
    return net.record(inputs_of(net, text), keep=keep)


def _summary(value: Any) -> dict[str, float | None]:
    value = value.detach().double()
    if not value.numel():
        return {"mean": None, "spread": None, "least": None, "most": None}
    spread = float(value.std()) if value.numel() > 1 else 0.0
    return {"mean": float(value.mean()), "spread": spread, "least": float(value.min()), "most": float(value.max())}
