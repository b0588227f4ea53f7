"""Numbers that shapes leave open, such as a count of heads: every value that fits, the customary one first."""

from __future__ import annotations

from collections.abc import Callable
from math import gcd
from typing import Any

from cutaway.weights.shapes import Shapes, Value, evaluated

Open = Callable[[Shapes], list[dict[str, Any]]]
WIDEST = 1 << 20
# How wide heads are in published networks, most often first; the rest in order of size.
_CUSTOMARY = (64, 128, 80, 96, 256, 32, 112, 72, 48, 40, 160, 192, 16, 8, 512)


def divisors(number: int) -> list[int]:
    """The divisors of a number, ascending; none of a number that is no width of any network."""
    if number > WIDEST:
        return []
    return [part for part in range(1, number + 1) if number % part == 0]


def heads(
    field: str,
    width: Value,
    *,
    kv: tuple[str, Value] | None = None,
    size: str = "",
    known: tuple[Value, ...] = (),
    even: bool = False,
) -> Open:
    """How many heads divide `width`; `kv` names the field of key heads and their width, `size` that of a head's size.

    `known` are places that give a head's size, where a network has one. `even`: rotary embedding needs pairs.
    """

    def found(shapes: Shapes) -> list[dict[str, Any]]:
        whole = evaluated(width, shapes)
        keys = evaluated(kv[1], shapes) if kv else whole
        if not isinstance(whole, int) or not isinstance(keys, int) or not whole or not keys:
            return []
        told = [place for value in known if isinstance(place := evaluated(value, shapes), int) and place]
        sizes = [told[0]] if told else divisors(gcd(whole, keys))
        sizes = [part for part in sizes if whole % part == 0 and keys % part == 0 and not (even and part % 2)]
        sizes.sort(key=lambda part: (_CUSTOMARY.index(part) if part in _CUSTOMARY else len(_CUSTOMARY), -part))
        return [
            {field: whole // part}
            | ({kv[0]: keys // part} if kv else {})
            | ({size: part} if size else {})
            for part in sizes
            if (whole // part) % (keys // part) == 0
        ]

    return found


def product(*parts: Open) -> Open:
    """Every combination of what several parts leave open."""

    def found(shapes: Shapes) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = [{}]
        for part in parts:
            rows = [row | more for row in rows for more in part(shapes)]
        return rows

    return found


def settled(shapes: Shapes) -> list[dict[str, Any]]:
    """Nothing is open."""
    return [{}]
