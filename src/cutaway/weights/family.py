"""What a row of the table of architectures is, and the cells that no path alone can say."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import isqrt

from cutaway.weights.candidates import Open, settled
from cutaway.weights.shapes import Shapes, Value


@dataclass(frozen=True)
class Family:
    """One architecture of `transformers`: the config's class, and the classes whose names to compare with.

    `marks` must be there (below one prefix) and `absent` must not. `sizes` maps a config's fields to where they show:
    see `Shapes.size`. `left` gives the values of what shapes leave open, `head` is the unembedding. `unseen` are
    settings that no shape shows and that change what is computed; they are taken from the family's defaults, and said.
    `fields` are a config's own words where they differ from the usual ones.
    """

    name: str
    config: str
    classes: tuple[str, ...]
    marks: tuple[str, ...]
    sizes: dict[str, Value]
    left: Open = settled
    absent: tuple[str, ...] = ()
    norm: str = "LayerNorm"
    head: str = "/lm_head.weight"
    unseen: tuple[str, ...] = ()
    fields: dict[str, str] = field(default_factory=dict)


def sized(layers: str, embed: str) -> dict[str, Value]:
    """The cells that nearly every language model has."""
    return {"vocab_size": f"{embed}:0", "hidden_size": f"{embed}:1", "num_hidden_layers": layers}


def side(positions: str, patch: str, first: int) -> Value:
    """The side of square images from the number of their patches, less `first` tokens that are none."""

    def found(shapes: Shapes) -> object:
        shape, kernel = shapes.get(positions), shapes.get(patch)
        if shape is None or kernel is None or len(shape) < 2 or not kernel or shape[-2] < first:
            return None
        return isqrt(shape[-2] - first) * kernel[-1]

    return found


def ratio(above: str, below: str) -> Value:
    """One size as a multiple of another."""

    def found(shapes: Shapes) -> object:
        one, other = shapes.size(above), shapes.size(below)
        if not one or not other:
            return None
        return one // other if one % other == 0 else one / other

    return found


def stages(path: str) -> Value:
    """The sizes that a path with a number in it has at stage 0, 1, …"""

    def found(shapes: Shapes) -> object:
        before, _, after = path.partition("#")
        pattern, _, axis = after.rpartition(":")
        widths: list[int] = []
        while (shape := shapes.shapes.get(f"{shapes.prefix}{before}{len(widths)}{pattern}")) is not None:
            widths.append(shape[int(axis)])
        return widths or None

    return found


def depths(before: str, after: str) -> Value:
    """How many layers stage 0, 1, … has."""

    def found(shapes: Shapes) -> object:
        counts: list[int] = []
        while count := shapes.count(f"{before}{len(counts)}{after}"):
            counts.append(count)
        return counts or None

    return found
