"""The listing: loops are rolled without losing an op, and prefixes name module paths."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutaway.graph.listing import Line, Listing, repeats
from zoo import ZOO, case

SEQUENCES = st.one_of(
    st.lists(st.integers(0, 4), max_size=60),
    st.builds(
        lambda head, body, times, tail: head + body * times + tail,
        st.lists(st.integers(0, 9), max_size=5),
        st.lists(st.integers(0, 9), min_size=1, max_size=6),
        st.integers(2, 9),
        st.lists(st.integers(0, 9), max_size=5),
    ),
)


@given(SEQUENCES)
def test_repeats_are_repeats_and_expand_to_the_sequence(keys: list[int]) -> None:
    position, rebuilt = 0, []
    for start, period, count in repeats(keys):
        assert start >= position
        assert period >= 1
        assert count >= 2
        body = keys[start : start + period]
        rebuilt += keys[position:start] + body * count
        position = start + period * count
        assert position <= len(keys)
    assert rebuilt + keys[position:] == keys


def test_a_loop_is_found_whole() -> None:
    assert repeats([9] + [1, 2, 3] * 5 + [8]) == [(1, 3, 5)]
    assert repeats([1, 2, 3]) == []
    assert repeats([]) == []


@pytest.mark.parametrize("name", ZOO)
def test_every_op_has_its_line(name: str) -> None:
    trace = case(name).trace
    flat = trace.listing(roll=False)
    assert [line.address for line in flat] == [trace.graph.address(op) for op in trace.graph.ops]
    assert all(set(line.reads) <= set(trace.graph.addresses) for line in flat)
    rolled = trace.listing()
    assert rolled.total == len(flat)
    assert len(rolled) <= len(flat)
    assert {line.address for line in rolled} <= {line.address for line in flat}
    assert expanded(rolled) == len(flat)
    assert str(flat).endswith(f"{len(flat)} ops")


def expanded(listing: Listing) -> int:
    """The ops that a rolled listing stands for: a line with `repeat` opens a loop of `span` ops, itself the first."""
    lines = list(listing)

    def read(line: Line) -> int:
        """The ops of a line, or of the loop that it opens; takes the loop's other lines off the list."""
        if line.repeat == 1:
            return 1
        turn = 1
        while turn < line.span:
            turn += read(lines.pop(0))
        assert turn == line.span
        return line.repeat * line.span

    total = 0
    while lines:
        total += read(lines.pop(0))
    return total


def test_prefixes_are_paths_and_not_letters() -> None:
    trace = case("gpt2").trace
    whole = [line.address for line in trace.listing("transformer.h.1", roll=False)]
    assert whole
    assert all(address.startswith("transformer.h.1") for address in whole)
    assert len(trace.listing("transformer.h.1.mlp", roll=False)) < len(whole)
    assert [line.address for line in trace.listing("h.1", roll=False)] == whole
    assert len(trace.listing("transformer.h.11")) == 0
    assert "0 ops" in str(trace.listing("nowhere"))


def test_a_source_line_names_the_networks_own_code() -> None:
    sources = {line.source.split(":")[0] for line in case("gpt2").trace.listing(roll=False) if line.source}
    assert "modeling_gpt2.py" in sources


def test_a_recurrence_is_one_loop() -> None:
    rolled = case("gru by hand").trace.listing()
    loop = [line for line in rolled if line.repeat > 1]
    assert loop[0].repeat == 7
    assert all(line.depth > 1 for line in loop[1:])
    assert "⟳ ×7" in str(rolled)
