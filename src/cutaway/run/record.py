"""Recording: run a network once with every torch call written to a tape, editing values on the way if asked to.

The mode and the hooks are alive only during the call. Function modes are above autograd, so what is recorded is the
network as its author wrote it; `torch.autograd.Function.apply` bypasses them and is caught separately.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks
from torch.overrides import TorchFunctionMode

from ..errors import CutawayError, ModelError
from ..graph import ModuleCall
from .calls import Kind, kind_of
from .structure import swap, tensors
from .tape import Logger, Tape
from .untouched import untouched

Edits = dict[str, list[Callable[[Tensor], Tensor]]]


class _Mode(TorchFunctionMode):
    """Sees torch calls and hands them to the logger."""

    def __init__(self, log: Logger, edits: Edits) -> None:
        super().__init__()
        self.log = log
        self.edits = edits
        self.thread = threading.get_ident()
        self.paused = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kind = kind_of(func)
        kwargs = kwargs or {}
        if self.paused or threading.get_ident() != self.thread:
            return func(*args, **kwargs)
        if kind.parts is not None:
            with self:
                return kind.parts(*args, **kwargs)
        return self.run(kind, func, args, kwargs)

    def run(self, kind: Kind, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Make the call and log it."""
        log = self.log
        targets = _targets(kind, args, kwargs)
        versions = []
        if targets:
            log.prepare_write([tensor for _, tensor in targets])
            versions = [tensor._version for _, tensor in targets]
        packed = log.pack(args, kwargs) if targets else None
        rng = torch.get_rng_state() if kind.random else None
        out = func(*args, **kwargs)
        if not targets and not kind.guard and not isinstance(out, (Tensor, tuple, list)):
            return out
        if type(out) is torch.Size:
            return out
        packed = packed or log.pack(args, kwargs)
        writes = [target for target, version in zip(targets, versions, strict=True) if target[1]._version != version]
        if not writes and not kind.guard and next(tensors(out), None) is None:
            return out
        if self.edits and (found := self.edits.get(log.address_next(kind.name))):
            out = _edited(found, out, writes)
        log.log(kind, func, args, kwargs, packed, out, writes, rng)
        return out


def _edited(edits: list[Callable[[Tensor], Tensor]], out: Any, writes: list[tuple[int | str, Tensor]]) -> Any:
    """The op's first output edited; where the op wrote in place, what it wrote is edited."""
    if writes:
        target = writes[0][1]
        for edit in edits:
            target.copy_(edit(target.clone()))
        return out
    first = next(tensors(out))
    value = first
    for edit in edits:
        value = edit(value)
    return swap(out, Tensor, lambda tensor: value if tensor is first else tensor)


def _targets(kind: Kind, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[tuple[int | str, Tensor]]:
    """The tensors a call may write into, as (position or keyword, tensor)."""
    if "out" in kwargs:
        return [("out", tensor) for tensor in tensors(kwargs["out"])][:1]
    if kind.inplace >= 0:
        asked = kwargs.get("inplace", args[kind.inplace] if len(args) > kind.inplace else False)
        if not asked:
            return []
        first = args[0] if args else kwargs.get("input")
        return [(0 if args else "input", first)] if isinstance(first, Tensor) else []
    if not kind.writes:
        return []
    found: list[tuple[int | str, Tensor]] = [(place, item) for place, item in enumerate(args) if isinstance(item, Tensor)]
    found += [(name, item) for name, item in kwargs.items() if isinstance(item, Tensor)]
    return [(place, item) for place, item in found if not item.is_inference()]


@contextmanager
def _watching(mode: _Mode, model: nn.Module, edits: Edits) -> Iterator[None]:
    """Module hooks and the patch of autograd.Function, alive inside the block."""
    log, graph = mode.log, mode.log.tape.graph
    names = {id(module): name for name, module in model.named_modules()}
    calls: dict[str, int] = {}

    def entered(module: nn.Module, args: Any) -> None:
        if threading.get_ident() != mode.thread or mode.paused:
            return
        path = names.get(id(module)) if id(module) in names else f"{graph.modules[log.stack[-1]].path}.~{type(module).__name__}"
        path = path or ""
        count = calls.get(path, 0)
        calls[path] = count + 1
        if path == "" and count == 0:
            graph.modules[0].cls = type(module).__name__
            return
        known = tuple(log.value(tensor) for tensor in tensors(args))
        call = ModuleCall(path, count, type(module).__name__, log.stack[-1], len(graph.ops), -1, known)
        log.stack.append(len(graph.modules))
        graph.modules.append(call)

    def left(module: nn.Module, args: Any, out: Any) -> Any:
        if threading.get_ident() != mode.thread or mode.paused or len(log.stack) < 2:
            return None
        call = graph.modules[log.stack[-1]]
        if call.path and names.get(id(module), call.path) != call.path:
            return None
        if edits and (found := edits.get(call.name)):
            with torch._C.DisableTorchFunction():
                out = _edited(found, out, [])
        else:
            found = None
        log.stack.pop()
        call.last = len(graph.ops)
        made = list(tensors(out))
        if lost := [tensor for tensor in made if not log.knows(tensor) and id(tensor) not in log.named and tensor.numel()]:
            if not found and not (lost[0] is made[0] and not made[0].is_floating_point()):
                log.tape.problems.append(f"'{call.name}' returned a tensor that no recorded torch call made")
        call.outputs = tuple(log.value(tensor) for tensor in made)
        return out if found else None

    apply = torch.autograd.Function.apply

    def caught(cls: Any, *args: Any, **kwargs: Any) -> Any:
        call = apply.__func__.__get__(cls)
        if mode.paused or threading.get_ident() != mode.thread:
            return call(*args, **kwargs)
        mode.paused = True
        try:
            kind = Kind(cls.__name__, False, -1, False, False, None)
            packed = log.pack(args, kwargs)
            out = call(*args, **kwargs)
            if edits and (found := edits.get(log.address_next(kind.name))):
                out = _edited(found, out, [])
            log.log(kind, call, args, kwargs, packed, out, [])
            return out
        finally:
            mode.paused = False

    with ExitStack() as stack:
        stack.callback(hooks.register_module_forward_pre_hook(entered).remove)
        stack.callback(hooks.register_module_forward_hook(left, always_call=False).remove)
        torch.autograd.Function.apply = classmethod(caught)  # type: ignore[assignment,method-assign]
        stack.callback(lambda: setattr(torch.autograd.Function, "apply", apply))
        if "torch._dynamo" in sys.modules:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield


def record_tape(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    keep: Callable[[str], bool] | bool = True,
    edits: Edits | None = None,
) -> tuple[Tape, Any]:
    """Run `model(*args, **kwargs)` once and return its tape and its output.

    Raises ModelError when the forward pass raises; the model and torch are as before in any case.
    """
    log = Logger(keep)
    named = [(parameter, "param", name) for name, parameter in model.named_parameters()]
    named += [(buffer, "buffer", name) for name, buffer in model.named_buffers()]
    log.named = {id(tensor): (kind, name) for tensor, kind, name in reversed(named)}
    mode = _Mode(log, edits or {})
    args, kwargs = _edit_leaves((args, kwargs), edits or {})
    for place, tensor in enumerate(tensors((args, kwargs))):
        log.tape.graph.inputs.append(log.leaf(tensor, "input", str(place)))
    apply = torch.autograd.Function.__dict__.get("apply")
    try:
        with untouched(model), torch.enable_grad(), _watching(mode, model, edits or {}), mode:
            out = model(*args, **kwargs)
    except CutawayError:
        raise
    except Exception as error:
        where = log.tape.graph.modules[log.stack[-1]].name or type(model).__name__
        raise ModelError(
            f"The forward pass of {type(model).__name__} failed in '{where}': {type(error).__name__}: {error}"
        ) from error
    finally:
        if apply is None and "apply" in torch.autograd.Function.__dict__:
            del torch.autograd.Function.apply
        with torch.no_grad():
            for live, saved in reversed(log.restore):
                live.data.copy_(saved)
    log.tape.graph.modules[0].last = len(log.tape.graph.ops)
    log.tape.graph.outputs = [log.value(tensor) for tensor in tensors(out)]
    for value, tensor in zip(log.tape.graph.outputs, tensors(out), strict=True):
        if value not in log.tape.leaves:
            log.tape.kept.setdefault(value, tensor)
    return log.tape, out


def _edit_leaves(tree: Any, edits: Edits) -> Any:
    """Inputs with the edits asked for on `input:k`."""
    place = -1

    def change(tensor: Tensor) -> Tensor:
        nonlocal place
        place += 1
        for edit in edits.get(f"input:{place}", ()):
            tensor = edit(tensor)
        return tensor

    return swap(tree, Tensor, change)
