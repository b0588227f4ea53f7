"""What a dictionary says about itself: which values of which network it was made for, and how well it did there."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class Place:
    """Values that a dictionary reads or writes: a site, how many numbers its vectors have, and the network's
    fingerprint ("" where it is not known). `axis` names the axis that the vectors lie along when it is not the last
    one (the channels of an image)."""

    site: str
    width: int
    network: str = ""
    axis: str = ""

    def __str__(self) -> str:
        return f"{self.site} ({self.width})"


@dataclass(frozen=True)
class Card:
    """Where a dictionary belongs and how it came about, all of it JSON-able.

    `reads` and `writes` are in the order in which their values are concatenated; for all but transcoders and
    crosscoders both are the same one place. `network` is the network's name. `reference` holds figures on a probe batch
    (`l0`, `fvu`, `norm`: the mean length of a row before normalisation, `rows`, and `inputs`: what was run, where that
    is small), `data` the manifest of what it was made from, `training` the method, its options, seed and samples,
    `versions` of what made it, `source` where it came from if not from here.
    """

    reads: tuple[Place, ...] = ()
    writes: tuple[Place, ...] = ()
    network: str = ""
    reference: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    source: str = ""

    @property
    def same_place(self) -> bool:
        """Whether it writes what it reads: an autoencoder, no transcoder."""
        return self.reads == self.writes

    def but(self, **changed: Any) -> Card:
        """The same card with some fields changed."""
        return replace(self, **changed)

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able data."""
        return asdict(self)

    @staticmethod
    def from_dict(data: dict[str, Any]) -> Card:
        """The card in data that `to_dict` gave. Raises TypeError or KeyError for anything else."""
        places = {name: tuple(Place(**place) for place in data[name]) for name in ("reads", "writes")}
        return Card(**{**data, **places})
