"""Verbs that read a network by its linear paths: what its units say in words, and who reads what who writes."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from ..errors import InputError
from ..project import Project
from ..report import reading_text
from . import store
from .looking import NOTHING, Dictionaries, Model, Texts
from .verb import Argument, Result, verb

if TYPE_CHECKING:
    from ..reading.index import Index
    from ..run.network import Network

KIND = "xrefs index"
_STAMPED = (".safetensors", ".bin", ".pt", ".json", ".index")
SHORT = "the"  # what a network with a tokenizer is recorded on, where nothing else is given


@verb("strings", show=reading_text.strings, chapter="Look")
def strings(
    model: Model,
    text: Texts = NOTHING,
    grep: Annotated[str, Argument("Only units whose entries match this regular expression.", shown="REGEX")] = "",
    site: Annotated[str, Argument("Only units whose name begins so: L3, L3.mlp, L3.attn.h2.")] = "",
    side: Annotated[str, Argument("Only this side: reads, writes, sees, ov reads, ov writes, qk query, qk key.")] = "",
    norm: Annotated[
        str, Argument("The final norm: folded in, at the recording's scale, or left out.",
                      choices=("unit", "frozen", "none"))
    ] = "unit",
    top: Annotated[int, Argument("How many rows.", least=1)] = 20,
    seed: Annotated[int, Argument("Seed of the random directions that z is measured against.")] = 0,
    dictionary: Dictionaries = NOTHING,
) -> Result:
    """What every unit reads and writes in human terms: tokens, classes, colours and frequencies.

    By linear paths alone: to the outputs, from the embedding, from the image. z says how far a unit's strongest entry
    stands above that of random directions. Without --text the shortest input will do, as weights say it all.
    """
    from ..reading import strings as read
    from .subject import answer_names, facts, open_model

    net = open_model(model, dictionary)
    start = time.perf_counter()
    found = read(net.record(_short(net, text)), norm=norm, seed=seed, labels=answer_names(net), side=side)
    rows = found.rows(grep, top, site, side)
    return store.plain({
        "model": model, "facts": facts(net), "grep": grep, "site": site, "rows": rows, "searched": len(found),
        "notes": list(found.notes), "seconds": time.perf_counter() - start,
    })  # fmt: skip


@verb("xrefs", show=reading_text.xrefs, chapter="Look")
def xrefs(
    model: Model,
    site: Annotated[str, Argument("A component, as in L5.attn.h1.q, L3.mlp.n7, logits[vocab=11].", positional=True)],
    text: Texts = NOTHING,
    token: Annotated[str, Argument("The word that logits, or embed, is asked about.")] = "",
    run: Annotated[bool, Argument("Of a run: who contributed to this value, and who used it.")] = False,
    neurons: Annotated[bool, Argument("A row for each neuron, not for each MLP.")] = False,
    top: Annotated[int, Argument("How many rows each way.", least=1)] = 10,
    norm: Annotated[
        str, Argument("Norms on the way: at scale one, or as recorded.", choices=("unit", "frozen"))
    ] = "unit",
    project: Annotated[str, Argument("The project that keeps the index, for later questions.")] = "",
    dictionary: Dictionaries = NOTHING,
) -> Result:
    """Who writes what a site reads, and who reads what it writes.

    By weights alone, through linear paths; with --text or --run in one run, as shares of the value that was read.
    """
    site = _about(model, site, token) if token else site
    if text or run:
        return store.plain(_in_a_run(model, site, text, neurons, top, dictionary))
    start = time.perf_counter()
    index, facts, built, record = _index(model, norm, project, dictionary)
    asked = time.perf_counter()
    writers = [asdict(row) for row in index.writers_of(site, top, neurons=neurons)]
    readers = [asdict(row) for row in index.readers_of(site, top, neurons=neurons)]
    end = time.perf_counter()
    return store.plain({
        "model": model, "facts": facts, "site": site, "how": "static", "note": index.facts["note"],
        "writers": writers, "readers": readers, "built": built, "project": project, "record": record,
        "bytes": index.size(), "seconds": end - asked, "opened": asked - start,
    })  # fmt: skip


def _in_a_run(
    model: str, site: str, text: list[str], neurons: bool, top: int, dictionaries: list[str]
) -> dict[str, Any]:
    from ..reading import contributed, sites_of, used
    from .subject import facts, in_words, inputs_of, open_model

    net = open_model(model, dictionaries)
    inputs = inputs_of(net, text)
    trace = net.record(inputs)
    start = time.perf_counter()
    reading, writing = sites_of(trace, site)
    sides: dict[str, Any] = {"writers": [], "readers": []}
    constants = {}
    for asked in reading:
        found = contributed(trace, asked, top, neurons=neurons)
        sides["writers"] += [asdict(row) for row in found.rows]
        constants[asked] = found.constant
    for asked in writing:
        sides["readers"] += [asdict(row) for row in used(trace, asked, top, neurons=neurons).rows]
    note = "shares of the value in this run; norms' scales and maxima held at the run's"
    return {
        "model": model, "facts": facts(net), "site": site, "how": "dynamic", "note": note, "constants": constants,
        "inputs": in_words(net, inputs), **sides, "seconds": time.perf_counter() - start,
    }  # fmt: skip


def _about(model: str, site: str, token: str) -> str:
    """A site narrowed to one word of the vocabulary."""
    from .subject import open_model

    name, _, rest = site.partition("[")
    within = [rest.removesuffix("]")] if rest else []
    return f"{name}[{', '.join([f'vocab={open_model(model).token_id(token)}', *within])}]"


def _short(net: Network, text: list[str]) -> Any:
    from .subject import inputs_of, organism_of

    if text or organism_of(net) is not None or net.tokenizer is None:
        return inputs_of(net, text)
    return [SHORT]


def _index(
    model: str, norm: str, project: str, dictionaries: list[str]
) -> tuple[Index, dict[str, Any], bool, str]:
    """(the index, the network's facts, whether it was built now, its record's id): the project's, where it has one of
    this very network; a network that is not needed for that is not opened."""
    from ..reading.index import Index

    stamp = _stamp(model)
    if project and dictionaries:
        raise InputError("A project keeps the index of a network alone; leave out --project or --dictionary.")
    if project:
        store.check(project)
        for key, body, arrays in _kept(project):
            if stamp and body.get("stamp") == stamp and body["index"]["norm"] == norm:
                return Index(body["index"], arrays), body["facts"], False, key
    from ..reading import build_index
    from .subject import facts, open_model

    net = open_model(model, dictionaries)
    if project:
        for key, body, arrays in _kept(project):
            if body["index"]["fingerprint"] == net.fingerprint and body["index"]["norm"] == norm:
                return Index(body["index"], arrays), body["facts"], False, key
    index = build_index(net.record(_short(net, [])), norm=norm)
    record = ""
    if project:
        data, tensors = index.stored()
        body = {"index": data, "facts": facts(net), "stamp": stamp}
        record = store.keep_record(project, facts(net), KIND, body, tensors)["record"]
    return index, facts(net), True, record


def _kept(project: str) -> list[tuple[str, dict[str, Any], Any]]:
    """Indices of a project, the newest first, their arrays memory-mapped."""
    if not Path(project if project.endswith(".cutaway") else f"{project}.cutaway").exists():
        return []
    with Project(project, create=False, readonly=True) as kept:
        rows = [row for row in kept.records(KIND) if isinstance(row["data"].get("index"), dict)]
        return [(row["id"], row["data"], kept.tensors(row["id"])) for row in reversed(rows)]


def _stamp(model: str) -> list[list[Any]]:
    """Sizes and times of a folder's files; empty for what is no folder. Equal stamps: the same network, unopened."""
    folder = Path(model.removeprefix("folder:"))
    if not folder.is_dir():
        return []
    files = sorted(file for file in folder.iterdir() if file.suffix in _STAMPED)
    return [[str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns] for file in files]
