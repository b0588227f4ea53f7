"""Links of an HDF5 group that are too many for its header: a B-tree of their names points into a fractal heap.

Section numbers are those of the format's specification, 3.0. Raises what `hdf5_objects` raises.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

Unpack = Callable[[str, int], tuple[Any, ...]]
Expect = Callable[[int, bytes], None]
DEEPEST = 16  # levels of a tree or a heap; every level at least doubles what is below


class Heap:
    """A fractal heap (III.G): objects by identifiers, in blocks whose sizes double row by row."""

    def __init__(self, view: memoryview, unpack: Unpack, expect: Expect, address: int) -> None:
        expect(address, b"FRHP")
        self.view, self.unpack, self.expect = view, unpack, expect
        self.id_size, filtered = unpack("HH", address + 5)
        self.columns, self.first, self.largest, bits, _, self.root, self.rows = unpack("HQQHHQH", address + 110)
        self.width = -(-bits // 8)
        powers = all(size and size & (size - 1) == 0 for size in (self.columns, self.first, self.largest))
        if filtered or not powers or not 1 <= self.width <= 8 or self.id_size <= self.width + 1:
            raise ValueError(f"the heap at byte {address:,} is compressed or of an impossible shape")
        self.direct_rows = self.largest.bit_length() - self.first.bit_length() + 2

    def place(self, identifier: bytes) -> tuple[int, int]:
        """Where an object begins, and its size."""
        if len(identifier) != self.id_size or identifier[0] & 0xF0:
            raise ValueError("an object of a heap stands outside of its blocks")
        offset = int.from_bytes(identifier[1 : 1 + self.width], "little")
        size = int.from_bytes(identifier[1 + self.width :], "little")
        at, begin = self._block(offset)
        if at + offset - begin + size > len(self.view):
            raise ValueError("an object of a heap lies beyond the end of the file")
        return at + offset - begin, size

    def _block(self, offset: int) -> tuple[int, int]:
        """Address of the direct block that holds an offset of the heap, and where in the heap the block begins."""
        at, rows, begin = self.root, self.rows, 0
        for _ in range(DEEPEST):
            if rows == 0:
                self.expect(at, b"FHDB")
                return at, begin
            self.expect(at, b"FHIB")
            within = offset - begin
            row = (within // (self.first * self.columns)).bit_length()
            if row >= rows:
                break
            size = self.first << max(0, row - 1)
            before = self.first * self.columns << (row - 1) if row else 0
            column = (within - before) // size
            (child,) = self.unpack("Q", at + 13 + self.width + 8 * (row * self.columns + column))
            at, begin = child, begin + before + column * size
            rows = 0 if row < self.direct_rows else (size // (self.first * self.columns)).bit_length()
            if row >= self.direct_rows and rows == 0:
                break
        raise ValueError(f"there is nothing at {offset:,} in a heap")


def identifiers(
    view: memoryview, unpack: Unpack, expect: Expect, spend: Callable[[str], None], address: int
) -> Iterator[bytes]:
    """Heap identifiers of the links in a B-tree of names (III.A.2, type 5); in each record a hash comes first."""
    expect(address, b"BTHD")
    kind, node, record, depth = unpack("BIHH", address + 5)
    root, used = unpack("QH", address + 16)
    if kind != 5 or record <= 4 or depth > DEEPEST or node < 10 + record:
        raise ValueError(f"the tree at byte {address:,} is no tree of names")
    most = (node - 10) // record  # in a leaf
    number = (most.bit_length() + 7) // 8
    totals = [0]  # bytes of the count of all records below a node, by its height
    capacity = most
    for height in range(1, depth + 1):
        pointer = 8 + number + totals[height - 1]
        inner = (node - 10 - pointer) // (record + pointer)
        if inner < 1:
            raise ValueError(f"the tree at byte {address:,} has nodes that are too small")
        capacity = (inner + 1) * capacity + inner
        totals.append((capacity.bit_length() + 7) // 8)
    pending = [(root, used, depth)] if used else []
    visited = set()
    while pending:
        at, count, height = pending.pop()
        spend("nodes")
        if at in visited or count * record > node:
            raise ValueError(f"the node at byte {at:,} is its own descendant, or too full")
        visited.add(at)
        expect(at, b"BTIN" if height else b"BTLF")
        for index in range(count):
            spend("messages")
            yield bytes(view[at + 6 + index * record + 4 : at + 6 + (index + 1) * record])
        pointers = at + 6 + count * record
        for index in range(count + 1 if height else 0):
            below = pointers + index * (8 + number + totals[height - 1])
            inside = int.from_bytes(view[below + 8 : below + 8 + number], "little")
            pending.append((*unpack("Q", below), inside, height - 1))
