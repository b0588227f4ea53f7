"""Verbs that look at a dictionary's latents: an index of where they fire, pages, and labels with their tests."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from ..errors import CutawayError, InputError
from ..report import features_text
from . import store
from .looking import NOTHING, Texts
from .verb import Argument, Result, verb

if TYPE_CHECKING:
    from ..features.index import LatentIndex
    from ..features.labels import Label
    from ..run.network import Network

_AGAIN = "The data that were collected, where the folder does not hold them:"
KEY = "CUTAWAY_ENDPOINT_KEY"
Folder = Annotated[str, Argument("An index, as 'features index' made it.", positional=True, shown="INDEX")]
Other = Annotated[str, Argument("The network, where it cannot be opened from where it was.", shown="MODEL")]


@dataclass(frozen=True)
class Ends:
    """A language model that proposes labels."""

    endpoint: Annotated[
        str, Argument(f"An OpenAI-compatible URL that proposes labels; a key is read from {KEY}.", shown="URL")
    ] = ""
    endpoint_model: Annotated[str, Argument("The model's name there.", shown="NAME")] = "default"
    endpoint_timeout: Annotated[int, Argument("Seconds for a whole answer.", least=1)] = 60


@dataclass(frozen=True)
class Tests:
    """What labels are put to beside detection."""

    hunt: Annotated[bool, Argument("Search for counter-examples with the network, and learn again from them.")] = False
    causal: Annotated[bool, Argument("Take each latent out, and see whether what it promotes falls.")] = False


@verb("features index", show=features_text.indexed, chapter="Features")
def index(
    dictionary: Annotated[str, Argument("The file of a dictionary.", positional=True, shown="DICT")],
    activations: Annotated[str, Argument("A folder of collected activations.", positional=True, shown="FOLDER")],
    out: Annotated[str, Argument("The folder to write; an index there is replaced.", shown="FOLDER")],
    network: Other = "",
    inputs: Annotated[str, Argument(f"{_AGAIN} arrays, .npy, .npz or .safetensors.", shown="FILE")] = "",
    texts: Annotated[str, Argument(f"{_AGAIN} texts.", shown="FILE")] = "",
) -> Result:
    """Index where a dictionary's latents fire, so that pages about them come at once.

    With the network at hand, tokens have their texts, and latents the words that they promote.
    """
    from ..features import load_dictionary
    from ..features.index import build_index
    from ..features.store import open_activations
    from .progress import report
    from .subject import inputs_again

    made, seen = load_dictionary(dictionary), open_activations(activations)
    net, note = _network(network, str(seen.manifest["network"].get("source", "")))
    start = time.perf_counter()
    again = inputs_again(net, seen, texts, inputs)
    built = build_index(made, seen, out, net=net, inputs=again, progress=report)
    return store.plain({
        "out": out, **_facts(built), "entries": built.facts["entries"],
        "l0": built.facts["entries"] / built.facts["rows"],
        "never": int((built.fired == 0).sum()), "note": note, "seconds": time.perf_counter() - start,
    })  # fmt: skip


@verb("features list", show=features_text.listed, chapter="Features")
def list_latents(
    folder: Folder,
    sort: Annotated[str, Argument("By what.", choices=("density", "max", "label", "latent"))] = "density",
    search: Annotated[str, Argument("Only those with this in their label or promoted words.", shown="TEXT")] = "",
    token: Annotated[str, Argument("Those that fire on this token, the most telling first.", shown="TOKEN")] = "",
    example: Annotated[int, Argument("Those that fire on this example, the strongest first; from 0.")] = -1,
    top: Annotated[int, Argument("How many rows.", least=1)] = 20,
) -> Result:
    """The latents of an index: how often each fires, how strongly, what it promotes, and its label."""
    from ..features.index import open_index

    opened = open_index(folder)
    if token:
        rows = opened.on_token(token, top)
    elif example >= 0:
        rows = opened.on_example(example, top)
    else:
        rows = opened.search(search, sort=sort, top=top)
    return store.plain(
        {**_facts(opened), "sort": sort, "search": search, "token": token, "example": example, "latent_rows": rows}
    )


@verb("features show", show=features_text.page, chapter="Features")
def show(
    folder: Folder,
    latent: Annotated[int, Argument("Its number.", positional=True)],
    plot: Annotated[str, Argument("Draw the page into this file, .svg or .png.", shown="FILE")] = "",
    text: Texts = NOTHING,
    network: Other = "",
    top: Annotated[int, Argument("How many of the strongest examples.", least=1)] = 12,
    context: Annotated[int, Argument("Tokens on each side.", least=0)] = 10,
    seed: Annotated[int, Argument("Of the examples drawn from equal intervals of the activation.")] = 0,
) -> Result:
    """One latent: its examples from the strongest to the weakest, what it writes and reads, and its neighbours.

    With --text, its activations on inputs of one's own.
    """
    from ..features.index import open_index

    if plot:
        store.check_file("--plot", plot)
    opened = open_index(folder)
    start = time.perf_counter()
    page = opened.page(latent, top=top, context=context, seed=seed)
    found: dict[str, Any] = {**page.to_dict(), "seconds": time.perf_counter() - start, "plot": plot, "tried": []}
    if text:
        net = _needed(opened, network)
        found["tried"] = [opened.try_on(net, [one], latent) for one in text]
    if plot:
        page.plot().save(plot)
    return store.plain(found)


@verb("features label", show=features_text.labelled, chapter="Features")
def label(
    folder: Folder,
    ends: Ends,
    tests: Tests,
    latents: Annotated[
        list[str], Argument("Their numbers; the most frequent ones by default.", positional=True, shown="LATENT")
    ] = NOTHING,
    top: Annotated[int, Argument("How many, where no numbers are given.", least=1)] = 20,
    threshold: Annotated[float, Argument("Firing: above this share of the latent's largest activation.")] = 0.25,
    network: Other = "",
    seed: Annotated[int, Argument("Of the division into training and held-out examples.")] = 0,
) -> Result:
    """Learn labels as rules from half of the examples, test them on the other half, and keep them in the index.

    A label says where its latent fires; precision and recall are those of that. Controls stand beside it.
    """
    from ..features.endpoint import Endpoint
    from ..features.index import open_index
    from ..features.labels import label as learned
    from ..features.proposals import propose
    from .progress import report

    opened = open_index(folder)
    wanted = [_number(one) for one in latents] or [row["latent"] for row in opened.search(top=top)]
    net = _needed(opened, network) if tests.hunt or tests.causal else None
    for one in wanted:
        opened.of(one)  # raises for a latent that is not there, before the work begins
    refused: dict[int, str] = {}
    if ends.endpoint:
        at = Endpoint(ends.endpoint, ends.endpoint_model, os.environ.get(KEY, ""), float(ends.endpoint_timeout))
        made: dict[int, Label] = {}
        for done, one in enumerate(wanted):
            try:
                made[one] = propose(opened, one, at, threshold=threshold, seed=seed)
            except CutawayError as error:
                if len(wanted) == 1:
                    raise
                refused[one] = str(error)
            report("asked", done + 1, len(wanted))
    else:
        made = learned(opened, wanted, threshold=threshold, seed=seed, progress=report)
    refused |= {one: "it fires on too few rows" for one in wanted if one not in made and one not in refused}
    rows = []
    for one, found in made.items():
        extra = {} if net is None or found.rule is None else _tested(net, opened, found, tests, seed)
        made[one] = extra.pop("label", found)
        rows.append({**made[one].to_dict(), **extra})
    opened.keep_labels(made)
    return store.plain({**_facts(opened), "folder": folder, "labels": rows, "refused": refused})


def _tested(net: Network, opened: LatentIndex, found: Label, tests: Tests, seed: int) -> dict[str, Any]:
    from ..features.adversary import hunt, refit
    from ..features.causal_test import causal_test

    told: dict[str, Any] = {}
    if tests.hunt:
        against = hunt(net, opened, found, seed=seed)
        found = refit(opened, found, against, seed=seed)
        told |= {"hunted": against.to_dict(), "label": found}
    if tests.causal:
        try:
            told["causal"] = causal_test(net, opened, found, seed=seed).to_dict()
        except InputError as error:
            told["causal"] = {"refused": str(error)}
    return told


def _facts(opened: LatentIndex) -> dict[str, Any]:
    facts = opened.facts
    return {
        "latents": facts["latents"], "rows": facts["rows"], "examples": facts["examples"], "sites": facts["sites"],
        "network": facts["name"], "dictionary": facts["kind_of_dictionary"], "gap": opened.gap,
    }  # fmt: skip


def _number(text: str) -> int:
    if not text.isdecimal():
        raise InputError(f"'{text}' is no number of a latent; give numbers from 0.")
    return int(text)


def _network(named: str, source: str) -> tuple[Network | None, str]:
    """(the network, what to say where there is none): the one named, else the one that the source names."""
    from .subject import open_model

    if named:
        return open_model(named), ""
    if source in ("", "module"):
        return None, "the network is not known here, so there are no words; name it with --network"
    try:
        return open_model(source), ""
    except CutawayError as error:
        return None, f"no words, for the network cannot be opened ({error}); name it with --network"


def _needed(opened: LatentIndex, named: str) -> Network:
    net, why = _network(named, str(opened.facts.get("source", "")))
    if net is None:
        raise InputError(f"This needs the network: {why}.")
    return net
