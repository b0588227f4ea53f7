"""What a recorder must see beside torch functions: module calls, and the calls that bypass function modes.

`torch.autograd.Function.apply` and compiled TorchScript run without asking a function mode. Both are caught here
while a recording lasts and logged as one op each; re-entrant checkpointing, which is such a Function, is run as its
parts.
"""

from __future__ import annotations

import multiprocessing.process
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks
from torch.utils.checkpoint import CheckpointFunction

from ..errors import ModelError
from ..graph import ModuleCall
from .calls import Kind
from .structure import swap, tensors
from .tape import Logger, Writes
from .transforms import ENTRIES, PULLBACK, as_one_call

Edits = dict[str, list[Callable[[Tensor], Tensor]]]


class Watch(Protocol):
    """The recording that is going on: its log, its edits, the thread it watches, and whether it looks away."""

    log: Logger
    edits: Edits
    thread: int
    paused: bool


@contextmanager
def watching(mode: Watch, model: nn.Module) -> Iterator[None]:
    """Module hooks and patches, alive inside the block and removed after it whatever happened."""
    calls = _Calls(mode, model)
    with ExitStack() as stack:
        stack.callback(hooks.register_module_forward_pre_hook(calls.entered).remove)
        stack.callback(hooks.register_module_forward_hook(calls.left, always_call=True).remove)
        _patched(stack, torch.autograd.Function, "apply", _function_apply(mode))
        for compiled in (torch._C.ScriptFunction, torch._C.ScriptMethod):
            _patched(stack, compiled, "__call__", _compiled_call(mode, compiled.__call__))
        for owner, entry, name in ENTRIES:
            _patched(stack, owner, entry, _transform(mode, name, getattr(owner, entry)))
        for process, entry in ((subprocess.Popen, "__init__"), (multiprocessing.process.BaseProcess, "start")):
            _patched(stack, process, entry, _noted(mode, getattr(process, entry)))
        _patched(stack, *PULLBACK, _refused(mode, getattr(*PULLBACK)))
        if "torch._dynamo" in sys.modules:
            stack.enter_context(warnings.catch_warnings())  # of hooks that fire twice, which are told apart here
            warnings.filterwarnings("ignore", ".*when there are global hooks on modules.*")
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield


def edited(edits: Edits, log: Logger, name: str, out: Any, writes: Writes, inputs: list[int]) -> Any:
    """What an op returned with the edits asked for on its outputs; what it wrote in place is edited in place."""
    address = log.address_next(name)
    for port, tensor in enumerate(log.outputs(out, writes, inputs)):
        found = edits.get(f"{address}:{port}", [])
        found = found if port else found or edits.get(address, [])
        if not found:
            continue
        value = _through(found, tensor)
        if any(tensor is target for _, target in writes):
            tensor.copy_(value)
        else:
            out = _exchanged(out, tensor, value)
    return out


def _exchanged(tree: Any, old: Tensor, new: Tensor) -> Any:
    """A structure with one tensor in another's place."""
    return swap(tree, Tensor, lambda tensor: new if tensor is old else tensor)


def _through(edits: list[Callable[[Tensor], Tensor]], value: Tensor) -> Tensor:
    """A value after its edits, on memory of its own: what follows may write into it."""
    value = value.clone()
    for edit in edits:
        value = edit(value)
    return value.clone()


class _Calls:
    """Module calls on the log's stack, by global hooks."""

    def __init__(self, mode: Watch, model: nn.Module) -> None:
        self.mode = mode
        self.log = mode.log
        self.names = {id(module): name for name, module in model.named_modules()}
        self.counts: dict[str, int] = {}
        self.open: list[int] = []

    def _blind(self) -> bool:
        return threading.get_ident() != self.mode.thread or self.mode.paused

    def entered(self, module: nn.Module, args: Any) -> None:
        """Before a module's forward: put its call on the stack."""
        if self._blind():
            return
        log, graph = self.log, self.log.tape.graph
        path = self.names.get(id(module))
        if path is None:
            path = f"{graph.modules[log.stack[-1]].path}.~{type(module).__name__}".removeprefix(".")
        count = self.counts.get(path, 0)
        self.counts[path] = count + 1
        if path == "" and count == 0:
            graph.modules[0].cls = type(module).__name__
            return
        known = tuple(log.value(tensor) for tensor in tensors(args))
        self.open.append(id(module))
        log.stack.append(len(graph.modules))
        graph.modules.append(ModuleCall(path, count, type(module).__name__, log.stack[-2], len(graph.ops), -1, known))

    def left(self, module: nn.Module, args: Any, out: Any) -> Any:
        """After a module's forward, also one that raised: take its call off the stack and edit what it returned."""
        if self._blind() or id(module) not in self.open:
            return None
        log, graph = self.log, self.log.tape.graph
        error = sys.exc_info()[1]
        if error is not None and (log.failed is None or log.failed[0] is not error):
            log.failed = (error, graph.modules[log.stack[-1]].name)
        while True:  # calls above it on the stack were left without a hook
            inner = self.open.pop()
            call = graph.modules[log.stack.pop()]
            call.last = len(graph.ops)
            if inner == id(module):
                break
        found = self.mode.edits.get(call.name, [])
        made = list(tensors(out))
        if found and made:
            value = _logged(self.mode, "edit", lambda given: _through(found, given), (made[0],), {})
            out = _exchanged(out, made[0], value)
            made = list(tensors(out))
        call.outputs = tuple(log.value(tensor) for tensor in made)
        return out if found else None


def _patched(stack: ExitStack, owner: Any, name: str, new: Any) -> None:
    """Set an attribute of a class until the stack unwinds."""
    old = owner.__dict__[name]
    setattr(owner, name, new)
    stack.callback(setattr, owner, name, old)


def _logged(mode: Watch, name: str, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Make a call as one op, looking away from what happens in it."""
    log = mode.log
    mode.paused = True
    try:
        packed = log.pack(args, kwargs)
        out = call(*args, **kwargs)
        if mode.edits:
            out = edited(mode.edits, log, name, out, [], packed[2])
        log.log(Kind(name, False, -1, False, False, None), call, args, kwargs, packed, out, [])
        log.tape.pure = False
        return out
    finally:
        mode.paused = False


def _function_apply(mode: Watch) -> Any:
    """`Function.apply` that logs the call; a class method, as the original is."""
    original = torch.autograd.Function.__dict__["apply"]

    def apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
        call = original.__get__(None, cls)
        if mode.paused or threading.get_ident() != mode.thread:
            return call(*args, **kwargs)
        if cls is CheckpointFunction:
            return args[0](*args[2:])
        return _logged(mode, cls.__name__, call, args, kwargs)

    return classmethod(apply)


def _noted(mode: Watch, original: Callable[..., Any]) -> Callable[..., Any]:
    """The start of another process, which is said: what comes back from it no tape shows."""

    def call(*args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() == mode.thread:
            inner = mode.log.tape.graph.modules[mode.log.stack[-1]].name
            where = f"'{inner}'" if inner else "the network"
            said = f"{where} starts another process, and a replay takes what comes from it as fixed"
            mode.log.tape.problems += [said] if said not in mode.log.tape.problems else []
        return original(*args, **kwargs)

    return call


def _transform(mode: Watch, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    """The entry of a torch.func transform, logged as one op."""

    def call(function: Any, *args: Any, **kwargs: Any) -> Any:
        if mode.paused or threading.get_ident() != mode.thread:
            return original(function, *args, **kwargs)
        inner, held = as_one_call(original, function)
        return _logged(mode, name, inner, (held, *args), kwargs)

    return call


def _refused(mode: Watch, original: Callable[..., Any]) -> Callable[..., Any]:
    """The start of torch.func.vjp and jacrev, whose second half is a function that lives on wrapped tensors."""

    def call(*args: Any, **kwargs: Any) -> Any:
        if mode.paused or threading.get_ident() != mode.thread:
            return original(*args, **kwargs)
        raise ModelError(
            "The network uses torch.func.vjp or jacrev, which cannot be recorded; use torch.func.grad, jacfwd or "
            "torch.autograd.grad there."
        )

    return call


def _compiled_call(mode: Watch, original: Callable[..., Any]) -> Callable[..., Any]:
    """The call of a TorchScript function or method, logged as one op."""

    def call(compiled: Any, *args: Any, **kwargs: Any) -> Any:
        if mode.paused or threading.get_ident() != mode.thread:
            return original(compiled, *args, **kwargs)
        name = str(getattr(compiled, "name", "script")).rpartition(".")[2]
        return _logged(mode, name, lambda *a, **k: original(compiled, *a, **k), args, kwargs)

    return call
