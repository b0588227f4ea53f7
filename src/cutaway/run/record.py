"""Recording: run a network once with every torch call written to a tape, editing values on the way if asked to.

The mode and the hooks are alive only during the call. Function modes are above autograd, so what is recorded is the
network as its author wrote it; what bypasses them is caught by `watching`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..errors import CutawayError, ModelError
from .calls import Kind, kind_of
from .collecting import uncollected
from .keep import Checkpoints, Kept
from .structure import swap, tensors
from .tape import Logger, Tape
from .targets import targets as targets_of
from .untouched import Seal, Snapshot, untouched
from .watching import Edits, edited, watching


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
        if kind.plain and not self.edits and "out" not in kwargs:
            out = func(*args, **kwargs)
            if kind.name == "grad" and isinstance(out, Tensor) and self.log.knows(out):
                return out  # what a tensor holds as its gradient was made by a call before
            if isinstance(out, Tensor) or (type(out) is not torch.Size and next(tensors(out), None) is not None):
                self.log.log(kind, func, args, kwargs, self.log.pack(args, kwargs), out, [])
            return out
        if kind.parts is not None:
            if kind.name == "backward":
                kwargs = {**kwargs, "alive": self.log.alive()}
                self.log.tape.pure = False
            with self:
                return kind.parts(*args, **kwargs)
        return self.run(kind, func, args, kwargs)

    def run(self, kind: Kind, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Make the call and log it."""
        log = self.log
        targets = targets_of(kind, args, kwargs)
        versions = []
        if targets:
            log.prepare_write([tensor for _, tensor in targets])
            versions = [tensor._version for _, tensor in targets]
        packed = log.pack(args, kwargs) if targets else None
        source = (kwargs.get("generator") or torch.default_generator) if kind.random else None
        rng = source.get_state() if source is not None else None
        out = func(*args, **kwargs)
        if source is not None and rng is not None:
            if torch.equal(rng, source.get_state()):
                rng = None  # it drew nothing: attention without dropout, say
            elif source is not torch.default_generator:
                log.drew(source, rng)
        if not targets and not kind.guard and not isinstance(out, (Tensor, tuple, list)):
            return out
        if type(out) is torch.Size:
            return out
        if kind.name == "grad" and isinstance(out, Tensor) and log.knows(out):
            return out
        packed = packed or log.pack(args, kwargs)
        if isinstance(kwargs.get("out"), (tuple, list)):
            log.tape.problems.append(f"'{log.address_next(kind.name)}' writes into several tensors through out=")
        pairs = zip(targets, versions, strict=True)
        writes = [target for target, version in pairs if kind.hidden or target[1]._version != version]
        if not writes and not kind.guard and next(tensors(out), None) is None:
            return out
        if self.edits:
            out = edited(self.edits, log, kind.name, out, writes, packed[2])
        log.log(kind, func, args, kwargs, packed, out, writes, rng)
        return out


def record_tape(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    keep: Kept | Checkpoints | bool = True,
    edits: Edits | None = None,
    snapshot: Snapshot | None = None,
    given: Any = None,
) -> tuple[Tape, Any]:
    """Run `model(*args, **kwargs)` once and return its tape and its output; `snapshot` is of the model as it is now.

    What the run writes into its arguments stays there, but for what they share with `given`, the caller's own.

    Raises ModelError when the forward pass raises; the model and torch are as before in any case.
    """
    mode = _Mode(Logger(keep), edits or {})
    log, graph = mode.log, mode.log.tape.graph
    log.named = _named(model)
    with torch.inference_mode(False):
        args, kwargs = _edit_leaves(_owned((args, kwargs)), mode.edits)
        log.held = _holder((model, args, kwargs))
        for place, tensor in enumerate(tensors((args, kwargs))):
            graph.inputs.append(log.leaf(tensor, "input", str(place)))
        try:
            with uncollected(), untouched(model, snapshot) as drawn, torch.enable_grad(), watching(mode, model), mode:
                out = model(*args, **kwargs)
            log.tape.pure = log.tape.pure and not drawn
            out = log.settled(out, given, (args, kwargs))
        except CutawayError:
            raise
        except Exception as error:
            inner = (
                log.failed[1]
                if log.failed is not None and log.failed[0] is error
                else graph.modules[log.stack[-1]].name
            )
            where = inner or type(model).__name__
            first = (str(error).strip() or "no message").splitlines()[0]
            raise ModelError(
                f"The forward pass of {type(model).__name__} failed in '{where}': {type(error).__name__}: {first}"
            ) from error
        finally:
            log.undo_writes()
    graph.modules[0].last = len(graph.ops)
    for value, tensor in log.tape.leaves.items():
        if graph.values[value].kind == "buffer":
            log.tape.seals[value] = Seal(tensor)
    return log.tape, out


def _named(model: nn.Module) -> dict[int, tuple[str, str]]:
    """The kind and the first name of every parameter and buffer, by identity."""
    named: list[tuple[Tensor, str, str]] = [(tensor, "param", name) for name, tensor in model.named_parameters()]
    named += [(tensor, "buffer", name) for name, tensor in model.named_buffers()]
    return {id(tensor): (kind, name) for tensor, kind, name in reversed(named)}


def _owned(tree: Any) -> Any:
    """Inputs in which tensors made in inference mode, which know no versions and no gradients, are copied."""
    return swap(tree, Tensor, lambda tensor: tensor.clone() if tensor.is_inference() else tensor)


def _holder(roots: tuple[Any, ...]) -> Callable[[Tensor], bool]:
    """Whether a tensor is held by the model or the inputs, in an attribute or container; looked up when first asked."""
    found: set[int] = set()

    def holds(tensor: Tensor) -> bool:
        if not found:
            waiting, seen = list(roots), set[int]()
            while waiting and len(seen) < 200_000:
                item = waiting.pop()
                if id(item) in seen or isinstance(item, (str, int, float, type(None), type)):
                    continue
                seen.add(id(item))
                if isinstance(item, Tensor):
                    found.add(id(item))
                elif isinstance(item, dict):
                    waiting += item.values()
                elif isinstance(item, (list, tuple, set)):
                    waiting += item
                else:
                    waiting += getattr(item, "__dict__", {}).values()
        return id(tensor) in found

    return holds


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
