"""The op graph: addresses, walks, and the spec that a broken graph breaks."""

from __future__ import annotations

import dataclasses

import pytest

from cutaway.errors import SiteError
from cutaway.graph import Graph, ModuleCall, Op, Value


def small() -> Graph:
    """input -> a -> (b, c with two outputs) -> d, in two calls of one module."""
    values = [Value(0, "input", "0", -1, 0, (2, 3), "float32"), Value(1, "param", "w", -1, 0, (3, 3), "float32")]
    makers = [(2, 0, 0), (3, 1, 0), (4, 2, 0), (5, 2, 1), (6, 3, 0)]
    values += [Value(value, "op", "", op, port, (2, 3), "float32") for value, op, port in makers]
    ops = [
        Op(0, "linear", 0, 1, (0, 1), (2,), ("net.py", 3, "forward")),
        Op(1, "relu", 0, 0, (2,), (3,), ("net.py", 4, "forward")),
        Op(2, "chunk", 0, 2, (3,), (4, 5), None),
        Op(3, "add", 0, 0, (4, 5), (6,), None),
    ]
    modules = [
        ModuleCall("", 0, "Net", -1, 0, 4, (), (6,)),
        ModuleCall("fc", 0, "Linear", 0, 0, 1, (0,), (2,)),
        ModuleCall("fc", 1, "Linear", 0, 2, 3, (3,), (4, 5)),
    ]
    return Graph(values, ops, modules, [0], [6])


def test_addresses() -> None:
    graph = small()
    graph.check()
    assert [graph.address(op) for op in graph.ops] == ["fc/linear.0", "/relu.0", "fc@1/chunk.0", "/add.0"]
    assert [graph.site(value.id) for value in graph.values] == [
        "input:0", "param:w", "fc/linear.0", "/relu.0", "fc@1/chunk.0:0", "fc@1/chunk.0:1", "/add.0",
    ]  # fmt: skip
    assert graph.find("fc@1/chunk.0:1") == (5, 0)
    assert graph.find("fc@1/chunk.0") == (4, 0)
    assert graph.find("fc@1") == (4, 3)
    assert graph.find("/add.0<") == (4, 0)
    assert all(graph.find(graph.site(value.id))[0] == value.id for value in graph.values)


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(SiteError, match=r"No site 'fc@2' in this run. Near it: .*fc@1"):
        small().find("fc@2")


def test_walks() -> None:
    graph = small()
    assert [op.name for op in graph.parents(graph.ops[3])] == ["chunk"]
    assert [op.name for op in graph.children(graph.ops[0])] == ["relu"]
    assert graph.cone({2}) == {2, 3, 4, 5, 6}
    assert graph.users[3] == [2]


def broken(change: str) -> Graph:
    graph = small()
    if change == "index":
        graph.ops[2].index = 5
    elif change == "order":
        graph.ops[0].inputs = (6,)
    elif change == "twice":
        graph.ops[3].outputs = (6, 3)
    elif change == "maker":
        graph.values[6].port = 1
    elif change == "unmade":
        graph.values.append(Value(7, "op", "", -1, 0, (), "float32"))
        graph.ops[3].inputs = (4, 7)
    elif change == "output":
        graph.outputs = [9]
    elif change == "module":
        graph.modules[2].last = 9
    elif change == "address":
        graph.ops[3] = dataclasses.replace(graph.ops[3], name="relu")
    return graph


@pytest.mark.parametrize("change", ["index", "order", "twice", "maker", "unmade", "output", "module", "address"])
def test_a_broken_graph_is_noticed(change: str) -> None:
    with pytest.raises(SiteError):
        broken(change).check()
