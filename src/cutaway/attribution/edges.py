"""The edge graph of a behaviour: writers, readers, and the wiring between them, over a clean and a corrupted run.

A writer is a slot of a block's write (a head, a channel, a state unit, an MLP, an embedding); a reader is a slot of a
block's read. There is an edge from a writer to a reader when wiring (linear paths and the reader's norms) leads from
one to the other without passing a third block. Steps of one recurrent cell share names, so an edge between units of a
cell stands for that edge at every step.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..lift import Block, Lifted, Slots
from ..lift.flow import Flow
from ..lift.frozen import unguarded
from ..run.attached import late
from ..run.replay import Plan, execute, plan
from ..run.structure import tensors
from ..run.tape import Tape
from ..run.trace import Trace
from .baselines import Baseline, fill
from .columns import Through, through
from .routed import by_expert
from .wiring import Stem, Wiring
from .writers import behind_norms

_POSITIONED = frozenset({"attention", "mlp", "moe", "ssm", "embedding", "norm", "act", "dictionary", "error"})


@dataclass(frozen=True, eq=False)
class Port:
    """One read of a block: `rows` are its slots' readers, `feeds` the writes that wiring brings to it.

    They come by way of `stems`, which `merge` brings together, the last of it through the columns of a contraction.
    """

    value: int
    slots: Slots
    rows: Tensor
    feeds: tuple[int, ...]
    stems: tuple[Stem, ...]
    merge: Plan
    through: Through | None = None


@dataclass(frozen=True, eq=False)
class Part:
    """A block with its ports, and the plan that gives its write from its reads (None where they are the same)."""

    block: Block
    ports: tuple[Port, ...]
    inside: Plan | None


class EdgeGraph:
    """Writers, readers and wiring of a network on a batch of inputs, with the values that ablated writers carry.

    `clean` are each write's values as they are, `corrupted` as they are when ablated: those of the corrupted run, or of
    another baseline (see `baselines`); `baseline` says which. Raises InputError when the runs have different shapes or
    took different paths, or when nothing differs.
    """

    def __init__(
        self,
        clean: Trace,
        corrupted: Trace | None = None,
        *,
        baseline: Baseline = "counterfactual",
        positions: bool = False,
        neurons: bool = False,
        seed: int = 0,
    ) -> None:
        _check_runs(clean, corrupted)
        self.options: dict[str, Any] = {
            "baseline": baseline, "positions": positions, "neurons": neurons, "seed": seed
        }  # fmt: skip
        self.clean_trace, self.corrupted_trace = clean, corrupted
        self.net = clean.net
        self.lifted: Lifted = clean.lift()
        flow, blocks = _blocks(self.lifted, neurons)
        _check_dictionaries(clean, blocks)
        self.tape = flow.tape
        self.wiring = Wiring(flow)
        self.writes = {block.write: block for block in blocks if block.write >= 0}
        self.clean = _values(self.tape, self.writes, self.lifted)
        _check_finite(clean, self.clean)
        _check_examples(clean, self.lifted, self.clean)
        self.batch = flow.shape(self.lifted.output.reads[0].value)[0]
        reference = self._reference(corrupted, neurons) if corrupted is not None else None
        self.corrupted, self.baseline = fill(baseline, self.writes, self.clean, reference, self.lifted.flow, seed)
        # Position embeddings are in every run alike: they stay wiring until a baseline takes them away.
        self.still = {
            block.write
            for block in self.lifted.constants
            if torch.allclose(self.clean[block.write], self.corrupted[block.write])
        }
        self.positions = self._count_positions() if positions else 1
        self.writers: list[str] = []
        self.readers: list[str] = []
        self.columns: dict[int, Tensor] = {}
        self.parts: list[Part] = [self._part(block) for block in blocks]
        self.meetings: dict[tuple[int, str], Any] = {}  # what exact evaluation found out about reads (see meeting)
        self.valid = self._valid()
        self.leads = self._leads()

    def on(self, clean: Trace, corrupted: Trace | None, **changed: Any) -> EdgeGraph:
        """The same graph on other runs, with the same options but for those in `changed`.

        Raises InputError when it has other nodes there.
        """
        other = EdgeGraph(clean, corrupted, **{**self.options, **changed})
        if (other.writers, other.readers, other.shape()) != (self.writers, self.readers, self.shape()):
            raise InputError(
                "The held-out runs have other nodes than the circuit; "
                "use the same network and inputs of the same shape but for the batch."
            )
        return other

    # ---- building

    def _reference(self, corrupted: Trace, neurons: bool) -> dict[int, Tensor]:
        """The corrupted run's values, which must have come about in the same way."""
        other: Lifted = corrupted.lift()
        if [op.name for op in self.lifted.tape.graph.ops] != [op.name for op in other.tape.graph.ops]:
            raise InputError(
                "The corrupted run took another path through the network than the clean one; "
                "compare inputs on which it does the same operations."
            )
        return _values(_blocks(other, neurons)[0].tape, self.writes, other)

    def _part(self, block: Block) -> Part:
        if block.write >= 0:
            self.columns[block.write] = _indices(block.slot_names(), self.writers)
        stops = set(self.writes) - self.still
        if any(read.value == block.write for read in block.reads):
            stops.discard(block.write)
        ports = []
        for read in block.reads:
            stored = unguarded(self.tape, plan(self.tape, [], [read.value], stops)).stored
            feeds = tuple(value for value in self.columns if value in stored and value not in self.still)
            stems, merge = self.wiring.divide(read.value, feeds, stops)
            feeds = tuple(value for value in feeds if any(stem.feed == value for stem in stems))
            rows = _indices(block.reader_names(read), self.readers)
            last = through(self.wiring.flow, read.value, merge) if read.slots.count > 1 else None
            ports.append(Port(read.value, read.slots, rows, feeds, stems, merge, last))
        inside = None
        if block.write >= 0 and block.reads and all(read.value != block.write for read in block.reads):
            inside = unguarded(self.tape, plan(self.tape, [], [block.write], [read.value for read in block.reads]))
        return Part(block, tuple(ports), inside)

    def _valid(self) -> Tensor:
        """[readers, writers]: which edges exist and have a writer that differs between the runs.

        `moving` [writers, positions] says where each writer differs, `wired` [readers, writers] which edges exist.
        """
        moving = torch.zeros(len(self.writers), self.positions, dtype=torch.bool)
        for value, block in self.writes.items():
            change = (self.clean[value] != self.corrupted[value]).float()
            found = per_slot(change, block.slots, self.positions, self.position_axis(value)).sum(1) > 0
            moving[self.columns[value]] |= torch.nn.functional.pad(found, (0, self.positions - found.shape[1]))
        self.moving = moving
        table = torch.zeros(len(self.readers), len(self.writers), dtype=torch.bool)
        for part in self.parts:
            for port in part.ports:
                for value in port.feeds:
                    table[port.rows[:, None], self.columns[value][None, :]] = True
        self.wired = table.clone()
        table &= moving.any(1)[None, :]
        if not table.any():
            raise InputError(
                "Nothing inside the network differs between the clean and the corrupted inputs; "
                "change what the behaviour depends on."
                if self.baseline["kind"] == "counterfactual"
                else f"Nothing inside the network differs from its {self.baseline['kind']} baseline; choose another."
            )
        return table

    def _leads(self) -> Tensor:
        """[readers, writers]: which writers a reader belongs to, so that paths can be followed through blocks."""
        table = torch.zeros(len(self.readers), len(self.writers), dtype=torch.bool)
        for part in self.parts:
            if part.block.write < 0:
                continue
            columns = self.columns[part.block.write]
            for port in part.ports:
                shared, rest = divmod(len(columns), len(port.rows))
                if rest == 0:  # a slot each, or a group of slots each (grouped queries)
                    table[port.rows.repeat_interleave(shared), columns] = True
                else:
                    table[port.rows[:, None], columns[None, :]] = True
        return table

    def _count_positions(self) -> int:
        counts = {
            self.clean[value].shape[axis] for value in self.writes if (axis := self.position_axis(value)) is not None
        }
        if len(counts) != 1:
            raise InputError(
                "This network's values have no common position axis; find the circuit with positions=False."
            )
        return counts.pop()

    def position_axis(self, value: int) -> int | None:
        """The axis of positions of a write, or None where it has none."""
        ndim, kind = self.clean[value].ndim, self.writes[value].kind
        slots, first = self.writes[value].slots.axis, self.writes[value].slots.first
        if kind in ("attention", "moe") and ndim == 4:  # slots, examples and positions lie on the first three axes
            return 3 - slots - first
        if kind == "mlp" and ndim == 3 and slots == 1:  # neurons before positions
            return 2
        return 1 if ndim == 3 and slots != 1 and kind in _POSITIONED else None

    # ---- asking

    def edge_name(self, row: int, column: int) -> str:
        """`writer -> reader`."""
        return f"{self.writers[column]} -> {self.readers[row]}"

    @property
    def edges(self) -> list[tuple[int, int]]:
        """(row, column) of every edge that can be tested on these inputs."""
        return [(int(row), int(column)) for row, column in self.valid.nonzero()]

    def testable(self, level: str) -> Tensor:
        """Which edges [readers, writers, positions], or nodes [writers, positions], differ from what ablates them."""
        edges = self.valid[:, :, None] & self.moving
        return edges if level == "edge" else edges.any(0)

    def shape(self) -> tuple[int, int, int]:
        """(readers, writers, positions): the shape of scores and masks."""
        return len(self.readers), len(self.writers), self.positions

    def run(self, steps: Plan, given: dict[int, Tensor]) -> dict[int, Tensor]:
        """Run a part's plan on given values."""
        return execute(self.tape, steps, given=given)


def per_slot(value: Tensor, slots: Slots, positions: int, position_axis: int | None) -> Tensor:
    """[slots, batch, positions]: the sum of a write over everything but its slots, examples and positions.

    Where `positions` is 1 or the value has no position axis, the last axis has length one.
    """
    if slots.tiled:
        value = value.unflatten(0, (-1, slots.count))
        slot, keep = 1, [1, 0]
    else:
        slot = slots.axis
        value = value.unflatten(slot, (slots.count, -1))
        keep = [slot, slots.first + (slots.first > slot) if slot != slots.first else slot + 1]
        if positions > 1 and position_axis is not None:
            keep.append(position_axis + (position_axis > slot))
    rest = [axis for axis in range(value.ndim) if axis not in keep]
    kept = value.sum(rest) if rest else value
    order = sorted(keep)
    kept = kept.permute([order.index(axis) for axis in keep])
    return kept if kept.ndim == 3 else kept[:, :, None]


def _indices(names: list[str], known: list[str]) -> Tensor:
    found = []
    for name in names:
        if name not in known:
            known.append(name)
        found.append(known.index(name))
    return torch.tensor(found)


def _blocks(lifted: Lifted, neurons: bool) -> tuple[Flow, list[Block]]:
    """Sources, blocks and output as writers and readers, norms of writers and a slot for each neuron included."""
    split = [_neurons(block, lifted) for block in lifted.blocks] if neurons else lifted.blocks
    flow, blocks = by_expert(*behind_norms(lifted, split))
    return flow, [*lifted.sources, *map(_spread, lifted.constants), *blocks, lifted.output]


def _spread(constant: Block) -> Block:
    """A position embedding as a write [batch, pos, width], whatever axes its own value has."""
    return replace(constant, slots=Slots(2, 1))


def _neurons(block: Block, lifted: Lifted) -> Block:
    """An MLP's block with a slot for each neuron."""
    if block.kind != "mlp":
        return block
    shape = lifted.flow.shape(block.write)
    slots = Slots(block.slots.axis, shape[block.slots.axis])
    reads = tuple(
        replace(read, slots=slots) if lifted.flow.shape(read.value) == shape else read for read in block.reads
    )
    return replace(block, reads=reads, slots=slots, mark="n")


def _values(tape: Tape, writes: Iterable[int], lifted: Lifted) -> dict[int, Tensor]:
    """What every write is in a run; position embeddings [batch, pos, width] as if each example had its own."""
    with torch.no_grad():
        found = execute(tape, plan(tape, [], list(writes)))
    batch = next(iter(found.values())).shape[0]
    return found | {
        block.write: (value := found[block.write]).expand(batch, *value.shape[-2:]) for block in lifted.constants
    }


def _check_dictionaries(trace: Trace, blocks: list[Block]) -> None:
    """Raise InputError where the latents of an attached dictionary are no nodes."""
    nodes = {block.name for block in blocks if block.kind == "dictionary"}
    if hidden := [what for what in trace.net.attachments if what.latents and what.name not in nodes]:
        name = hidden[0].name
        if early := late(trace, hidden[0], trace.lift):
            raise InputError(f"Latents of '{name}' cannot be nodes of a circuit: {early}; leave that dictionary out.")
        raise InputError(
            f"The dictionary at '{name}' is for values inside a component or ones that depend on no input, so its "
            "latents are no nodes of a circuit; attach it to what a component reads or writes, or leave it out."
        )


def _check_runs(clean: Trace, corrupted: Trace | None) -> None:
    for side in (clean, corrupted) if corrupted is not None else (clean,):
        if not isinstance(side, Trace):
            raise InputError(f"Recorded runs are needed and one is a {type(side).__name__}; use net.record(inputs).")
        if side.interventions:
            raise InputError(
                "A circuit is found between two recordings, and a run with interventions is none; record it anew."
            )
    if corrupted is not None:
        _same_shape(clean, corrupted)


def _same_shape(clean: Trace, corrupted: Trace) -> None:
    ours = [tuple(tensor.shape) for tensor in tensors((clean.args, clean.kwargs))]
    theirs = [tuple(tensor.shape) for tensor in tensors((corrupted.args, corrupted.kwargs))]
    if ours != theirs:
        raise InputError(
            f"The clean inputs have shape {ours[0] if ours else ()} "
            f"and the corrupted ones {theirs[0] if theirs else ()}; "
            "a pair must have the same number of tokens and examples."
        )
    if clean.net is not corrupted.net:
        raise InputError("The clean and the corrupted run come from different networks; record both with the same one.")


def _check_examples(trace: Trace, lifted: Lifted, values: dict[int, Tensor]) -> None:
    """Raise InputError where the output has no row for each example, or a value inside is one number for all."""
    graph, shape = lifted.tape.graph, lifted.flow.shape(lifted.output.reads[0].value)
    given = next((tuple(tensor.shape) for tensor in tensors((trace.args, trace.kwargs))), ())
    if not shape:
        raise InputError(
            "The network's main output is a single number, such as a loss; return the outputs as `logits` or before it."
        )
    if len(given) == len(shape) == 1 and given != shape:
        raise InputError(
            f"Inputs of shape {given} give an output of shape {tuple(shape)}, so there is no axis of examples; "
            "give a batch, as in inputs[None]."
        )
    if single := [value for value, tensor in values.items() if not tensor.ndim]:
        raise InputError(
            f"'{graph.site(single[0])}' is a single number for all examples, such as a loss; record the runs without "
            "labels."
        )


def _check_finite(trace: Trace, values: dict[int, Tensor]) -> None:
    for value, tensor in values.items():
        if not torch.isfinite(tensor).all():
            raise InputError(
                f"'{trace.lift().tape.graph.site(value)}' holds NaN or infinity on these inputs; "
                "scores would be meaningless."
            )
