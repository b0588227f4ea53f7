"""An index on disk: which latents fire on which rows, and on which rows a latent fires, strongest first.

Entries are kept twice, by row and by latent in order of activation, in one safetensors file that is read through memory
maps, so a question touches only what it asks for. Values are in half precision as multiples of their latent's largest,
which is exact; the order is that of single precision. The inputs, the dictionary and the words of its directions lie
beside it, so an index answers without the network. Labels are a JSON file of their own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import torch

from ..errors import CutawayError, FormatError, InputError, ResourceError
from ..formats import open_checkpoint
from ..formats.writing import write_whole
from ..run.network import Network
from . import searching
from .arrays import new_arrays, open_arrays
from .dictionary import Dictionary, concatenated
from .files import save_dictionary
from .index_build import Progress, fill, put_in_place, scratch_folder, shapes
from .opening import load_dictionary
from .seen import Collected, Seen, Watched, inputs_again, watch
from .store import Activations
from .words import Words, readable, words_of

if TYPE_CHECKING:
    from .labels import Label
    from .looking import Page

SCHEMA, VERSION = "cutaway.latents", 1
_MOST_NAMES = 1 << 18


def build_index(
    dictionary: Dictionary,
    source: Seen | Activations,
    folder: str | Path,
    *,
    classes: tuple[Sequence[int], Sequence[str]] | None = None,
    net: Network | None = None,
    inputs: Any = None,
    progress: Progress = lambda stage, done, of: None,
) -> LatentIndex:
    """Index what a dictionary's latents do on examples: `watch(net, inputs)`, or collected activations.

    `classes`: the class of each example, and the classes' names. `net`: the network, for the words of tokens and of
    directions; that of `watch` where it is not given. `inputs`: the data that were collected, where they were not kept
    with the activations (known by their hash). An index that is already at `folder` is replaced once the new one is
    whole. Raises InputError for rows or inputs that cannot be used, ResourceError when the disk is full.
    """
    if inputs is not None and not isinstance(source, Activations):
        raise InputError("inputs= is for collected activations; `watch` has its inputs already.")
    again = inputs_again(source, inputs, net) if isinstance(source, Activations) and inputs is not None else None
    seen: Seen = Collected(source, again) if isinstance(source, Activations) else source
    folder, net = Path(folder), net if net is not None else seen.net if isinstance(seen, Watched) else None
    if folder.exists() and not (folder / "manifest.json").exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"'{folder}' holds something else than an index; give a folder of its own.")
    if not dictionary.card.reads:
        raise InputError("This dictionary's card names no site that it reads, so nothing can be encoded; set its card.")
    if classes is not None and len(classes[0]) != len(seen.examples):
        raise InputError(f"{len(classes[0])} classes were given for {len(seen.examples)} examples; give one for each.")
    if net is not None and any(place.network not in ("", net.fingerprint) for place in dictionary.card.reads):
        raise InputError(f"This dictionary was made for another network than '{net.name}'; open that one.")
    made = scratch_folder(folder)
    facts = fill(made, dictionary, seen, progress)
    save_dictionary(dictionary, made / "dictionary.safetensors")
    words = words_of(dictionary, net, seen.examples[0]) if net is not None else None
    if words is not None:
        arrays = new_arrays(made / "words.safetensors", words.shapes())
        words.into(arrays)
    facts |= {
        "schema": SCHEMA, "version": VERSION, "sites": [place.site for place in dictionary.card.reads],
        "kind_of_dictionary": dictionary.kind, "hash": _hash(made / "dictionary.safetensors"),
        "network": "" if net is None else net.fingerprint, "name": dictionary.card.network if net is None else net.name,
        "source": "" if net is None else net.source, "data": seen.manifest,
        "vocabulary": _vocabulary(net, seen, facts["kind"]), "gap": _gap(net, seen, facts["kind"]),
        "classes": None if classes is None else [int(one) for one in classes[0]],
        "class_names": [] if classes is None else list(classes[1]),
        "words": None if words is None else words.facts(),
    }  # fmt: skip
    write_whole(made / "manifest.json", msgspec.json.encode(facts))
    put_in_place(made, folder)
    return open_index(folder)


def open_index(folder: str | Path) -> LatentIndex:
    """Open an index; only headers and the manifest are read. Raises FormatError for what is none or is damaged."""
    folder = Path(folder)
    manifest = folder / "manifest.json"
    try:
        facts = msgspec.json.decode(manifest.read_bytes())
        if facts["schema"] != SCHEMA:
            raise FormatError(f"'{folder}' is no index of latents.")
        if facts["version"] > VERSION:
            raise FormatError(f"'{folder}' was made by a later Cutaway; update Cutaway to read it.")
        rows, latents, entries, axes = (int(facts[name]) for name in ("rows", "latents", "entries", "axes"))
    except OSError as error:
        raise FormatError(f"'{folder}' is no index of latents: {error.strerror} ({manifest.name}).") from error
    except (KeyError, TypeError, ValueError, msgspec.MsgspecError) as error:
        raise FormatError(f"The manifest in '{folder}' is damaged ({error}); build the index again.") from error
    arrays = open_arrays(folder / "index.safetensors", shapes(rows, latents, entries, axes))
    return LatentIndex(folder, facts, arrays)


@dataclass(frozen=True, eq=False)
class LatentIndex:
    """An opened index. `facts` is its manifest, `arrays` the memory maps."""

    folder: Path
    facts: dict[str, Any]
    arrays: Mapping[str, np.ndarray]

    def __repr__(self) -> str:
        facts = self.facts
        return (
            f"LatentIndex({facts['latents']:,} latents of {', '.join(facts['sites'])}, {facts['rows']:,} rows of "
            f"{facts['examples']:,} examples, {facts['entries']:,} entries)"
        )

    def __len__(self) -> int:
        return int(self.facts["latents"])

    # ---- what there is

    @cached_property
    def dictionary(self) -> Dictionary:
        """The dictionary that the index was made with."""
        found = load_dictionary(self.folder / "dictionary.safetensors")
        if found.latents != len(self):
            raise FormatError(f"The dictionary in '{self.folder}' is another one; build the index again.")
        return found

    @cached_property
    def _examples(self) -> Mapping[str, np.ndarray]:
        text = self.facts["kind"] == "text"
        path = self.folder / "examples.safetensors"
        starts = open_arrays(path, {"input_starts": ("int64", (self.facts["examples"] + 1,))})
        dtype = "int32" if text else None
        checkpoint = open_checkpoint(path)
        inputs = np.asarray(checkpoint.read("inputs"))
        if dtype and str(inputs.dtype) != dtype:
            raise FormatError(f"The examples in '{self.folder}' are damaged; build the index again.")
        return {**starts, "inputs": inputs}

    @cached_property
    def words(self) -> Words | None:
        """The words of the decoder's directions, where the network was at hand."""
        facts = self.facts.get("words")
        return None if facts is None else Words.read(self.folder / "words.safetensors", facts, len(self))

    def example(self, number: int) -> np.ndarray:
        """Input number `number`: token ids [pos], or numbers. Raises InputError when there is none."""
        if not 0 <= number < self.facts["examples"]:
            raise InputError(f"There is no example {number}; there are {self.facts['examples']:,}, from 0.")
        starts = self._examples["input_starts"]
        return np.array(self._examples["inputs"][starts[number] : starts[number + 1]])

    def token_text(self, token: int) -> str:
        """A token as text, or its number."""
        names = self.facts["vocabulary"]
        return names[token] if names and 0 <= token < len(names) and names[token] is not None else str(token)

    @cached_property
    def gap(self) -> str:
        """What stands between two tokens of a text: nothing, or a space where tokens are whole words."""
        told, names = self.facts.get("gap"), [name for name in self.facts["vocabulary"] or () if name]
        if told is not None:
            return str(told)
        pieces = any(name[:1].isspace() or name[-1:].isspace() for name in names) or all(len(n) == 1 for n in names)
        return "" if names and pieces else " "

    @cached_property
    def tokens(self) -> np.ndarray:
        """[rows]: the token at each row, -1 where rows are no positions of a text."""
        if self.facts["kind"] != "text" or self.facts["axes"] != 1:
            return np.full(self.facts["rows"], -1, np.int32)
        starts = self._examples["input_starts"]
        found: np.ndarray = self._examples["inputs"][starts[self.arrays["example"]] + self.arrays["position"][:, 0]]
        return found

    @cached_property
    def token_counts(self) -> np.ndarray:
        """[tokens]: how often each token occurs."""
        return np.bincount(self.tokens[self.tokens >= 0], minlength=1)

    @cached_property
    def directions(self) -> np.ndarray:
        """[latents, d]: the decoder's directions, of length one."""
        rows = self.dictionary.decoder.float().numpy()
        found: np.ndarray = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30)
        return found

    @cached_property
    def example_rows(self) -> np.ndarray:
        """[examples + 1]: the first row of each example."""
        return np.searchsorted(self.arrays["example"], np.arange(self.facts["examples"] + 1)).astype(np.int64)

    @cached_property
    def fired(self) -> np.ndarray:
        """[latents]: on how many rows each fires."""
        return np.diff(self.arrays["starts"])

    @cached_property
    def largest(self) -> np.ndarray:
        """[latents]: the largest activation; 0 for one that never fires."""
        starts = self.arrays["starts"]
        first = np.minimum(starts[:-1], max(self.facts["entries"] - 1, 0))
        if not self.facts["entries"]:
            return np.zeros(len(self), np.float32)
        top = self.arrays["sorted_values"][first].astype(np.float32) * self.arrays["scales"]
        return np.where(self.fired > 0, top, 0.0).astype(np.float32)

    # ---- one latent, one row

    def of(self, latent: int) -> tuple[np.ndarray, np.ndarray]:
        """(rows, activations) of a latent, the strongest first. Raises InputError when there is no such latent."""
        if not 0 <= latent < len(self):
            raise InputError(f"There is no latent {latent}; there are {len(self):,}, from 0.")
        low, high = (int(self.arrays["starts"][place]) for place in (latent, latent + 1))
        values = self.arrays["sorted_values"][low:high].astype(np.float32) * self.arrays["scales"][latent]
        return self.arrays["sorted_rows"][low:high], values

    def at(self, latent: int, begin: int, end: int) -> np.ndarray:
        """[end - begin]: a latent's activation on each of some rows that follow one another."""
        offsets = self.arrays["offsets"][begin : end + 1]
        low, high = int(offsets[0]), int(offsets[-1])
        hits = np.flatnonzero(self.arrays["latents"][low:high] == latent) + low
        found = np.zeros(end - begin, np.float32)
        rows = np.searchsorted(offsets, hits, side="right") - 1
        found[rows] = self.arrays["values"][hits].astype(np.float32) * self.arrays["scales"][latent]
        return found

    def row(self, row: int) -> list[tuple[int, float]]:
        """The latents that fire on a row with their activations, the strongest first."""
        low, high = (int(self.arrays["offsets"][place]) for place in (row, row + 1))
        latents = self.arrays["latents"][low:high]
        values = self.arrays["values"][low:high].astype(np.float32) * self.arrays["scales"][latents]
        order = np.argsort(-np.abs(values), kind="stable")
        return [(int(latents[place]), float(values[place])) for place in order]

    def page(self, latent: int, **options: Any) -> Page:
        """All there is to see of a latent (see `looking.make_page`)."""
        from .looking import make_page

        return make_page(self, latent, **options)

    # ---- all latents

    def search(self, text: str = "", **options: Any) -> list[dict[str, Any]]:
        """A table of latents (see `searching.search`)."""
        return searching.search(self, text, **options)

    def on_token(self, token: str | int, top: int = 20) -> list[dict[str, Any]]:
        """The latents that fire on a token (see `searching.on_token`); a newline may be given as it is shown."""
        known = self.facts["vocabulary"] or []
        if token in ("\n", "↵") and token not in known:
            token = next((name for name in known if name and readable(name) == "\n"), token)
        return searching.on_token(self, token, top)

    def on_example(self, number: int, top: int = 20) -> list[dict[str, Any]]:
        """The latents that fire on an example (see `searching.on_example`)."""
        return searching.on_example(self, number, top)

    def try_on(self, net: Network, inputs: Any, latent: int | None = None) -> dict[str, Any]:
        """Run an input of one's own: {"tokens": […] or None, "activations": [rows][latents] of what fired, strongest
        first; or, of one latent, [rows]}. Raises InputError for a network other than the index's."""
        if self.facts["network"] and net.fingerprint != self.facts["network"]:
            raise InputError(f"The index was made with another network than '{net.name}'; open that one.")
        seen = watch(net, inputs)
        found = []
        for part in seen.parts(self.facts["sites"]):
            with torch.no_grad():
                found.append(self.dictionary.codes(concatenated(part.values, tuple(self.facts["sites"])).float()))
        first = seen.examples[0]
        tokens = [readable(net.token_text(int(one))) for one in first] if self.facts["kind"] == "text" else None
        table = [_fired(codes, row) for codes in found for row in range(len(codes))]
        activations: Any = table if latent is None else [dict(row).get(latent, 0.0) for row in table]
        return {"tokens": tokens, "activations": activations}

    # ---- labels

    @cached_property
    def labels(self) -> dict[int, Label]:
        """The labels that were kept, by latent. Raises FormatError when their file is damaged."""
        from .labels import Label

        path = self.folder / "labels.json"
        if not path.exists():
            return {}
        try:
            told = msgspec.json.decode(path.read_bytes())
            known = self.facts["vocabulary"] or (), self.facts["class_names"]
            return {int(key): Label.from_dict(data, *known) for key, data in told.items()}
        except (OSError, KeyError, TypeError, ValueError, AttributeError, msgspec.MsgspecError, CutawayError) as error:
            raise FormatError(f"The labels in '{path}' are damaged ({error}); remove the file.") from error

    def keep_labels(self, labels: Mapping[int, Label]) -> None:
        """Keep labels beside those that are there. Raises ResourceError when they cannot be written."""
        self.labels.update(labels)
        told = {str(key): label.to_dict() for key, label in sorted(self.labels.items())}
        write_whole(self.folder / "labels.json", msgspec.json.encode(told))


def _fired(codes: Any, row: int) -> list[tuple[int, float]]:
    low, high = int(codes.offsets[row]), int(codes.offsets[row + 1])
    pairs = zip(codes.latents[low:high].tolist(), codes.values[low:high].tolist(), strict=True)
    return sorted(pairs, key=lambda pair: -abs(pair[1]))


def _vocabulary(net: Network | None, seen: Seen, kind: str) -> list[str | None] | None:
    """The text of every token up to the largest that occurs; None where inputs are no texts."""
    if kind != "text" or net is None or net.tokenizer is None:
        return None
    most = max(int(item.max()) for item in seen.examples if len(item))
    if most >= _MOST_NAMES:
        raise ResourceError(f"The examples hold token {most:,}; an index names at most {_MOST_NAMES:,}.")
    occurring = np.zeros(most + 1, bool)
    for item in seen.examples:
        occurring[item.numpy()] = True
    return [net.token_text(token) if there else None for token, there in enumerate(occurring)]


def _gap(net: Network | None, seen: Seen, kind: str) -> str | None:
    """What the tokenizer puts between tokens: nothing, or a space; None where inputs are no texts."""
    if kind != "text" or net is None or net.tokenizer is None:
        return None
    ids = next((item[:64].tolist() for item in seen.examples if len(item) > 1), [])
    spaces = net.tokenizer.decode(ids).count(" ") - sum(net.token_text(token).count(" ") for token in ids)
    return " " if 2 * spaces >= len(ids) - 1 > 0 else ""


def _hash(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    except OSError as error:
        raise ResourceError(f"'{path}' cannot be read again: {error.strerror or error}.") from error
