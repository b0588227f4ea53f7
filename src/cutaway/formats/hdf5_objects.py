"""The parts of HDF5 that `hdf5_file` needs: superblock, object headers, old and new groups, types, attributes.

Every method raises struct.error, IndexError, KeyError, OverflowError or ValueError for bytes that make no sense, and
takes time and memory bounded by the file's own size. Section numbers are those of the format's specification, 3.0.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

from cutaway.formats.hdf5_dense import Heap, identifiers

NOWHERE = 0xFFFFFFFFFFFFFFFF
MESSAGES, NODES, TEXT_BYTES, TEXTS = 1_000_000, 200_000, 32 << 20, 1000
_ATTRIBUTE_NAME = 200


class Objects:
    """Random access to the objects of a file in memory (or mapped)."""

    def __init__(self, view: memoryview) -> None:
        self.view = view
        self.left = {"messages": MESSAGES, "nodes": NODES, "text": TEXT_BYTES}

    def unpack(self, form: str, at: int) -> tuple[Any, ...]:
        return struct.unpack_from(f"<{form}", self.view, at)

    def spend(self, what: str, amount: int = 1) -> None:
        """Count towards a bound of the whole file."""
        self.left[what] -= amount
        if self.left[what] < 0:
            raise ValueError(f"it has too many {what}")

    def expect(self, at: int, mark: bytes) -> None:
        if bytes(self.view[at : at + 4]) != mark:
            raise ValueError(f"there is no {mark.decode()} at byte {at:,}")

    def root(self) -> int:
        """Address of the root group's header (II.A)."""
        version = self.view[8]
        widths = self.view[13:15] if version < 2 else self.view[9:11]
        if version > 3 or bytes(widths) != b"\x08\x08":
            raise ValueError(f"its superblock is of version {version}, or its addresses are not of 8 bytes")
        start, address = (24, 64) if version == 0 else (28, 68) if version == 1 else (12, 36)
        if self.unpack("Q", start) != (0,):
            raise ValueError("it does not begin at its own beginning")
        return int(self.unpack("Q", address)[0])

    def stated_end(self) -> int:
        """How many bytes the file had when it was closed, by its superblock (II.A)."""
        return int(self.unpack("Q", {0: 40, 1: 44}.get(self.view[8], 28))[0])

    def messages(self, address: int) -> dict[int, list[tuple[int, int]]]:
        """The messages of an object header by type: where each begins, and its size (IV.A.1)."""
        found: dict[int, list[tuple[int, int]]] = {}
        new = bytes(self.view[address : address + 4]) == b"OHDR"
        pending = [self._first_block(address, new)]
        tracked = new and self.view[address + 5] & 4
        visited = set()
        while pending:
            at, stop = pending.pop()
            if at in visited or stop > len(self.view):
                raise ValueError(f"the object at byte {address:,} continues at an impossible place")
            visited.add(at)
            head = (6 if tracked else 4) if new else 8
            while at + head <= stop:
                self.spend("messages")
                kind, size, flags = self.unpack("BHB" if new else "HHB", at)
                at += head
                if size > stop - at:
                    raise ValueError(f"a message at byte {at:,} is too long")
                if kind == 0x10:
                    where, length = self.unpack("QQ", at)
                    if new:
                        self.expect(where, b"OCHK")
                    pending.append((where + 4, where + length - 4) if new else (where, where + length))
                elif not flags & 2:  # shared messages stand elsewhere; weights have none
                    found.setdefault(kind, []).append((at, size))
                at += size
        return found

    def _first_block(self, address: int, new: bool) -> tuple[int, int]:
        if not new:
            if self.view[address] != 1:
                raise ValueError(f"there is no object at byte {address:,}")
            return address + 16, address + 16 + self.unpack("I", address + 8)[0]
        flags = self.view[address + 5]
        at = address + 6 + (16 if flags & 0x20 else 0) + (4 if flags & 0x10 else 0)
        width = 1 << (flags & 3)
        size = int.from_bytes(self.view[at : at + width], "little")
        return at + width, at + width + size

    def is_dataset(self, address: int) -> bool:
        """Whether the object has a shape, a type and a layout."""
        return {1, 3, 8} <= self.messages(address).keys()

    def children(self, address: int) -> Iterator[tuple[str, int | None]]:
        """Names and addresses of a group's members; None for a link by name. Old groups and new ones."""
        messages = self.messages(address)
        for at, _ in messages.get(0x11, ()):
            tree, heap = self.unpack("QQ", at)
            self.expect(heap, b"HEAP")
            yield from self._tree(tree, self.unpack("Q", heap + 24)[0], set())
        for at, _ in messages.get(0x02, ()):
            heap, tree = self.unpack("QQ", at + 2 + (8 if self.view[at + 1] & 1 else 0))
            if heap != NOWHERE:
                yield from self._dense(heap, tree)
        for at, _ in messages.get(0x06, ()):
            yield self._link(at)

    def _dense(self, heap: int, tree: int) -> Iterator[tuple[str, int | None]]:
        """The links of a new group that has more than fit its header (by default, more than eight)."""
        objects = Heap(self.view, self.unpack, self.expect, heap)
        for identifier in identifiers(self.view, self.unpack, self.expect, self.spend, tree):
            yield self._link(objects.place(identifier)[0])

    def _tree(self, address: int, heap: int, visited: set[int]) -> Iterator[tuple[str, int | None]]:
        """A B-tree of names (III.A.1) with its symbol tables (III.B)."""
        pending = [address]
        while pending:
            at = pending.pop()
            self.spend("nodes")
            if at in visited:
                raise ValueError(f"the node at byte {at:,} is its own descendant")
            visited.add(at)
            if bytes(self.view[at : at + 4]) == b"TREE":
                kind, _, used = self.unpack("BBH", at + 4)
                if kind != 0:
                    raise ValueError("a group has the tree of a dataset")
                pending += [self.unpack("Q", at + 32 + 16 * number)[0] for number in range(used)][::-1]
                continue
            self.expect(at, b"SNOD")
            for number in range(self.unpack("H", at + 6)[0]):
                name, child, cached = self.unpack("QQI", at + 8 + 40 * number)
                yield self._name(heap + name), None if cached == 2 or child == NOWHERE else child

    def _link(self, at: int) -> tuple[str, int | None]:
        """A link message (IV.A.2.g)."""
        flags = self.view[at + 1]
        at += 2
        kind = self.view[at] if flags & 8 else 0
        at += (1 if flags & 8 else 0) + (8 if flags & 4 else 0) + (1 if flags & 16 else 0)
        width = 1 << (flags & 3)
        size = int.from_bytes(self.view[at : at + width], "little")
        name = self._text(at + width, size)
        return name, self.unpack("Q", at + width + size)[0] if kind == 0 else None

    def _name(self, at: int) -> str:
        content = bytes(self.view[at : at + 1024])
        return self._text(at, content.index(0))

    def _text(self, at: int, size: int) -> str:
        self.spend("text", size)
        if at + size > len(self.view):
            raise ValueError(f"a text at byte {at:,} is too long")
        return bytes(self.view[at : at + size]).decode("utf-8", "replace")

    def shape(self, message: tuple[int, int]) -> tuple[int, ...]:
        """A dataspace (IV.A.2.b)."""
        at = message[0]
        version, rank = self.unpack("BB", at)
        if version not in (1, 2):
            raise ValueError(f"a shape is of version {version}")
        return self.unpack(f"{rank}Q", at + (8 if version == 1 else 4))

    def type(self, message: tuple[int, int]) -> tuple[int, int, int, int]:
        """Class, first flags, bytes, and the bits of a float's exponent (IV.A.2.d)."""
        form, flags, _, size = self.unpack("BBHI", message[0])
        return form & 15, flags, size, self.view[message[0] + 13] if form & 15 == 1 else 0

    def layout(self, message: tuple[int, int]) -> tuple[int, int] | None:
        """Where a dataset's bytes begin and how many they are; None if they are not in one piece (IV.A.2.i)."""
        at = message[0]
        version, form = self.unpack("BB", at)
        if version not in (3, 4) or form > 1:
            return None
        if form == 0:
            return at + 4, self.unpack("H", at + 2)[0]
        where, size = self.unpack("QQ", at + 2)
        return where, size

    def attributes(self, address: int) -> Iterator[tuple[str, Any]]:
        """Names and values of those attributes that are texts or lists of texts (IV.A.2.m)."""
        for at, size in self.messages(address).get(0x0C, ()):
            version, _, name_size, type_size, space_size = self.unpack("BBHHH", at)
            position = at + (9 if version == 3 else 8)
            round_up = 8 if version == 1 else 1
            name = self._text(position, min(name_size, _ATTRIBUTE_NAME)).rstrip("\0")
            kind_at = position + -(-name_size // round_up) * round_up
            space_at = kind_at + -(-type_size // round_up) * round_up
            data_at = space_at + -(-space_size // round_up) * round_up
            form, _, width, _ = self.type((kind_at, type_size))
            scalar = self.unpack("BB", space_at)[1] == 0
            count = 1 if scalar else self.shape((space_at, space_size))[0]
            if form in (3, 9) and count <= TEXTS and data_at + count * width <= at + size:
                read = self._from_heap if form == 9 else lambda place, width=width: self._text(place, width)
                texts = [read(data_at + number * width).rstrip("\0") for number in range(count)]
                yield name, texts[0] if scalar and texts else texts

    def _from_heap(self, at: int) -> str:
        """A text of variable length: its size, and where in which collection of the global heap it is (III.E)."""
        size, address, index = self.unpack("IQI", at)
        if size == 0:
            return ""
        self.expect(address, b"GCOL")
        stop = address + self.unpack("Q", address + 8)[0]
        place = address + 16
        while place + 16 <= stop:
            self.spend("nodes")
            number, _, _, length = self.unpack("HHIQ", place)
            if number == index:
                return self._text(place + 16, min(size, length))
            if number == 0:
                break
            place += 16 + -(-length // 8) * 8
        raise ValueError(f"a text is not in its collection at byte {address:,}")
