"""What a wavefront may cut, found by trying it. Nothing here knows an op by name.

An op whose result on a range of positions is that range of its result may run on the range. Whether earlier positions
can change is found by disturbing later ones. And whether a batch of two worlds gives each world its own result is tried
for every op.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from .difference import alike
from .replay import Place, execute, plan
from .sizes import Sizes, Unfit
from .tape import Tape
from .wavefront import Range, Wavefront, cut, joined

_BY_MEMORY = frozenset({"as_strided", "as_strided_scatter", "view_as_real", "view_as_complex"})  # see how memory lies
_ALIKE = 1e-4  # of the largest number: an op on fewer rows may round otherwise, an op that is another differs by more


def wavefront(
    tape: Tape, found: Sizes, sites: Iterable[int], target: int, position: int | None = None
) -> Wavefront:
    """The wavefront from the values `sites` to `target`; at `position` alone if given.

    Raises Unfit where a batch of worlds, made of the recorded calls at another size, is not each world by itself.
    """
    graph = tape.graph
    sites = set(sites)
    reached = graph.cone(set(sites))
    behind = graph.behind({target})
    needed = {target}.union(*(graph.ops[index].inputs for index in behind))
    ops = [
        op.index
        for op in graph.ops
        if op.index in behind and any(value in reached for value in op.inputs)
    ]
    if target not in reached:
        raise Unfit("the target does not depend on the sites")
    if any(value in reached for op in graph.ops if not op.outputs for value in op.inputs):
        raise Unfit("Python reads a value that depends on the sites, and what it does then may differ between worlds")
    for index in ops:
        call = tape.calls[index]
        if call.rng is not None or found.args[index] is None or graph.ops[index].name.strip("_") in _BY_MEMORY:
            raise Unfit(f"{graph.address(graph.ops[index])} cannot be made at another size")
        for value in graph.ops[index].outputs:
            if value in needed and found.lays[value].batch < 0:
                raise Unfit(f"{graph.site(value)} has no axis of examples")
    if any(found.lays[value].batch < 0 for value in sites):
        raise Unfit("a patched value has no axis of examples")
    if position is not None:
        position %= max(found.length, 1)
    front = Wavefront(tape, found, frozenset(sites), ops, target, position, set(), set(), set())
    front.complete()
    noisy, made = _disturbed(front, sites, 1 if found.length > 1 else 0)
    _try(front, noisy, made)
    if found.length > 2:
        _find_causal(front, sites, noisy)
    if position is not None and found.lays[target].by_position:
        _find_single(front, sites)
    return front


def _disturbed(front: Wavefront, sites: set[int], start: int) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
    """Values with noise on the sites from a position on: as ops read them, and as ops made them."""
    tape, lays = front.tape, front.sizes.lays
    noise = torch.Generator().manual_seed(start)
    order = sorted(sites)
    edits = []
    for value in order:
        clean = front.values[value]
        spread = float(clean.detach().float().std()) if clean.numel() > 1 else 1.0
        more = torch.randn(clean.shape, generator=noise).to(clean) * (spread or 1.0)
        if lays[value].by_position:
            early = cut(more, lays[value], (0, start), (0, front.sizes.length))
            early.zero_()
            if lays[value].batch == lays[value].pos:  # a flattened axis: cut gave a copy
                rest = cut(more, lays[value], (start, front.sizes.length), (0, front.sizes.length))
                more = joined([early, rest], lays[value], [start, front.sizes.length - start])
        edits.append(lambda found, more=more: found + more)
    made: dict[int, Tensor] = {}
    wanted = {value for index in front.ops for value in tape.graph.ops[index].outputs}
    steps = plan(tape, [Place(value) for value in order], [*order, *wanted])
    noisy = execute(tape, steps, edits, on_value=made.__setitem__)
    return noisy, made


def _try(front: Wavefront, noisy: dict[int, Tensor], made: dict[int, Tensor]) -> None:
    """Try every op on two worlds, on a range of positions and whole, and note which run on a range."""
    graph, lays, length = front.tape.graph, front.sizes.lays, front.sizes.length
    whole, late = (0, length), (length // 2, length)

    def two(value: int, at: Range) -> Tensor:
        if value not in noisy:
            return front.clean(value, at, 2)
        parts = [cut(found, lays[value], at, whole) for found in (front.values[value], noisy[value])]
        return torch.cat(parts, lays[value].batch)

    def works(index: int, at: Range) -> bool:
        op = graph.ops[index]
        try:
            tried = front.call(index, {value: two(value, at) for value in op.inputs}, 2, at)
        except (RuntimeError, TypeError, ValueError, IndexError):
            return False
        wanted = [(got, value) for got, value in zip(tried, op.outputs, strict=True) if lays[value].batch >= 0]
        return all(alike(got, _pair(front, made, value, at), _ALIKE) for got, value in wanted)

    for index in front.ops:
        op = graph.ops[index]
        touched = [value for value in op.inputs if value in noisy]
        made_here = [value for value in op.outputs if lays[value].batch >= 0]
        cuttable = length > 1 and all(lays[value].by_position for value in (*touched, *made_here))
        if cuttable and works(index, late):
            front.by_position.add(index)
        elif not works(index, whole):
            raise Unfit(f"{graph.address(op)} does not treat the examples of a batch one by one")


def _pair(front: Wavefront, made: dict[int, Tensor], value: int, at: Range) -> Tensor:
    lay, whole = front.sizes.lays[value], (0, front.sizes.length)
    return torch.cat([cut(found, lay, at, whole) for found in (front.values[value], made[value])], lay.batch)


def _find_causal(front: Wavefront, sites: set[int], noisy: dict[int, Tensor]) -> None:
    """Values whose early positions do not change when later ones of the sites do."""
    lays, length = front.sizes.lays, front.sizes.length
    whole = (0, length)
    front.causal = {value for value in (*sites, *noisy) if lays[value].by_position}
    for start in dict.fromkeys((1, length // 2, length - 1)):
        late = noisy if start == 1 else _disturbed(front, sites, start)[0]
        for value in list(front.causal):
            early = [cut(found, lays[value], (0, start), whole) for found in (front.values[value], late[value])]
            if not alike(early[1], early[0], _ALIKE):
                front.causal.discard(value)


def _find_single(front: Wavefront, sites: set[int]) -> None:
    """Values that are needed at the position asked for alone."""
    graph, lays = front.tape.graph, front.sizes.lays
    everywhere: set[int] = set()
    front.single = {front.target}
    for index in reversed(front.ops):
        op = graph.ops[index]
        alone = index in front.by_position and all(
            value in front.single and value not in everywhere for value in op.outputs
        )
        for value in op.inputs:
            if alone and lays[value].by_position:
                front.single.add(value)
            else:
                everywhere.add(value)
    front.single -= everywhere
