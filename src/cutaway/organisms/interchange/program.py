"""Causal programs: variables, what each is computed from, and the nodes of a network that hold them.

A program says what a network is to compute and where. Each argument of a variable is one dependency, and stands for
edges of the network: from the node that holds the argument's variable to the named ports of the node that holds the
variable. A dependency can carry the value of another input, which is what interchange training compares with.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

IGNORED = -100  # a target that does not count, as cross_entropy has it
ROOTS = {"tokens": "embed", "positions": "pos_embed"}


@dataclass(frozen=True)
class Argument:
    """A variable that another one is computed from, and the ports ("q", "k", "v", "in" or "") that it comes in by."""

    variable: str
    ports: tuple[str, ...]


@dataclass(frozen=True)
class Variable:
    """`function` takes the arguments that are not positions, each (n, length), to this variable's values (n, length).

    Held by `node`: "L0.attn.h1", "L1.mlp", or "logits" for an output, whose values are classes, IGNORED where none.
    """

    name: str
    node: str
    arguments: tuple[Argument, ...]
    function: Callable[..., Tensor]


@dataclass(frozen=True)
class Program:
    """The variables in order of computation, the behaviour's output second to last and the distractor's last.

    Inputs (n, length) from `draw(n, generator)` hold the start, token 0, and then letters, from 1 on; `classes` are the
    numbers of both outputs' classes, `steps` how long a network trains.
    """

    name: str
    behaviour: str
    letters: int
    length: int
    causal: bool
    classes: tuple[int, int]
    steps: int
    draw: Callable[[int, torch.Generator], Tensor]
    variables: tuple[Variable, ...]

    def dependencies(self) -> list[tuple[str, str, list[str]]]:
        """(argument's variable, variable, edges that stand for it) of every argument that is not positions."""
        nodes = ROOTS | {variable.name: variable.node for variable in self.variables}
        return [
            (argument.variable, variable.name, edges_of(nodes[argument.variable], variable.node, argument.ports))
            for variable in self.variables
            for argument in variable.arguments
            if argument.variable != "positions"
        ]

    def edges(self, distractor: bool = False) -> list[str]:
        """The edges that stand for the behaviour's arguments, or for the distractor's."""
        nodes = ROOTS | {variable.name: variable.node for variable in self.variables}
        by_name = {variable.name: variable for variable in self.variables}
        waiting, found = [self.variables[-1 if distractor else -2]], dict[str, None]()
        while waiting:
            variable = waiting.pop(0)
            for argument in variable.arguments:
                found |= dict.fromkeys(edges_of(nodes[argument.variable], variable.node, argument.ports))
                waiting += [by_name[argument.variable]] if argument.variable in by_name else []
        return list(found)

    def run(self, inputs: Tensor, source: Tensor, swapped: Tensor) -> tuple[Tensor, Tensor]:
        """Both outputs (n, length) on `inputs`, where `swapped` (n, dependencies) carry what they are on `source`."""
        now, other = {"tokens": inputs}, {"tokens": source}
        place = 0
        for variable in self.variables:
            seen, there = [], []
            for argument in variable.arguments:
                if argument.variable == "positions":
                    continue
                swap = swapped[:, place].view(-1, *[1] * (now[argument.variable].dim() - 1))
                seen.append(torch.where(swap, other[argument.variable], now[argument.variable]))
                there.append(other[argument.variable])
                place += 1
            now[variable.name], other[variable.name] = variable.function(*seen), variable.function(*there)
        return now[self.variables[-2].name], now[self.variables[-1].name]


def edges_of(writer: str, node: str, ports: tuple[str, ...]) -> list[str]:
    """The names of the edges from a writer to the ports of a node."""
    return [f"{writer} -> {node}.{port}" if port else f"{writer} -> {node}" for port in ports]
