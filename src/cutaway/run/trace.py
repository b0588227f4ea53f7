"""A trace: the graph of one run, and its values, recorded or made again on demand.

A trace that came out of a replay shares the recording's tape and adds its interventions; values that the edits do not
reach are the recording's own. Reading a value that was not kept makes it again; reading one inside a fused op opens
that op. Nothing is opened or made again before somebody asks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ..errors import DivergenceError, InputError, SiteError
from ..graph import Graph
from ..graph.listing import Listing, listing
from ..site import Site
from .attached import check_edited, latents_at, with_dictionaries
from .collecting import uncollected
from .inside import opened
from .interventions import Intervention, editor, indices, take
from .memory import overlaps_itself
from .proof import proven
from .replay import Place, execute, plan
from .sizes import Unfit, sizes
from .splice import LATENTS, SLOTS
from .structure import fresh, swap, tensors, within
from .tape import Tape
from .trials import wavefront
from .wavefront import Wavefront

if TYPE_CHECKING:
    from .network import Network


class Found(NamedTuple):
    """Where a site lies: its raw address and the names of its value's axes.

    With `fold` the value's first axis is batch × heads (or windows), `fold` of them, and `axes` names the two apart.
    With `derive` it is no value of the run but made from some (a head's own result): it can be read, not edited.
    """

    address: str
    axes: tuple[str, ...]
    fold: int = 0
    derive: Callable[[Trace], Tensor] | None = None

    def unfolded(self, value: Tensor) -> Tensor:
        """The value with the axes that `axes` names."""
        return value.unflatten(0, (-1, self.fold)) if self.fold else value


@dataclass(frozen=True)
class Fired:
    """Receipt of one intervention: how often its edit ran, and the largest change it made (in the value's unit)."""

    site: str
    kind: str
    times: int
    change: float
    note: str = ""


@dataclass
class Trace:
    """One run of a network. `output` is what the network returned; `receipt` says which edits fired."""

    net: Network
    tape: Tape
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any
    interventions: tuple[Intervention, ...] = ()
    receipt: tuple[Fired, ...] = ()
    live: bool = False
    _values: dict[str, Tensor] = field(default_factory=dict, repr=False)
    _tapes: dict[frozenset[str], Tape] = field(default_factory=dict, repr=False)
    _lifted: Any = field(default=None, repr=False)

    def __repr__(self) -> str:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors((self.args, self.kwargs))) or "none"
        edits = ", ".join(f"{what.kind} {what.site}" for what in self.interventions)
        after = (f"; {edits}" if edits else "") + ("; run live" if self.live else "")
        return f"Trace({self.net.name!r}, {len(self.graph.ops):,} ops, inputs {shapes}{after})"

    # ---- reading

    @property
    def graph(self) -> Graph:
        """The op graph of the recorded run, nothing opened."""
        return self.tape.graph

    @property
    def logits(self) -> Tensor:
        """The run's main output: what the network returned as `logits`, else its first floating point tensor."""
        return main_output(self.output)

    def listing(self, prefix: str = "", roll: bool = True) -> Listing:
        """The ops below a module path (all by default) with site, shape, operands and source line."""
        inside = {prefix.split("//")[0]} if "//" in prefix else set()
        return listing(self.tape_with(inside).graph, prefix, roll)

    def lift(self) -> Any:
        """The components of this run, found by dataflow (see `cutaway.lift`)."""
        if self._lifted is None:
            self._prove()
            with uncollected():
                self._lifted = self.net.lifter(self)
        return self._lifted

    def sites(self) -> list[str]:
        """Every raw site of the run, and every module with an output."""
        return [*self.graph.addresses, *self.graph.exits]

    def locate(self, site: str | Site) -> Found:
        """The raw address of a site; lifted names and aliases are resolved. Raises SiteError with near names.

        With an index on the axis `latent` it is that of the latents of the dictionary attached there.
        """
        site = Site.parse(site)
        if "latent" in dict(site.index):
            return Found(*latents_at(self, site))
        return self.located(site.name, self.lift)

    def located(self, name: str, lift: Callable[[], Any]) -> Found:
        """The same for the name of a site alone; `lift` gives the components where they are needed."""
        if name in self.graph.addresses or name in self.graph.exits:
            return Found(name, self._axes(name))
        if "//" in name:
            return Found(name, ())
        found: Found = lift().find(name)
        return found

    def value(self, site: str | Site) -> Tensor:
        """The value at a site (indexed axes dropped); made again, or opened, when it was not kept.

        Raises SiteError when the site matches nothing or an index lies outside the value.
        """
        site = Site.parse(site)
        found = self.locate(site)
        whole = found.unfolded(self._whole(found))
        axes = found.axes or tuple(str(axis) for axis in range(whole.ndim))
        # A copy: writing into what was read must not change the recording.
        return take(whole, indices(site, axes, tuple(whole.shape))).clone()

    __getitem__ = value

    def raw(self, site: str | Site) -> Tensor:
        """The whole value at a site as it lies in the run, nothing unfolded. Raises SiteError as `value` does."""
        return self._whole(self.locate(site)).detach()

    def tape_with(self, outer: Iterable[str]) -> Tape:
        """The tape with the ops at these addresses opened."""
        self._prove()
        wanted = frozenset(outer)
        if not wanted:
            return self.tape
        if wanted not in self._tapes and any(address.startswith((LATENTS, SLOTS)) for address in wanted):
            self._tapes[wanted] = with_dictionaries(self, wanted, self.lift).tape
        if wanted not in self._tapes:
            graph = self.graph
            makers = {graph.address(op): op.index for op in graph.ops}
            if missing := [address for address in wanted if address not in makers]:
                raise SiteError(f"There is no op '{missing[0]}' to open in this run.")
            self._tapes[wanted] = opened(self.tape, [makers[address] for address in wanted])
        return self._tapes[wanted]

    def _whole(self, found: Found) -> Tensor:
        if found.derive is not None:
            return found.derive(self)
        if found.address in self._values:
            return self._values[found.address]
        outer = {found.address.split("//")[0]} if "//" in found.address else set()
        if not outer and (self.live or not self.interventions):
            value, _ = self._find(self.tape, found.address)
            if value in self.tape.kept:
                return self.tape.kept[value].detach()
        tape, places, edits, _ = self._edits(() if self.live else self.interventions, outer)
        value, _ = self._find(tape, found.address)
        value = tape.after.get(value, value)  # behind dictionaries whose latents are edited: what its readers see
        steps = plan(tape, places, [value])
        if steps.ops:
            self._check_weights()
        with torch.enable_grad():  # as recorded: torch chooses other kernels for some ops without it
            made = execute(tape, steps, edits)[value].detach()
        if not self.interventions and outer:
            self._values[found.address] = made
        return made

    def layout(self, found: Found, lift: Callable[[], Any] | None = None) -> tuple[int, tuple[str, ...]]:
        """Fold and axes of a value; those without names are looked for by what the value is."""
        if found.fold or found.axes[-1:] != (str(len(found.axes) - 1),):
            return found.fold, found.axes
        try:
            lifted = (lift or self.lift)()
        except SiteError:  # a network without outputs that depend on its inputs
            return found.fold, found.axes
        made: tuple[int, tuple[str, ...]] = lifted.layout(self.graph, found.address, found.axes)
        return made

    def _axes(self, name: str) -> tuple[str, ...]:
        value, _ = self.graph.find(name)
        shape = self.graph.values[value].shape
        first = next(tensors((self.args, self.kwargs)), None)
        lengths = tuple(first.shape[:2]) if first is not None else ()
        axes = [str(axis) for axis in range(len(shape))]
        if shape and lengths and shape[0] == lengths[0]:
            axes[0] = "batch"
            if len(shape) in (2, 3) and shape[1:2] == lengths[1:] and _is_sequence(first):
                axes[1] = "pos"
        return tuple(axes)

    def wavefront(
        self, sites: Iterable[int], target: int, position: int | None, outer: Iterable[str]
    ) -> tuple[Wavefront, bool]:
        """How to carry many edits of values together to a target, and whether it was planned for an earlier run.

        A plan serves all runs that share a graph. `outer` are the ops opened in the tape that the values' ids belong
        to. Raises Unfit when it cannot be done.
        """
        wanted = frozenset(outer)
        tape = self.tape_with(wanted)
        known = self.net.plans(self.graph)
        key = (frozenset(sites), target, position, wanted)
        if isinstance(known.get(key), Unfit):
            raise known[key]
        if key in known:
            return known[key].on(tape), True
        reason = Unfit("")
        for positions in (True, False):  # perhaps the number of positions alone is what it cannot do otherwise
            try:
                found = sizes(self, lambda trace: trace.tape_with(wanted), positions)
                known[key] = front = wavefront(tape, found, sites, target, position)
            except Unfit as why:
                known[key] = reason = why
            else:
                return front, False
        raise reason

    # ---- changing

    def replay(self, *interventions: Intervention, until: str | Site | Sequence[str | Site] | None = None) -> Trace:
        """The run with interventions, by making again only what they can reach. Gradients flow through it.

        `until`: sites to compute instead of the output; the result's output is then the tuple of their values. When the
        network would take another branch than in the recording, it is run live instead and the result says so.
        Raises SiteError for a site that matches nothing.
        """
        if odd := [what for what in interventions if not isinstance(what, Intervention)]:
            raise InputError(
                f"A replay takes interventions, such as cutaway.zero(site), and got a {type(odd[0]).__name__}."
            )
        chain = (*self.interventions, *interventions)
        until = [until] if isinstance(until, (str, Site)) else until
        if self.live:
            return self._live(chain, until)
        inside = {found.split("//")[0] for found in map(self._address, until or ()) if "//" in found}
        tape, places, edits, fired = self._edits(chain, inside)
        self._check_weights()
        targets = [self._find(tape, self._address(site))[0] for site in until] if until else tape.graph.outputs
        targets = [tape.after.get(value, value) for value in targets]
        inner = () if until else self.tape.inner  # what caches in the output hold
        try:
            wanted = [*targets, *(value for value in inner if value >= 0)]
            made = execute(tape, plan(tape, places, wanted), edits, on_value=self._sized)
        except (DivergenceError, RuntimeError):  # a call that now fails: the network may catch that, or not make it
            if inside or any("//" in self._address(what.site) for what in chain):
                raise
            return self._live(chain, until)
        if until:
            whole = [self.locate(site).unfolded(made[value]) for site, value in zip(until, targets, strict=True)]
            output: Any = tuple(self._part(site, value) for site, value in zip(until, whole, strict=True))
        else:
            output = _rebuild(self.output, [made[value] for value in targets], [made.get(value) for value in inner])
        receipt = receipts(fired)
        return Trace(
            self.net, self.tape, self.args, self.kwargs, output, chain, receipt, False, {}, self._tapes, self._lifted
        )

    def _sized(self, value: int, made: Tensor) -> None:
        """Raises DivergenceError for a value of another size than recorded: what follows has the old one baked in."""
        wanted = self.graph.values[value].shape if value < len(self.graph.values) else made.shape
        if made.shape != wanted:
            raise DivergenceError(
                f"'{self.graph.site(value)}' has shape {tuple(made.shape)} where the recording has {wanted}, so the "
                "network may go on otherwise; run it live instead of replaying it."
            )

    def _live(self, chain: tuple[Intervention, ...], until: Sequence[str | Site] | None) -> Trace:
        found = self.net.run_live(self, chain)
        if until:
            found.output = tuple(found.value(site) for site in until)
        return found

    def _find(self, tape: Tape, address: str) -> tuple[int, int]:
        """A raw address in this run's tape or an opened one, where an opened op is gone but its values remain."""
        if address.startswith("derived:"):
            what, source = address.removeprefix("derived:").split("<")
            raise SiteError(f"'{what}' is derived and can only be read from a trace; edit '{source}' instead.")
        value = self.graph.addresses.get(address)
        return tape.graph.find(address) if value is None else (value, 0)

    def _address(self, site: str | Site) -> str:
        return self.locate(site).address

    def _part(self, site: str | Site, whole: Tensor) -> Tensor:
        axes = self.locate(site).axes or tuple(map(str, range(whole.ndim)))
        return take(whole, indices(Site.parse(site), axes, tuple(whole.shape)))

    def _edits(
        self, chain: Sequence[Intervention], inside: set[str]
    ) -> tuple[Tape, list[Place], list[Callable[[Tensor], Tensor]], list[Callable[[], Fired]]]:
        """The tape, places, edit functions and receipts of a chain of interventions."""
        found = [self.locate(what.site) for what in chain]
        outer = {where.address.split("//")[0] for where in found if "//" in where.address}
        tape = self.tape_with(outer | inside)
        places, edits, receipts = [], [], []
        for what, where in zip(chain, found, strict=True):
            check_edited(self, where.address)
            value, after = self._find(tape, where.address)
            shape = tape.graph.values[value].shape
            shape = (shape[0] // where.fold, where.fold, *shape[1:]) if where.fold else shape
            axes = where.axes or tuple(map(str, range(len(shape))))
            picked = indices(what.site, axes, shape)
            source = self._source(what, shape)
            edit, receipt = _with_receipt(editor(what, picked, source, _batch_axis(axes)), what, where)
            places.append(Place(value, after))
            edits.append(edit)
            receipts.append(receipt)
        return tape, places, edits, receipts

    def _source(self, what: Intervention, shape: tuple[int, ...]) -> Tensor | None:
        if not isinstance(what.arg, Trace):
            return None
        found = what.arg.locate(what.site)
        source = found.unfolded(what.arg._whole(found))
        other, batch = tuple(source.shape), _batch_axis(found.axes)
        rows, own = other[batch : batch + 1], shape[batch : batch + 1]
        rest = other[:batch] + other[batch + 1 :]
        if rest != shape[:batch] + shape[batch + 1 :] or (what.kind == "patch" and rows not in ((1,), own)):
            raise InputError(
                f"'{what.site.name}' has shape {tuple(source.shape)} in the source run and {shape} here; "
                "record both runs on inputs of the same shape."
            )
        return source

    def _prove(self) -> None:
        if self.tape.assumed:
            self.net.check_weights()
            self.tape = proven(self)

    def _check_weights(self) -> None:
        self._prove()
        self.net.check_weights()
        for value, seal in self.tape.seals.items():
            if seal.broken():
                raise DivergenceError(
                    f"'{self.graph.site(value)}' changed since this run was recorded; record it again."
                )


def _with_receipt(
    edit: Callable[[Tensor], Tensor], what: Intervention, where: Found
) -> tuple[Callable[[Tensor], Tensor], Callable[[], Fired]]:
    times, change = 0, 0.0

    def run(value: Tensor) -> Tensor:
        nonlocal times, change
        new = edit(where.unfolded(value))
        new = new.flatten(0, 1) if where.fold else new
        times += 1
        if value.numel() and not torch._C._functorch.is_batchedtensor(new):
            new = _laid_out(new, value)
            before, after = value.detach(), new.detach()
            moved = before != after if value.dtype == torch.bool else (after - before).abs()
            largest = float(moved.max())
            change = largest if largest != largest else max(change, largest)  # NaN is a change that stays
        return new

    def fired() -> Fired:
        note = "" if times else "the site does not reach what was asked for, so the edit changed nothing"
        return Fired(str(what.site), what.kind, times, change, note)

    return run, fired


def _batch_axis(axes: tuple[str, ...]) -> int:
    """The axis of examples: the first, unless names say otherwise."""
    return axes.index("batch") if "batch" in axes else 0


def _laid_out(new: Tensor, value: Tensor) -> Tensor:
    """An edited value in the memory layout of what it replaces, as torch's kernels round differently for others."""
    strides = value.stride()
    if new.shape != value.shape or new.stride() == strides or overlaps_itself(value):
        return new
    return torch.empty_strided(new.shape, strides, dtype=new.dtype, device=new.device).copy_(new)


def receipts(fired: Sequence[Callable[[], Fired]]) -> tuple[Fired, ...]:
    """The receipts of a run's edits. Raises DivergenceError for an edit that was made more than once."""
    found = tuple(fire() for fire in fired)
    if twice := [receipt for receipt in found if receipt.times > 1]:
        raise DivergenceError(
            f"The edit '{twice[0].kind}' at '{twice[0].site}' was made {twice[0].times} times in one run, which is a "
            "fault of the recording, for a site is one value of one call; report it with the output of cutaway.check."
        )
    return found


def _is_sequence(first: Tensor | None) -> bool:
    """Whether the second axis of an input counts positions: ids [batch, pos] or vectors [batch, pos, width]."""
    return first is not None and (first.ndim == 3 or (first.ndim == 2 and not first.is_floating_point()))


def main_output(output: Any) -> Tensor:
    """The output named `logits`, else the first floating point tensor; raises InputError when there is none."""
    named = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if isinstance(named, Tensor):
        return named
    for tensor in tensors(output):
        if tensor.is_floating_point() or tensor.is_complex():
            return tensor
    kind = type(output).__name__
    raise InputError(f"The network returned no floating point tensor ({kind}), so there is no output to measure.")


def _rebuild(output: Any, made: list[Tensor], inner: Sequence[Tensor | None]) -> Any:
    """An output with other tensors: `made` in its containers, or `inner` for all of them, those in objects too."""
    if len(held := within(output)) == len(inner):  # else nothing is held in objects, or the caller changed the output
        found = {id(old): old if new is None else new for old, new in zip(held, inner, strict=True)}
        # A tensor of its own for each, so that the copy can take the place of the output in another replay.
        return fresh(output, lambda old: found[id(old)].view_as(found[id(old)]) if id(old) in found else old)
    queue = iter(made)
    return swap(output, Tensor, lambda tensor: next(queue))
