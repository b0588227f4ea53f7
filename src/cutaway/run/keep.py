"""Which values a recording keeps, by raw sites and shell patterns."""

from __future__ import annotations

from fnmatch import fnmatchcase

from ..graph import Graph
from ..site import unknown


class Kept:
    """A keep-policy. Asked about every op of a run, it answers by the op's name where it can."""

    def __init__(self, names: list[str]) -> None:
        self.exact = {name for name in names if not set(name) & set("*?")}
        self.patterns = [name for name in names if name not in self.exact]
        self._ops = {name.rpartition("/")[2].partition(".")[0] for name in self.exact}
        self._seen: set[str] = set()

    def concerns(self, op: str) -> bool:
        """Whether an op of this name may have to be kept."""
        return bool(self.patterns) or op in self._ops

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
