"""The op graph of one run.

A graph is three lists: values (leaves and outputs of ops), ops in order of execution, and module calls. Everything is
addressed by position in its list; names are made from it. In-place writes are already gone: an op that wrote into its
argument has a new value as an output, so the graph is a DAG in which an op's inputs stand before it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from ..errors import SiteError
from ..site import unknown

LEAVES = ("input", "param", "buffer", "const")


@dataclass(slots=True)
class Value:
    """One tensor of a run: a leaf (`op` is -1) or an output of an op."""

    id: int
    kind: str
    name: str
    op: int
    port: int
    shape: tuple[int, ...]
    dtype: str


@dataclass(slots=True)
class Op:
    """One call of a torch function. `source` is (file, line, function); `name.ordinal` is unique in its module call."""

    index: int
    name: str
    ordinal: int
    module: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    source: tuple[str, int, str] | None
    inside: str = ""


@dataclass(slots=True)
class ModuleCall:
    """One call of a module: ops `first` up to, not including, `last`."""

    path: str
    call: int
    cls: str
    parent: int
    first: int
    last: int = -1
    inputs: tuple[int, ...] = ()
    outputs: tuple[int, ...] = ()
    counts: dict[str, int] = field(default_factory=dict, repr=False)

    @property
    def name(self) -> str:
        """`path`, or `path@call` from the second call on."""
        return self.path if self.call == 0 else f"{self.path}@{self.call}"


@dataclass
class Graph:
    """Ops, values and module calls of one run, with the addresses between them."""

    values: list[Value] = field(default_factory=list)
    ops: list[Op] = field(default_factory=list)
    modules: list[ModuleCall] = field(default_factory=list)
    inputs: list[int] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)

    def address(self, op: Op) -> str:
        """`path@call/name.ordinal`; inside an opened op, `OUTER//name.ordinal`."""
        if op.inside:
            return f"{op.inside}//{op.name}.{op.ordinal}"
        return f"{self.modules[op.module].name}/{op.name}.{op.ordinal}"

    def site(self, value: int) -> str:
        """The raw address of a value."""
        found = self.values[value]
        if found.op < 0:
            return f"{found.kind}:{found.name}"
        op = self.ops[found.op]
        address = self.address(op)
        return address if len(op.outputs) == 1 else f"{address}:{found.port}"

    @cached_property
    def addresses(self) -> dict[str, int]:
        """Every raw address of this run, to the id of its value."""
        table = {f"{value.kind}:{value.name}": value.id for value in self.values if value.op < 0}
        for op in self.ops:
            address = self.address(op)
            for port, value in enumerate(op.outputs):
                table.setdefault(f"{address}:{port}", value)
            if op.outputs:
                table[address] = op.outputs[0]
        return table

    @cached_property
    def exits(self) -> dict[str, tuple[int, int]]:
        """Every module call with an output, to (value, index of the first op after its exit)."""
        return {call.name: (call.outputs[0], call.last) for call in self.modules if call.outputs and call.path}

    @cached_property
    def users(self) -> list[list[int]]:
        """For each value, the ops that read it, in order."""
        table: list[list[int]] = [[] for _ in self.values]
        for op in self.ops:
            for value in dict.fromkeys(op.inputs):
                table[value].append(op.index)
        return table

    def find(self, name: str) -> tuple[int, int]:
        """A raw address or module path, to (value, first op from which the value counts as changed by an edit).

        `ADDRESS<` is what the op at an address reads first.
        """
        if name.endswith("<") and name[:-1] in self.addresses:
            return self.ops[self.values[self.addresses[name[:-1]]].op].inputs[0], 0
        if name in self.addresses:
            return self.addresses[name], 0
        if name in self.exits:
            return self.exits[name]
        raise unknown(name, [*self.exits, *self.addresses])

    def parents(self, op: Op) -> list[Op]:
        """The ops whose outputs `op` reads."""
        makers = dict.fromkeys(self.values[value].op for value in op.inputs)
        return [self.ops[maker] for maker in makers if maker >= 0]

    def children(self, op: Op) -> list[Op]:
        """The ops that read an output of `op`."""
        return [self.ops[user] for user in dict.fromkeys(u for value in op.outputs for u in self.users[value])]

    def cone(self, seeds: set[int], blind: frozenset[str] = frozenset()) -> set[int]:
        """Every value that depends on one of `seeds`, the seeds included; ops named in `blind` pass nothing on."""
        reached = set(seeds)
        for op in self.ops:
            if op.name not in blind and any(value in reached for value in op.inputs):
                reached.update(op.outputs)
        return reached

    def rooted(self) -> bool:
        """Whether an input, a parameter or a buffer leads to an output."""
        waiting, seen = list(self.outputs), set(self.outputs)
        while waiting:
            value = self.values[waiting.pop()]
            if value.kind in ("input", "param", "buffer"):
                return True
            inputs = self.ops[value.op].inputs if value.op >= 0 else ()
            waiting += [feed for feed in inputs if feed not in seen]
            seen.update(inputs)
        return False

    def behind(self, goals: set[int]) -> set[int]:
        """The ops that some values are made from, whatever was kept."""
        wanted, found = set(goals), set[int]()
        for op in reversed(self.ops):
            if any(value in wanted for value in op.outputs):
                found.add(op.index)
                wanted.update(op.inputs)
        return found

    def check(self) -> None:
        """The spec of a legal graph: raises SiteError where it is broken (tests run it after every pass)."""
        made: set[int] = {value.id for value in self.values if value.op < 0 and value.kind in LEAVES}
        addresses: set[str] = set()
        for position, op in enumerate(self.ops):
            if op.index != position:
                raise SiteError(f"Op {self.address(op)} says it is number {op.index} but stands at {position}.")
            if (address := self.address(op)) in addresses:
                raise SiteError(f"Two ops have the address {address}.")
            addresses.add(address)
            if missing := [value for value in op.inputs if value not in made]:
                raise SiteError(f"Op {self.address(op)} reads values {missing}, which nothing before it made.")
            for port, value in enumerate(op.outputs):
                if value in made:
                    raise SiteError(f"Value {value} is made twice, the second time by {self.address(op)}.")
                if (self.values[value].op, self.values[value].port) != (position, port):
                    raise SiteError(f"Value {value} does not point back to {self.address(op)}:{port}.")
                made.add(value)
        if missing := [value for value in (*self.inputs, *self.outputs) if value not in made]:
            raise SiteError(f"The graph hands out values {missing}, which nothing made.")
        for call in self.modules:
            if not 0 <= call.first <= call.last <= len(self.ops):
                raise SiteError(f"Module call '{call.name}' spans ops {call.first} to {call.last} of {len(self.ops)}.")
