"""What an organism is: a small trained network together with what is known about how it works.

No torch is imported here at run time, so that listing organisms stays cheap.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Pairs:
    """Clean and corrupted inputs that differ in the one thing the behaviour depends on.

    `clean` and `corrupted` have the same shape, first axis n. `correct` and `wrong` are int64 of shape (n,): indices
    into the outputs. With `position` p the outputs are `model(x)[:, p, :]`; with None they are `model(x)`. Where they
    are None the behaviour is the whole output, to be compared with that on the clean inputs.
    """

    clean: Tensor
    corrupted: Tensor
    correct: Tensor | None
    wrong: Tensor | None
    position: int | None


@dataclass(frozen=True)
class Truth:
    """The mechanism of an organism's behaviour, and how it comes to be known.

    `nodes` are component names, `edges` are "writer -> reader.port" strings. `figures` holds what was measured:
    accuracies, logit differences and the effect of cutting every edge and node (see docs/organisms.md).
    """

    nodes: tuple[str, ...]
    edges: tuple[str, ...]
    mechanism: str
    how_known: str
    figures: dict[str, Any]

    @property
    def unseen(self) -> tuple[str, ...]:
        """Edges that replacing clean by corrupted values does not show: it costs under 1 % of the logit difference, or
        what they carry is known to be the same in both. Planted edges that no cut shows at all are among them."""
        if "unseen" in self.figures:
            return tuple(self.figures["unseen"])
        least = 0.01 * self.figures["logit_difference"]
        hidden = tuple(edge for edge in self.edges if self.figures["edge_effects"][edge]["resample"] < least)
        return hidden + tuple(self.figures.get("planted_without_effect", ()))

    @property
    def neurons(self) -> bool:
        """Whether nodes are neurons of MLPs, which a search has to tell apart."""
        return any(".mlp.n" in node for node in self.nodes)


@dataclass(frozen=True)
class Organism:
    """A bundled network, in eval mode, with its vocabulary, its behaviour and its known mechanism.

    `vocabulary` names the input tokens (None where inputs are not tokens). `behaviour` is one sentence, or None
    where nothing is decided. `truth` is None for an untrained control.
    """

    name: str
    module: nn.Module
    vocabulary: tuple[str, ...] | None
    behaviour: str | None
    truth: Truth | None
    description: str
    draw: Callable[[int, int], Pairs] | None = field(default=None, repr=False)

    def pairs(self, n: int, seed: int = 0) -> Pairs:
        """`n` clean and corrupted inputs, the same ones for the same seed. ValueError where there is no behaviour."""
        if self.draw is None:
            raise ValueError(f"organism {self.name!r} decides nothing, so it has no clean and corrupted pairs")
        if n < 1:
            raise ValueError(f"organism {self.name!r}: asked for {n} pairs; ask for at least one")
        return self.draw(n, seed)
