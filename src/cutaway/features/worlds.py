"""Synthetic worlds: rows that are sums of known directions, so that a dictionary can be scored against the truth.

Which features are there is drawn from a forest. A node without a parent comes by its own chance; a child comes only
with its parent, by its chance given the parent; children of an exclusive node come one at a time. Nodes that stand for
no feature tie features together without being seen: an exclusive one makes a group of which at most one is on, a free
one a topic whose features come together. So every kind of world is one mechanism, and drawing costs what is on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from ..errors import InputError
from .card import Place
from .codes import Codes
from .products import offsets_of

SITE = "world"
_CHILD = 0.8  # children of a hierarchical feature that are on with it, on average

# How strongly a feature that is there is there: the mean is one in all.
Draw = Callable[[int, torch.Generator], Tensor]
MAGNITUDES: dict[str, Draw] = {
    "constant": lambda n, g: torch.ones(n),
    "uniform": lambda n, g: 0.5 + torch.rand(n, generator=g),
    "half-normal": lambda n, g: torch.randn(n, generator=g).abs() * 1.2533,
    "exponential": lambda n, g: -torch.log1p(-torch.rand(n, generator=g)),
}


@dataclass(frozen=True, eq=False)
class Forest:
    """What comes with what: `parent` of each node (−1: none), `chance` to be on given the parent, and whether its
    children exclude each other. The first nodes are the features."""

    parent: Int[Tensor, "nodes"]
    chance: Float[Tensor, "nodes"]
    exclusive: Bool[Tensor, "nodes"]

    def __post_init__(self) -> None:
        if not bool(((self.chance >= 0) & (self.chance < 1)).all()):
            raise InputError("A feature would have to be on always; ask for fewer active ones or more features.")

    @property
    def children(self) -> Int[Tensor, "nodes most"]:
        """The children of each node, filled up with −1."""
        nodes = len(self.parent)
        owned = (self.parent >= 0).nonzero()[:, 0]
        owned = owned[self.parent[owned].argsort(stable=True)]
        counts = torch.bincount(self.parent[owned], minlength=nodes)
        place = torch.arange(len(owned)) - (counts.cumsum(0) - counts)[self.parent[owned]]
        table = torch.full((nodes, int(counts.max()) if len(owned) else 0), -1)
        table[self.parent[owned], place] = owned
        return table


@dataclass(frozen=True, eq=False)
class World:
    """Rows = coefficients · directions + noise, drawn when they are asked for: no two seeds give the same rows, and
    batch `i` of one size and seed is always the same. It is a `Rows` of `samples` rows."""

    directions: Float[Tensor, "features d"]
    forest: Forest
    magnitudes: str = "uniform"
    noise: float = 0.0  # standard deviation of what is added to each number
    seed: int = 0
    samples: int = 3_600_000
    manifest: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.magnitudes not in MAGNITUDES:
            raise InputError(f"There are no magnitudes '{self.magnitudes}'; there are {', '.join(MAGNITUDES)}.")
        chance = self.forest.chance.double()
        roots = (self.forest.parent < 0).nonzero()[:, 0]
        children = self.forest.children
        odds = torch.where(children >= 0, chance[children.clamp(min=0)], 0.0)
        # derived once: the rates of the roots, so that P(no point) = 1 − chance, and the children's odds
        object.__setattr__(self, "_roots", (roots, -torch.log1p(-chance[roots]).cumsum(0)))
        object.__setattr__(self, "_children", (children, odds, odds.cumsum(1)))

    @property
    def places(self) -> tuple[Place, ...]:
        """Its one place."""
        return (Place(SITE, self.directions.shape[1]),)

    def __len__(self) -> int:
        return self.samples

    def but(self, **changed: Any) -> World:
        """The same world with some fields changed: other directions, more noise. It has no manifest."""
        return replace(self, **{"manifest": {}, **changed})

    # ---- rows

    def batches(self, size: int, *, seed: int = 0, skip: int = 0) -> Iterator[dict[str, Tensor]]:
        """Fresh rows, batch by batch."""
        for number in range(skip, self.samples // size):
            yield {SITE: self._drawn(size, self._generator(1, seed, number))[0]}

    def sample(self, count: int, *, seed: int = 0) -> dict[str, Tensor]:
        """Fresh rows that are in no batch."""
        return {SITE: self.truth(count, seed=seed)[0]}

    def truth(self, count: int, *, seed: int = 0) -> tuple[Float[Tensor, "count d"], Codes]:
        """The rows that `sample` gives and their true coefficients."""
        return self._drawn(min(count, self.samples), self._generator(2, seed, 0))

    def batch_truth(self, size: int, number: int, *, seed: int = 0) -> tuple[Float[Tensor, "size d"], Codes]:
        """Batch `number` of `batches(size, seed=seed)` and its true coefficients."""
        return self._drawn(size, self._generator(1, seed, number))

    # ---- drawing

    def _generator(self, stream: int, seed: int, number: int) -> torch.Generator:
        """Another generator for every batch: SplitMix64's mixing keeps neighbouring numbers apart."""
        state = 0
        for word in (self.seed, stream, seed, number):
            state = (state + word + 0x9E3779B97F4A7C15) & (2**64 - 1)
            state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
            state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
            state ^= state >> 31
        return torch.Generator().manual_seed(state >> 1)

    def _drawn(self, count: int, generator: torch.Generator) -> tuple[Tensor, Codes]:
        features = len(self.directions)
        rows, nodes = self._present(count, generator)
        seen = nodes < features
        key = (rows[seen] * features + nodes[seen]).sort().values
        rows, latents = key // features, key % features
        codes = Codes(offsets_of(rows, count), latents, MAGNITUDES[self.magnitudes](len(key), generator), features)
        made = codes.decode(self.directions)
        if self.noise:
            made = made + self.noise * torch.randn(made.shape, generator=generator)
        return made, codes

    def _present(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Rows and nodes of all that is on, level by level.

        Roots are cells of a Poisson process, of which a cell is on when a point falls into it: exactly independent
        chances at the cost of the points.
        """
        roots, rates = self._roots  # type: ignore[attr-defined]
        children, odds, steps = self._children  # type: ignore[attr-defined]
        line = float(rates[-1])
        points = int(torch.poisson(torch.tensor(count * line, dtype=torch.double), generator=generator))
        place = torch.rand(points, generator=generator, dtype=torch.double) * count
        row = place.long().clamp(max=count - 1)
        cell = torch.searchsorted(rates, (place - row) * line).clamp(max=len(roots) - 1)
        key = torch.unique(row * len(roots) + cell)
        rows, nodes = key // len(roots), roots[key % len(roots)]
        found = [(rows, nodes)]
        while len(nodes) and children.shape[1]:
            drawn = torch.rand(len(nodes), children.shape[1], generator=generator, dtype=torch.double)
            one = drawn[:, :1]
            alone = (one < steps[nodes]) & (one >= steps[nodes] - odds[nodes])
            on = torch.where(self.forest.exclusive[nodes, None], alone, drawn < odds[nodes])
            which, child = (on & (children[nodes] >= 0)).nonzero(as_tuple=True)
            rows, nodes = rows[which], children[nodes[which], child]
            found.append((rows, nodes))
        return torch.cat([rows for rows, _ in found]), torch.cat([nodes for _, nodes in found])


# ---- the kinds


def _trees(features: int, branching: int, depth: int) -> Int[Tensor, "features"]:
    """Parents of as many whole trees as there is room for; what is left stands alone."""
    size = sum(branching**level for level in range(depth))
    tree = torch.tensor([-1] + [(node - 1) // branching for node in range(1, size)])
    count = features // size
    start = torch.arange(count)[:, None] * size
    parents = torch.where(tree < 0, tree, tree + start).flatten()
    return torch.cat([parents, torch.full((features - count * size,), -1)])


def _hierarchical(features: int, exclusive: bool, branching: int = 4, depth: int = 3) -> Forest:
    parent = _trees(features, branching, depth)
    chance = torch.where(parent >= 0, _CHILD / branching, 0.0)
    return Forest(parent, chance, torch.full((features,), exclusive))


def _grouped(features: int, exclusive: bool, size: int = 8) -> Forest:
    """Groups tied together by a node that is not seen: a choice of one, or a topic of which half are on."""
    groups = -(-features // size)
    parent = torch.cat([features + torch.arange(features) // size, torch.full((groups,), -1)])
    chance = torch.zeros(features + groups)
    chance[:features] = (1 - 1e-6) / size if exclusive else 0.5
    return Forest(parent, chance, torch.full((features + groups,), exclusive))


KINDS: dict[str, Callable[[int], Forest]] = {
    "independent": lambda n: Forest(torch.full((n,), -1), torch.zeros(n), torch.zeros(n, dtype=torch.bool)),
    "hierarchical": lambda n: _hierarchical(n, False),
    "hierarchical-exclusive": lambda n: _hierarchical(n, True),
    "exclusive": lambda n: _grouped(n, True),
    "correlated": lambda n: _grouped(n, False),
}


def _scaled(forest: Forest, features: int, active: float, zipf: float) -> Forest:
    """With chances of the roots, falling by rank as rank^−zipf, that make `active` features on on average."""
    roots = forest.parent < 0
    share = torch.arange(1, int(roots.sum()) + 1, dtype=torch.double) ** -zipf
    chance = forest.chance.double()
    chance[roots] = share
    total = chance.clone()
    order = forest.parent
    for _ in range(4):  # deeper than any forest here
        total = torch.where(order >= 0, chance * total[order.clamp(min=0)], chance)
    chance[roots] *= active / total[:features].sum()
    return replace(forest, chance=chance.float())


def make_world(
    kind: str = "independent", features: int = 1024, width: int = 128, active: float = 12.0, *, noise: float = 0.0,
    magnitudes: str = "uniform", zipf: float = 0.0, seed: int = 0, samples: int = 3_600_000,
) -> World:  # fmt: skip
    """A synthetic world: random unit directions (orthogonal ones where there is room), `active` of them on in a row.

    `kind`: "independent"; "hierarchical" (trees of 1 + 4 + 16 features, a child only with its parent);
    "hierarchical-exclusive" (the same, of the children of one feature at most one); "exclusive" (groups of 8, at most
    one on); "correlated" (groups of 8 that come together). `magnitudes`: "uniform" (0.5 to 1.5), "constant",
    "half-normal" or "exponential", all of mean 1. `zipf`: how fast frequencies fall with rank, 0 for equal ones.
    `noise`: standard deviation of Gaussian noise on each number. Raises InputError for what makes no world.
    """
    if kind not in KINDS:
        raise InputError(f"There is no world '{kind}'; there are {', '.join(KINDS)}.")
    if not (features > 0 and width > 0 and 0 < active < features and samples > 0):
        raise InputError(
            f"A world needs features, width and samples above 0 and active between 0 and features; these are "
            f"{features}, {width}, {samples} and {active}."
        )
    directions = torch.randn(features, width, generator=torch.Generator().manual_seed(seed))
    if features <= width:
        directions = torch.linalg.qr(directions.T).Q.T.contiguous()
    forest = _scaled(KINDS[kind](features), features, active, zipf)
    told = {
        "hash": f"world:{kind}:{features}:{width}:{active:g}:{noise:g}:{magnitudes}:{zipf:g}:{seed}", "world": kind,
        "features": features, "width": width, "active": active, "noise": noise, "magnitudes": magnitudes,
        "zipf": zipf, "seed": seed,
    }  # fmt: skip
    return World(functional.normalize(directions, dim=1), forest, magnitudes, noise, seed, samples, told)
