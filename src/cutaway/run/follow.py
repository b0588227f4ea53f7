"""Following: record a run again by the graph of an earlier one.

Most of what recording costs is writing the graph down. A network that ran before on inputs of the same form, whose
modules hold what they held then, and whose run neither wrote in place nor drew numbers, makes the same calls again
unless something else that Python gives to them is another. Such a run is followed instead: each call is compared with
the one expected (the same function on the same values and numbers), and what is to be kept is kept. When only a few
sites are kept, the calls of their modules alone are watched, and the rest of the network runs as it would without a
recorder; that the graph holds for the rest too is proven when it is first used (proof.py). A run that goes another way
is given up and recorded anew.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks
from torch.overrides import TorchFunctionMode

from ..graph import Graph, ModuleCall
from .calls import kind_of
from .keep import Kept
from .memory import storage_of
from .replay import agrees
from .structure import ATOMS, Ref, swap, tensors, within
from .tape import Tape
from .targets import targets
from .untouched import Seal, Snapshot, untouched

_NOT_TENSORS = (torch.Size, torch.dtype, torch.device, int, float, bool, str, type(None))
_MOST_WINDOWS = 16  # modules watched one by one; beyond that the whole run is


@dataclass(frozen=True, slots=True)
class _Step:
    """A call as it is expected: its function, the values of its arguments, what else it is given (`plain` by position,
    `words` by name), and the values and shape of its results."""

    func: Any
    count: int
    slots: list[tuple[int, int]] | None
    reads: tuple[int, ...]
    plain: tuple[tuple[int, Any], ...]
    words: dict[str, Any]
    results: tuple[int, ...]
    shape: list[tuple[int, ...]]
    answer: Any


@dataclass(eq=False)
class Guide:
    """A recorded run whose calls another run can be expected to make: its tape without values, and the model then."""

    tape: Tape
    snapshot: Snapshot
    steps: list[_Step] = field(default_factory=list)
    windows: dict[Any, tuple[list[ModuleCall], frozenset[int]]] = field(default_factory=dict)
    guarded: bool = False
    plans: dict[Any, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, tape: Tape, snapshot: Snapshot) -> Guide | None:
        """The guide that a recording gives, if the next run can be expected to be the same."""
        if not tape.pure or tape.problems or not snapshot.same():
            return None
        held = dict.fromkeys(tape.graph.inputs)
        leaves = {value: tensor for value, tensor in tape.leaves.items() if value not in held}
        asked = [value for op in tape.graph.ops if not op.outputs for value in op.inputs]
        guarded = bool(asked) and not tape.graph.cone(set(tape.graph.inputs)).isdisjoint(asked)
        return cls(Tape(tape.graph, tape.calls, leaves, {}, inner=tape.inner), snapshot, guarded=guarded)

    def expected(self) -> list[_Step]:
        """The calls in order, made when first asked for."""
        if not self.steps:
            values = self.tape.graph.values
            for op, call in zip(self.tape.graph.ops, self.tape.calls, strict=True):
                shape = [values[value].shape for value in op.outputs[:1]]
                reads = tuple(ref.id for ref in _refs((call.args, call.kwargs)))
                plain = tuple((at, item) for at, item in enumerate(call.args) if not isinstance(item, Ref))
                given = (call.func, len(call.args), call.slots, reads, plain, call.kwargs)
                self.steps.append(_Step(*given, call.results, shape, call.answer))
        return self.steps


def form(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What two calls of a network must have in common for one to guide the other, or None for unknown objects."""
    if torch.overrides._get_current_function_mode_stack():
        return None
    switches = (torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu"), torch.get_default_dtype())
    watched = (*hooks._global_forward_pre_hooks, *hooks._global_forward_hooks)
    found = (_form(args), _form(kwargs), switches, watched)
    try:
        hash(found)
    except TypeError:
        return None
    return found


def _form(tree: Any) -> Any:
    if isinstance(tree, Tensor):
        plain = type(tree) is Tensor and tree.layout is torch.strided
        return (tuple(tree.shape), tree.stride(), tree.dtype, tree.device.type) if plain else [None]
    if isinstance(tree, (list, tuple)):
        return (type(tree), tuple(_form(item) for item in tree))
    if isinstance(tree, dict):
        return (type(tree), tuple((key, _form(item)) for key, item in tree.items()))
    return (type(tree), tree) if type(tree) in ATOMS else [None]  # a list has no hash


def follow(
    model: nn.Module, guide: Guide, args: tuple[Any, ...], kwargs: dict[str, Any], keep: Kept | bool
) -> tuple[Tape, Any] | None:
    """`model(*args, **kwargs)` and its tape by a guide; None when the run went another way than the guide."""
    graph = guide.tape.graph
    tape = Tape(graph, guide.tape.calls, {}, {}, inner=guide.tape.inner)
    given = list(tensors((args, kwargs)))
    tape.leaves = dict(zip(graph.inputs, given, strict=True)) | guide.tape.leaves
    watchers = _watchers(guide, tape, keep)
    buffers = [(value, tensor) for value, tensor in guide.tape.leaves.items() if graph.values[value].kind == "buffer"]
    with torch.inference_mode(False), untouched(model, guide.snapshot), torch.enable_grad(), _alike():
        before = [tensor._version for _, tensor in buffers]
        with ExitStack() as stack:
            for watcher in watchers:
                watcher.begin(model, stack)
            try:
                out = model(*args, **kwargs)
            except Exception:  # noqa: BLE001 - recorded anew, which fails again and says where
                return None
            finally:
                for watcher in watchers:
                    watcher.undo()
    if any(watcher.lost or watcher.at != watcher.last for watcher in watchers):
        return None
    made = list(tensors(out))
    shapes = [graph.values[value].shape for value in graph.outputs]
    if [tensor.shape for tensor in made] != shapes or [tensor._version for _, tensor in buffers] != before:
        return None
    held = within(out) if tape.inner else []
    if len(held) != len(tape.inner):
        return None
    for value, tensor in (*zip(graph.outputs, made, strict=True), *zip(tape.inner, held, strict=True)):
        if value >= 0 and value not in tape.leaves:
            tape.kept.setdefault(value, tensor)
    tape.seals = {value: Seal(tensor) for value, tensor in buffers}
    tape.assumed = not any(watcher.wanted is None for watcher in watchers)
    return tape, out


@contextmanager
def _alike() -> Iterator[None]:
    """What a recording turns off: torch's fused attention modules and compiled code."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with ExitStack() as stack:
            if "torch._dynamo" in sys.modules:
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _watchers(guide: Guide, tape: Tape, keep: Kept | bool) -> list[_Watcher]:
    """Who must look on: one for the whole run if everything is kept, one a module call if little is."""
    whole = tape.graph.modules[0]
    if keep is False:
        return [_Watcher(tape, guide.expected(), whole, frozenset())] if guide.guarded else []
    if keep is True:
        return [_Watcher(tape, guide.expected(), whole, None)]
    key = (frozenset(keep.exact), tuple(keep.patterns))
    if key not in guide.windows:
        windows, wanted = _windows(tape.graph, keep)
        guide.windows[key] = ([whole] if guide.guarded else windows), wanted
    windows, wanted = guide.windows[key]
    return [_Watcher(tape, guide.expected(), window, wanted) for window in windows]


def _windows(graph: Graph, keep: Kept) -> tuple[list[ModuleCall], frozenset[int]]:
    """The values to keep, and the module calls in which they are made."""
    asked = {value for address, value in graph.addresses.items() if keep(address)}
    wanted = frozenset(value for value in asked if graph.values[value].op >= 0)
    calls = {graph.ops[graph.values[value].op].module for value in wanted}
    windows = [graph.modules[call] for call in sorted(calls)]
    inner = {id(one) for one in windows for two in windows if one is not two and two.first <= one.first < two.last}
    windows = [window for window in windows if id(window) not in inner]
    if len(windows) > _MOST_WINDOWS or any("~" in window.path or not window.path for window in windows):
        windows = [graph.modules[0]]
    return windows, wanted


class _Watcher(TorchFunctionMode):
    """Compares the calls of one module call with those expected, and keeps values: all of them if `wanted` is None.

    Values are told from one another by identity, which needs them alive; where not everything is kept, the order of
    functions and the shapes of results are compared alone.
    """

    def __init__(self, tape: Tape, steps: list[_Step], window: ModuleCall, wanted: frozenset[int] | None) -> None:
        super().__init__()
        self.tape, self.steps, self.window, self.wanted = tape, steps, window, wanted
        self.at, self.last = window.first, window.last
        self.lost = False
        self._ids = {id(tensor): value for value, tensor in tape.leaves.items()} if wanted is None else {}
        self._model: nn.Module | None = None
        self._seen = 0
        self._saved: list[tuple[Tensor, Tensor]] = []

    def begin(self, model: nn.Module, stack: ExitStack) -> None:
        """Look on from now, or whenever the window's module is called."""
        self._model = model
        if not self.window.path:
            stack.enter_context(self)
            return
        module = model.get_submodule(self.window.path)
        stack.callback(module.register_forward_pre_hook(self._entered).remove)
        stack.callback(module.register_forward_hook(self._left, always_call=True).remove)

    def _entered(self, module: nn.Module, args: Any) -> None:
        if self._seen == self.window.call:
            self.__enter__()
        self._seen += 1

    def _left(self, module: nn.Module, args: Any, out: Any) -> None:
        if self._seen == self.window.call + 1:
            self.__exit__(None, None, None)
            self._seen += 1

    def undo(self) -> None:
        """Put back what an unexpected write reached."""
        with torch.no_grad():
            for live, saved in reversed(self._saved):
                live.copy_(saved)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kind = kind_of(func)
        kwargs = kwargs or {}
        if not kind.plain or "out" in kwargs:
            if kind.parts is not None:
                with self:
                    return kind.parts(*args, **kwargs)
            if written := targets(kind, args, kwargs):
                self.lost = True
                self._save([tensor for _, tensor in written])
            if kind.guard:
                out = func(*args, **kwargs)
                self._compare(func, args, kwargs, ())
                self.lost = self.lost or not agrees(out, self.steps[self.at - 1].answer)
                return out
            if kind.random and not self.lost:
                drawn = torch.get_rng_state()
                out = func(*args, **kwargs)
                self.lost = not torch.equal(drawn, torch.get_rng_state())
                return self._noted(func, args, kwargs, out)
        return self._noted(func, args, kwargs, func(*args, **kwargs))

    def _noted(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
        if isinstance(out, Tensor):
            for item in args:
                if item is out:
                    return out  # handed back as it came in
            if kwargs and any(item is out for item in kwargs.values()):
                return out
            self._compare(func, args, kwargs, (out,))
        elif not isinstance(out, _NOT_TENSORS) and (made := tuple(tensors(out))):
            self._compare(func, args, kwargs, made)
        return out

    def _compare(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], made: tuple[Tensor, ...]) -> None:
        if self.lost or self.at >= self.last:
            self.lost = True
            return
        step = self.steps[self.at]
        self.at += 1
        same = step.func is func or step.func == func
        if not same or len(args) != step.count or [tensor.shape for tensor in made[:1]] != step.shape:
            self.lost = True
            return
        for place, item in step.plain:
            if args[place] is not item and not _same(args[place], item):
                self.lost = True
                return
        if (kwargs or step.words) and not _same(kwargs, step.words):
            self.lost = True
            return
        if self.wanted is not None:
            for value, tensor in zip(step.results, made, strict=False):
                if value in self.wanted:
                    self.tape.kept[value] = tensor
            return
        ids = self._ids
        if step.slots is not None:
            for place, value in step.slots:
                if ids.get(id(args[place])) != value:
                    self.lost = True
                    return
        elif tuple(ids.get(id(tensor)) for tensor in tensors((args, kwargs))) != step.reads:
            self.lost = True
            return
        kept = self.tape.kept
        for value, tensor in zip(step.results, made, strict=False):
            if value >= 0:
                ids[id(tensor)] = value
                kept[value] = tensor

    def _save(self, written: list[Tensor]) -> None:
        """Before a write that was not expected: what it reaches of the model and the inputs."""
        known = {id(live) for live, _ in self._saved}
        storages = {storage_of(tensor) for tensor in written}
        held = self._model or nn.Module()
        for tensor in (*self.tape.leaves.values(), *held.parameters(), *held.buffers()):
            if id(tensor) not in known and storage_of(tensor) in storages:
                self._saved.append((tensor, tensor.detach().clone()))


def _same(now: Any, then: Any) -> bool:
    """Whether an argument is what it was, tensors aside, which are told apart by their values."""
    if isinstance(then, Ref):
        return isinstance(now, Tensor)
    if type(then) in ATOMS:
        return type(now) is type(then) and now == then
    if type(now) is not type(then):
        return False
    if isinstance(then, (list, tuple)):
        return len(now) == len(then) and all(map(_same, now, then))
    if isinstance(then, dict):
        return now.keys() == then.keys() and all(_same(now[key], item) for key, item in then.items())
    if isinstance(then, slice):
        return all(_same(getattr(now, at), getattr(then, at)) for at in ("start", "stop", "step"))
    return bool(now == then)


def _refs(tree: Any) -> list[Ref]:
    found: list[Ref] = []

    def note(ref: Ref) -> Ref:
        found.append(ref)
        return ref

    swap(tree, Ref, note)
    return found
