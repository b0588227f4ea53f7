"""Which values a recording keeps: by raw sites and shell patterns, or what is alive at a few moments."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

from torch import Tensor

from ..graph import Graph
from ..site import unknown


class Enough(BaseException):
    """Ends a run whose wanted values are all there. No Exception, so that a forward which catches those lets it pass;
    `values` are the wanted ones by value id."""

    def __init__(self, graph: Graph, values: dict[int, Tensor]) -> None:
        super().__init__("the wanted values are there")
        self.graph, self.values = graph, values


class Kept:
    """A keep-policy. Asked about every op of a run, it answers by the op's name where it can. With `stop`, the run ends
    by an Enough as soon as every name was seen."""

    def __init__(self, names: list[str], stop: bool = False) -> None:
        self.stop = stop
        self.exact = {name for name in names if not set(name) & set("*?")}
        self.patterns = [name for name in names if name not in self.exact]
        self._ops = {name.rpartition("/")[2].partition(".")[0] for name in self.exact}
        self._seen: set[str] = set()

    def concerns(self, op: str) -> bool:
        """Whether an op of this name may have to be kept."""
        return bool(self.patterns) or op in self._ops

    @property
    def complete(self) -> bool:
        """Whether the run has given all that it is run for."""
        return self.stop and len(self._seen) == len(self.exact)

    def __call__(self, address: str) -> bool:
        if address in self.exact:
            self._seen.add(address)
            return True
        return any(fnmatchcase(address, pattern) for pattern in self.patterns)

    def check(self, graph: Graph) -> None:
        """Raises SiteError for a name or pattern that matches no site of the run."""
        for name in self.exact - self._seen:
            graph.find(name)
        for pattern in self.patterns:
            if not any(fnmatchcase(address, pattern) for address in graph.addresses):
                raise unknown(pattern, graph.addresses)


class Checkpoints:
    """Keeps what is alive at a few moments of a run, however long it is.

    What is alive at a moment is all that later calls can read, so every value can be made again from the moment before
    it. There are never more than `most` moments: when there would be, every other one is given up, and from then on
    moments lie twice as far apart. So a recording holds at most `most` times what the network itself holds at once, and
    a value is made again by at most 1/`most` of the run's calls, or twice that. Chen et al. 2016 (arXiv:1604.06174).
    """

    def __init__(self, most: int = 16, every: int = 64) -> None:
        self.most, self.every = most, every
        self._moments: list[dict[int, Tensor]] = []

    def due(self, op: int) -> bool:
        """Whether a moment is to be kept after this many calls."""
        return op % self.every == 0

    def note(self, live: Iterable[tuple[int, Tensor]]) -> dict[int, Tensor]:
        """Keep a moment; returns all that is to be kept now."""
        self._moments.append(dict(live))
        if len(self._moments) > self.most:
            self._moments = self._moments[1::2]
            self.every *= 2
        return {value: tensor for moment in self._moments for value, tensor in moment.items()}

    def moved(self, value: int, tensor: Tensor) -> None:
        """A value's tensor is about to be written into: `tensor` is its copy."""
        for moment in self._moments:
            if value in moment:
                moment[value] = tensor
