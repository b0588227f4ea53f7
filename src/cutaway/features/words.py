"""The words of a dictionary's directions: outputs that a latent promotes and suppresses, and tokens that it reads.

By linear paths alone: from the site where a latent writes to the outputs, and from the embedding to the site it reads,
with norms at scale one and passing no other component (the logit lens of nostalgebraist 2020, for directions). What a
latent does through other components is not in it; see `causal_test` for measured effects.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import CutawayError
from ..lift.frozen import Frozen, reader
from ..lift.responses import Units, arrivals, leads, plain_units
from ..run.network import Network
from ..run.trace import Trace
from .arrays import Shapes, open_arrays
from .dictionary import Dictionary

KEPT = 10  # entries kept at each end of a latent's outputs
SHORT = 2  # tokens of the recording that paths are read from
_PIECE = 1 << 24
_SIDES = ("promoted", "suppressed", "read")


@dataclass(frozen=True, eq=False)
class Words:
    """For each latent the outputs at both ends, and the tokens it reads most: ids and values, [latents, kept] each.

    Values of outputs are changes for an activation of one, less the mean over all outputs; of tokens, what their
    embedding adds to the latent before its rule. `names`: outputs and tokens by number.
    """

    ids: Mapping[str, np.ndarray]
    values: Mapping[str, np.ndarray]
    names: Mapping[str, str]

    def listed(self, latent: int, side: str, count: int = KEPT) -> list[tuple[str, float]]:
        """(word, value) of a latent on one side: promoted, suppressed or read; none where no linear path leads.

        Only outputs that it raises are promoted and only those that it lowers suppressed: of few outputs, the ends of
        the list would share some.
        """
        if side not in self.ids:
            return []
        kind = "token" if side == "read" else "output"
        pairs = zip(self.ids[side][latent][:count].tolist(), self.values[side][latent][:count].tolist(), strict=True)
        sign = -1 if side == "suppressed" else 1
        return [
            (readable(self.names.get(f"{kind} {number}", f"{kind} {number}")), value)
            for number, value in pairs if sign * value > 0
        ]  # fmt: skip

    def promoted(self, latent: int, count: int = KEPT) -> list[str]:
        """The words of the outputs that a latent promotes most."""
        return [word for word, _ in self.listed(latent, "promoted", count)]

    def shapes(self) -> Shapes:
        """The arrays to keep."""
        found: dict[str, tuple[str, tuple[int, ...]]] = {}
        for side in self.ids:
            found |= {
                f"{side} ids": ("int32", self.ids[side].shape),
                f"{side} values": ("float32", self.ids[side].shape),
            }
        return found

    def into(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Write the arrays."""
        for side in self.ids:
            arrays[f"{side} ids"][:], arrays[f"{side} values"][:] = self.ids[side], self.values[side]

    def facts(self) -> dict[str, Any]:
        """What to keep besides the arrays."""
        return {"sides": list(self.ids), "names": dict(self.names)}

    @staticmethod
    def read(path: Path, facts: Mapping[str, Any], latents: int) -> Words:
        """The words that a file holds. Raises FormatError when it is damaged."""
        shapes: dict[str, tuple[str, tuple[int, ...]]] = {}
        for side in facts["sides"]:
            shapes |= {f"{side} ids": ("int32", (latents, -1)), f"{side} values": ("float32", (latents, -1))}
        arrays = open_arrays(path, shapes)
        sides = facts["sides"]
        return Words({s: arrays[f"{s} ids"] for s in sides}, {s: arrays[f"{s} values"] for s in sides}, facts["names"])


def words_of(dictionary: Dictionary, net: Network, example: Tensor) -> Words | None:
    """The words of all latents; None where no linear path leads from or to any word, as in networks without one."""
    short = example[:SHORT] if example.ndim == 1 and not example.is_floating_point() else example
    try:
        trace = net.record(short[None])
        paths = _Paths.of(trace)
        ends = {"promoted": _outputs(paths, dictionary), "read": _tokens(paths, dictionary)}
    except CutawayError:  # a network that cannot be lifted has no known paths; an index serves it all the same
        return None
    ids: dict[str, np.ndarray] = {}
    values: dict[str, np.ndarray] = {}
    for side, table in ends.items():
        if table is None:
            continue
        rows, directions = table
        found = _extremes(rows, directions, centred=side == "promoted")
        for name, (numbers, scores) in zip((side, "suppressed"), found, strict=False):
            if name == side or side == "promoted":
                ids[name], values[name] = numbers, scores
    names: dict[str, str] = {}
    for side, numbers in ids.items():
        kind = "token" if side == "read" else "output"
        called = kind == "token" or trace.logits.shape[-1] == _vocabulary(paths)
        for number in np.unique(numbers).tolist():
            names[f"{kind} {number}"] = _word(net, number) if called else f"{kind} {number}"
    return Words(ids, values, names) if ids else None


@dataclass(frozen=True, eq=False)
class _Paths:
    trace: Trace
    frozen: Frozen

    @staticmethod
    def of(trace: Trace) -> _Paths:
        lifted = trace.lift()
        blocks = [*lifted.sources, *lifted.constants, *lifted.blocks, lifted.output]
        return _Paths(trace, Frozen(lifted.flow, blocks, reader(lifted.flow, trace), unit=True))

    def units(self, site: str, axis: str) -> Units | None:
        """The units of a site's value; None where the site is no plain value of the run, or its axis another one."""
        found = self.trace.locate(site)
        if found.derive is not None or "//" in found.address:
            return None
        units = plain_units(self.frozen.flow, self.trace.lift().tape.graph.find(found.address)[0])
        named = found.axes[units.axes[0]] if len(found.axes) == len(units.shape) else ""
        return None if axis and named != axis else units


def _outputs(paths: _Paths, dictionary: Dictionary) -> tuple[Tensor, Tensor] | None:
    """([outputs, d], [latents, d]): what a one in each coordinate of the written value adds to the outputs."""
    end = plain_units(paths.frozen.flow, paths.trace.lift().output.reads[0].value)
    tables: list[Tensor] = []
    for place in dictionary.card.writes:
        start = paths.units(place.site, place.axis)
        fits = start is not None and start.shape[start.axes[0]] == place.width
        if start is None or not fits or not leads(paths.frozen, start.value, end.value):
            return None
        tables.append(arrivals(paths.frozen, start, start.impulses(-1, None), [end])[0].flatten(1).float())
    return (torch.cat(tables).mT, dictionary.decoder.float()) if tables else None


def _tokens(paths: _Paths, dictionary: Dictionary) -> tuple[Tensor, Tensor] | None:
    """([tokens, d], [latents, d]): the embedding's rows, and the latents' directions carried back to it."""
    lifted = paths.trace.lift()
    source = next((block for block in lifted.sources if block.kind == "embedding" and block.name == "embed"), None)
    table = None if source is None else _table(paths, source.write)
    if source is None or table is None or len(dictionary.card.reads) != 1:
        return None
    place = dictionary.card.reads[0]
    start, end = plain_units(paths.frozen.flow, source.write), paths.units(place.site, place.axis)
    if end is None or end.shape[end.axes[0]] != place.width or not leads(paths.frozen, start.value, end.value):
        return None
    between = arrivals(paths.frozen, start, start.impulses(-1, None), [end])[0].flatten(1).float()
    return table, dictionary.weights["encoder"].float() @ between.mT


def _table(paths: _Paths, write: int) -> Tensor | None:
    """[tokens, d]: the parameter whose rows an embedding looks up."""
    flow = paths.frozen.flow
    maker = flow.maker(write)
    for value in () if maker is None else maker.inputs:
        shape = flow.shape(value)
        if (
            flow.graph.values[value].kind in ("param", "buffer")
            and len(shape) == 2
            and shape[-1] == flow.shape(write)[-1]
        ):
            return flow.tape.leaves[value].detach().float()
    return None


def _vocabulary(paths: _Paths) -> int:
    """How many tokens the network reads; 0 without an embedding or a tokenizer."""
    source = next((block for block in paths.trace.lift().sources if block.name == "embed"), None)
    table = None if source is None or paths.trace.net.tokenizer is None else _table(paths, source.write)
    return 0 if table is None else len(table)


def _extremes(
    rows: Float[Tensor, "words d"], directions: Float[Tensor, "latents d"], *, centred: bool
) -> list[tuple[np.ndarray, np.ndarray]]:
    """For both ends, ids and values [latents, kept]; values less their mean over words where `centred`."""
    count = min(KEPT, len(rows))
    step = max(1, _PIECE // max(len(rows), 1))
    found: list[list[Tensor]] = [[], [], [], []]
    for part in directions.split(step):
        scores = part @ rows.mT
        scores = scores - scores.mean(1, keepdim=True) if centred else scores
        for place, largest in ((0, True), (2, False)):
            best = scores.topk(count, 1, largest=largest)
            found[place].append(best.indices)
            found[place + 1].append(best.values)
    ids, top, low_ids, low = (torch.cat(column).cpu().numpy() for column in found)
    return [(ids.astype(np.int32), top), (low_ids.astype(np.int32), low)]


def readable(token: str) -> str:
    """A token; one that stands for a byte of ASCII, such as <0x0A>, as that character."""
    found = re.fullmatch("<0x([0-7][0-9A-Fa-f])>", token)
    return chr(int(found[1], 16)) if found else token


def _word(net: Network, number: int) -> str:
    try:
        return net.token_text(number)
    except (IndexError, KeyError, OverflowError, TypeError, ValueError):  # rows beyond the tokenizer's words
        return f"token {number}"
