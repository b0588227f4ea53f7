"""Sites: the addresses of values.

A site is a name and, optionally, indices on named axes:

    L3.attn.z[head=6, pos=-1]                    a lifted name: the same for every architecture
    resid.2[latent=12]  resid.2.f12              a latent of a dictionary that is attached there
    transformer.h.3.attn/softmax.0               a raw name: module path, op, how many of that op came before
    cell@4/lstm_cell.0:1                         fifth call of a module, second output of the op
    transformer.h.3.attn/scaled_dot_product_attention.0//softmax.0     inside a fused op that was opened
    transformer.h.3                              the output of a module, after its exit
    input:0    param:lm_head.weight              the leaves of a run

Sites parse, print, sort, hash and store; they know nothing of any network.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass

from .errors import SiteError

Index = int | slice | tuple[int, ...]

_SITE = re.compile(r"^(?P<name>[^\[\]\s]+)(?:\[(?P<index>[^\[\]]*)\])?$")
_HEAD = re.compile(r"^(?P<block>L\d+\.x?attn)\.h(?P<head>\d+)(?P<rest>\..+)?$")
_UNIT = re.compile(
    r"^(?P<block>L\d+\.(?:mlp|conv|rnn|cell|act)(?:@\d+)?)\.(?P<axis>[ncu])(?P<unit>\d+)(?P<rest>\..+)?$"
)
_UNIT_AXIS = {"n": "neuron", "c": "channel", "u": "state"}
_LATENT = re.compile(r"^(?P<place>(?:resid\.\d+|(?:pos_)?embed\d*|input\d*|L\d+\.[^/\s]+?))\.f(?P<latent>\d+)$")


@dataclass(frozen=True, order=True)
class Site:
    """The address of a value, or of a part of one: `name` and `(axis, index)` pairs sorted by axis."""

    name: str
    index: tuple[tuple[str, str], ...] = ()

    @staticmethod
    def parse(text: str | Site) -> Site:
        """Read a site from text; raises SiteError when it is not well formed."""
        if isinstance(text, Site):
            return text
        if not isinstance(text, str):
            raise SiteError(f"A site is text such as 'L3.attn.z[head=6]', and got a {type(text).__name__}.")
        match = _SITE.match(text.strip())
        if match is None:
            raise SiteError(f"'{text}' is not a site; write a name and indices, as in 'L3.attn.z[head=6, pos=-1]'.")
        index: dict[str, str] = {}
        for item in filter(None, (part.strip() for part in (match["index"] or "").split(","))):
            axis, equals, value = item.partition("=")
            if not equals or not axis.strip():
                raise SiteError(f"'{item}' in '{text}' is not an index; write axis=number, axis=from:to or axis=1|4|7.")
            _set(index, axis.strip(), _canonical(value), text)
        name = match["name"]
        if found := _HEAD.match(name):
            _set(index, "head", _canonical(found["head"]), text)
            name = found["block"] + (found["rest"] or ".z")
        elif found := _UNIT.match(name):
            _set(index, _UNIT_AXIS[found["axis"]], _canonical(found["unit"]), text)
            name = found["block"] + (found["rest"] or ".out")
        elif found := _LATENT.match(name):
            _set(index, "latent", _canonical(found["latent"]), text)
            name = found["place"]
        return Site(name, tuple(sorted(index.items())))

    def __str__(self) -> str:
        inside = ", ".join(f"{axis}={value}" for axis, value in self.index)
        return f"{self.name}[{inside}]" if inside else self.name

    def at(self, **index: int | str) -> Site:
        """The same site with further indices, as in `site.at(head=6)`."""
        merged = dict(self.index) | {axis: _canonical(str(value)) for axis, value in index.items()}
        return Site(self.name, tuple(sorted(merged.items())))


def _set(index: dict[str, str], axis: str, value: str, text: str) -> None:
    if index.setdefault(axis, value) != value:
        raise SiteError(f"'{text}' gives the axis '{axis}' twice, as {index[axis]} and as {value}; give it once.")


def _canonical(text: str) -> str:
    """One spelling for each index, so that equal sites are equal."""
    index = read_index(text)
    if isinstance(index, slice):
        return ":".join("" if end is None else str(end) for end in (index.start, index.stop))
    return "|".join(map(str, index)) if isinstance(index, tuple) else str(index)


def read_index(text: str) -> Index:
    """`3`, `-1`, `2:5`, `:4` or `1|4|7` as an int, a slice or a tuple; raises SiteError otherwise."""
    text = text.strip()
    try:
        if "|" in text:
            return tuple(int(part) for part in text.split("|"))
        if ":" in text:
            low, high = text.split(":")
            return slice(int(low) if low.strip() else None, int(high) if high.strip() else None)
        return int(text)
    except ValueError:
        raise SiteError(f"'{text}' is not an index; write a number, from:to, or numbers joined by '|'.") from None


def unknown(name: str, known: Iterable[str]) -> SiteError:
    """The error for a name that matches nothing, with the nearest names that do."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    near += [other for other in names if name in other and other not in near][: 3 - len(near)]
    hint = f"Near it: {', '.join(near)}." if near else "`trace.listing()` shows the raw sites, `trace.lift()` the rest."
    return SiteError(f"No site '{name}' in this run. {hint}")
