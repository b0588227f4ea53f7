"""The listing of a run: the disassembly. Every op with its site, shape, source line and operands; loops rolled."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

from .op import Graph, Op


@dataclass(frozen=True)
class Line:
    """One line of a listing; `repeat` > 1 means that this line and the `span - 1` after it are repeated."""

    address: str
    op: str
    shape: str
    dtype: str
    reads: tuple[str, ...]
    source: str
    depth: int
    repeat: int = 1
    span: int = 1


@dataclass(frozen=True)
class Listing:
    """Lines of a run, printable; iterate over it for the lines."""

    lines: tuple[Line, ...]
    total: int

    def __iter__(self):  # type: ignore[no-untyped-def]
        return iter(self.lines)

    def __len__(self) -> int:
        return len(self.lines)

    def __str__(self) -> str:
        width = min(max((len(line.address) for line in self.lines), default=0), 72)
        rows = []
        for line in self.lines:
            head = f"{'│ ' * line.depth}{line.address:<{width}}  {line.shape:<18} {line.dtype:<9}"
            rows.append(f"{head} {', '.join(line.reads)}" + (f"   ; {line.source}" if line.source else ""))
            if line.repeat > 1:
                rows[-1] += f"   ⟳ ×{line.repeat} ({line.span} ops)"
        shown = len(self.lines)
        note = f"{self.total} ops" if shown == self.total else f"{self.total} ops, {shown} lines"
        return "\n".join([*rows, note])


def _source(op: Op) -> str:
    return f"{os.path.basename(op.source[0])}:{op.source[1]}" if op.source else ""


def _line(graph: Graph, op: Op, depth: int) -> Line:
    first = graph.values[op.outputs[0]] if op.outputs else None
    shape = "×".join(map(str, first.shape)) if first is not None else "·"
    reads = tuple(graph.site(value) for value in op.inputs)
    dtype = first.dtype if first is not None else ""
    return Line(graph.address(op), op.name, shape or "scalar", dtype, reads, _source(op), depth)


def _signature(graph: Graph, op: Op) -> tuple[object, ...]:
    """What makes two ops the same step of a loop: same function, same source line, same shape, same way in."""
    shape = graph.values[op.outputs[0]].shape if op.outputs else ()
    return (op.name, graph.modules[op.module].cls, op.source and op.source[:2], shape, len(op.inputs))


def repeats(keys: list[int], longest: int = 400) -> list[tuple[int, int, int]]:
    """Tandem repeats in a sequence of keys, greedily from the left, as (start, period, count >= 2).

    Candidate periods at a position are the distances to the next occurrences of the same key, so sequences without
    repeats cost one lookup a position.
    """
    after: dict[int, list[int]] = {}
    for position, key in enumerate(keys):
        after.setdefault(key, []).append(position)
    found, start, seen = [], 0, dict.fromkeys(after, 0)
    while start < len(keys):
        places = after[keys[start]]
        while places[seen[keys[start]]] < start:
            seen[keys[start]] += 1
        best = (0, 0)
        for place in places[seen[keys[start]] + 1 :][:24]:
            period = place - start
            if period > longest:
                break
            count = 1
            while keys[start : start + period] == keys[start + count * period : start + (count + 1) * period]:
                count += 1
            if count > 1 and count * period > best[0] * best[1]:
                best = (period, count)
        if best[0]:
            found.append((start, *best))
            start += best[0] * best[1]
        else:
            start += 1
    return found


def _keys(graph: Graph, ops: list[Op]) -> list[int]:
    table: dict[tuple[object, ...], int] = {}
    return [table.setdefault(_signature(graph, op), len(table)) for op in ops]


def loops(graph: Graph, ops: list[Op] | None = None) -> list[tuple[int, int, int]]:
    """Outermost loops of a run as (position, ops a step, steps), over `ops` or all of them."""
    return repeats(_keys(graph, graph.ops if ops is None else ops))


def listing(graph: Graph, prefix: str = "", roll: bool = True) -> Listing:
    """The lines of a run below a module path or site prefix (all with ""), loops rolled unless `roll` is False."""
    kept = [op for op in graph.ops if not prefix or _below(graph.address(op), prefix)]
    lines = _rolled(graph, kept, 0) if roll else [_line(graph, op, 0) for op in kept]
    return Listing(tuple(lines), len(kept))


def _rolled(graph: Graph, ops: list[Op], depth: int) -> list[Line]:
    """Lines with repeats folded, a loop inside a loop too; a loop's first op has its own line, which says how often."""
    lines: list[Line] = []
    position = 0
    for start, period, count in repeats(_keys(graph, ops), max(len(ops) - 1, 1)):
        lines += [_line(graph, op, depth) for op in ops[position:start]]
        head = replace(_line(graph, ops[start], depth + 1), repeat=count, span=period)
        lines += [head, *_rolled(graph, ops[start + 1 : start + period], depth + 1)]
        position = start + period * count
    return lines + [_line(graph, op, depth) for op in ops[position:]]


def _below(address: str, prefix: str) -> bool:
    if address.startswith(prefix):
        rest = address[len(prefix) : len(prefix) + 1]
        return rest in ("", ".", "/", "@", ":") or prefix.endswith((".", "/"))
    return f".{prefix}." in address or f".{prefix}/" in address
