"""What a verb works on: the network that was named, and inputs for it. Imports torch; verbs import it when they run."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import organisms
from ..attribution.metric import Metric, at_position, logit_difference, output_distance
from ..errors import InputError, ModelError
from ..features.attach import attach
from ..features.data import data_of
from ..features.opening import load_dictionary
from ..lift import lift
from ..run.network import Network
from ..run.opening import open_network, organism_named
from ..run.trace import Trace
from .verb import near

if TYPE_CHECKING:
    from ..features.store import Activations

HELD_OUT_SEED = 7919  # added to a seed, so that the pairs of a test are not those of the search
FEW = 4
OWN = 1024  # inputs of an organism's own that are collected where nothing else is asked for
SMALL = 5_000_000  # parameters
MOST_LATENTS = 100  # of a dictionary that are nodes of a circuit, unless Python is told otherwise
HELD_OUT_FROM = 8  # with so many pairs of one's own, every second one is kept for the test


@dataclass(frozen=True)
class Examples:
    """Clean and corrupted inputs with the two answers between which the behaviour decides, one each or one for all."""

    clean: Any
    corrupted: Any
    correct: Any
    wrong: Any
    position: int = -1

    def __len__(self) -> int:
        return len(self.clean)

    def metric(self, clean: Trace) -> Metric:
        """How far the correct answer is ahead of the wrong one, or how near the whole output is to the clean run's."""
        if self.correct is None:
            return output_distance(clean)
        return logit_difference(self.correct, self.wrong, position=self.position, labels=True)

    def rows(self, chosen: Sequence[int]) -> Examples:
        """Some of the examples."""
        clean, corrupted, correct, wrong = (
            _rows(part, chosen) for part in (self.clean, self.corrupted, self.correct, self.wrong)
        )
        return Examples(clean, corrupted, correct, wrong, self.position)


def _rows(part: Any, chosen: Sequence[int]) -> Any:
    if part is None or not isinstance(part, Tensor):
        return part and [part[row] for row in chosen]
    return part[torch.tensor(chosen, dtype=torch.long)]


@contextmanager
def suited_threads(net: Network) -> Iterator[None]:
    """One thread inside the block for a small network: its ops are too short to share, and waiting cores cost time."""
    before = torch.get_num_threads()
    if sum(parameter.numel() for parameter in net.module.parameters()) < SMALL:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def open_model(model: str, dictionaries: Sequence[str] = ()) -> Network:
    """The network that a word on the command line, or a claim's source, names, with dictionaries attached.

    Each of these is a file or folder, with `@SITE` behind it where it is to be put elsewhere than where it was made.
    """
    for mark in ("organism:", "folder:", "file:", "hub:"):
        model = model.removeprefix(mark)
    if model in ("module", ""):
        raise ModelError(
            "The claim is about a module made in Python, which only Python can open; use cutaway.verify there."
        )
    if "/" not in model and not Path(model).exists() and not organisms.is_name(model):
        # A hub would be asked next, which takes long where there is no connection; a slip of the pen needs no hub.
        if difflib.get_close_matches(model, organisms.names(), n=1, cutoff=0.75):
            raise ModelError(f"No organism, folder or model is called '{model}'{near(model, organisms.names())}")
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # its retries are told by the final error
    net = open_network(model, lifter=lift)
    net.attacher = attach
    return attached(net, dictionaries)


def attached(net: Network, dictionaries: Sequence[str], active: Sequence[Trace] = ()) -> Network:
    """A network with dictionaries from files; in circuits those latents are told apart that differ most in two runs."""
    for text in dictionaries:
        path, mark, site = text, "", ""
        if not Path(text).exists():
            path, mark, site = text.rpartition("@")
        dictionary = load_dictionary(path if mark else text)
        net = attach(net, dictionary, site or None, active=active or None, most=MOST_LATENTS)
    return net


def organism_of(net: Network) -> organisms.Organism | None:
    """The organism a network is, or None."""
    kind, _, name = net.source.partition(":")
    return organisms.load(name) if kind == "organism" else None


def behaving(name: str) -> organisms.Organism:
    """The organism `name`. Raises InputError when there is none, or when it shows no behaviour to explain."""
    if not organisms.is_name(name):
        raise InputError(f"No organism is called '{name}'{near(name, organisms.names())}")
    organism = organism_named(name)
    if organism.behaviour is None:
        others = ", ".join(other for other in organisms.names() if organisms.load(other).behaviour)
        raise InputError(f"'{name}' decides nothing, so there is no behaviour to explain; choose {others}.")
    return organism


def drawn(organism: organisms.Organism, count: int, seed: int) -> Examples:
    """`count` pairs of an organism's behaviour."""
    pairs = organism.pairs(count, seed)
    position = -1 if pairs.position is None else pairs.position
    return Examples(pairs.clean, pairs.corrupted, pairs.correct, pairs.wrong, position)


def held_out(organism: organisms.Organism, seen: Examples, count: int, seed: int) -> Examples:
    """`count` fresh pairs whose clean inputs are none of those in `seen`; fewer where the organism has no more."""
    known = {tuple(row.flatten().tolist()) for row in seen.clean}
    fresh = drawn(organism, 2 * count, seed + HELD_OUT_SEED)
    rows = [place for place, row in enumerate(fresh.clean) if tuple(row.flatten().tolist()) not in known][:count]
    if not rows:
        raise InputError(f"All inputs of '{organism.name}' are among the {len(seen)} pairs of the search; take fewer.")
    return fresh.rows(rows)


def runs(net: Network, examples: Examples) -> tuple[Trace, Trace]:
    """Both runs of the examples, recorded."""
    return net.record(examples.clean), net.record(examples.corrupted)


def inputs_of(net: Network, texts: Sequence[str]) -> Any:
    """The texts, or a few inputs of an organism when there are none. Raises InputError for neither."""
    if texts:
        return list(texts)
    if organism_of(net) is None:
        raise InputError(f"Nothing to run '{net.name}' on; give --text, several times for a batch.")
    return own_inputs(net, FEW)


def own_inputs(net: Network, count: int) -> Any:
    """`count` inputs of an organism's own. Raises InputError for a network that is none."""
    organism = organism_of(net)
    if organism is None:
        raise InputError(f"Nothing to run '{net.name}' on; give a file of --texts or --inputs.")
    return drawn(organism, count, 0).clean if organism.behaviour is not None else _any_input(organism, count)


def inputs_again(net: Network | None, rows: Activations, texts: str, inputs: str) -> Any:
    """What rows were collected from: the file named, or an organism's own inputs, made again; None where inputs were
    kept with the rows. A file is checked where it is read. Raises InputError where inputs are not to be had."""
    if texts and inputs:
        raise InputError("Both --texts and --inputs are given; give the one that was collected.")
    if texts or inputs:
        return Path(texts or inputs)
    manifest = rows.manifest
    if manifest["inputs"]:
        return None
    if net is not None and organism_of(net) is not None:
        for count in dict.fromkeys((len(rows.examples), OWN)):  # the latter of a collection with a limit
            made = own_inputs(net, count)
            if data_of(net, made, limit=manifest["limit"]).hash == manifest["hash"]:
                return made
    raise InputError(
        f"'{rows.folder}' was collected without its inputs, which are larger than its values; give the data that were "
        "collected: --inputs FILE (.npy, .npz or .safetensors), or --texts FILE."
    )


def _any_input(organism: organisms.Organism, count: int) -> Tensor:
    """Features that are mostly absent, for an organism that is only asked to reproduce them."""
    width = next(iter(organism.module.parameters())).shape[-1]
    generator = torch.Generator().manual_seed(0)
    present = torch.rand(count, width, generator=generator) < 0.2
    return torch.rand(count, width, generator=generator) * present


def in_words(net: Network, inputs: Any) -> list[list[str] | None]:
    """The tokens of each input as text; None where inputs are no tokens."""
    if isinstance(inputs, Tensor):
        readable = net.tokenizer is not None and not inputs.is_floating_point() and inputs.ndim == 2
        return [[net.token_text(int(token)) for token in row] if readable else None for row in inputs]
    return [net.tokens(text) for text in inputs]


def answer_names(net: Network) -> list[str] | None:
    """What the outputs of an organism are called, where they are no tokens."""
    organism = organism_of(net)
    outputs = organism.truth.figures.get("outputs") if organism is not None and organism.truth is not None else None
    return list(outputs) if outputs else None


def answer_text(net: Network, answer: Any, names: list[str] | None) -> str:
    """An answer as a person says it."""
    if isinstance(answer, str):
        return answer
    place = int(answer)
    if names is not None and place < len(names):
        return names[place]
    return net.token_text(place)


def outputs_text(net: Network, inputs: Any, names: list[str] | None) -> list[str]:
    """The whole output on each input: at every position the strongest answer ('.' where none is), or the number."""
    said = []
    for row in net.record(inputs).logits.detach():
        if row.shape[-1] == 1:
            said.append(" ".join(f"{float(number):.3g}" for number in row[:, 0]))
        else:
            best = [(float(scores.max()), int(scores.argmax())) for scores in row]
            said.append(" ".join(answer_text(net, place, names) if most > 0 else "." for most, place in best))
    return said


def top(net: Network, output: Tensor, count: int = 5, position: int = -1) -> list[list[dict[str, Any]]]:
    """The largest outputs of each example with their probabilities, at a position where there are positions."""
    names = answer_names(net)
    rows = at_position(output, position).softmax(-1)
    values, places = rows.topk(min(count, rows.shape[-1]), -1)
    return [
        [
            {"token": answer_text(net, place, names), "id": int(place), "probability": float(value)}
            for value, place in zip(*pair, strict=True)
        ]
        for pair in zip(values, places, strict=True)
    ]


def facts(net: Network) -> dict[str, Any]:
    """What a project keeps about a network."""
    parameters = sum(parameter.numel() for parameter in net.module.parameters())
    found: dict[str, Any] = {
        "name": net.name, "class": type(net.module).__name__, "parameters": parameters,
        "fingerprint": net.fingerprint, "source": net.source,
    }  # fmt: skip
    if net.attachments:
        found["dictionaries"] = [
            {"name": what.name, "latents": what.count, "told_apart": len(what.latents), "is": repr(what.basis)}
            for what in net.attachments
        ]
        found["notes"] = list(net.notes)
    organism = organism_of(net)
    return found | ({"description": organism.description} if organism is not None else {})
