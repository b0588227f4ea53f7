"""The zoo: every network that the parametrised tests run on, each recorded once."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from entry import Entry, first
from hugging_face import HUGGING_FACE
from plain import PLAIN
from torch import Tensor, nn

import cutaway as cw
from cutaway.run.network import Network
from cutaway.run.trace import Trace

ZOO: dict[str, Entry] = {entry.name: entry for entry in (*PLAIN, *HUGGING_FACE)}


@dataclass
class Case:
    """An entry's module, opened and recorded, with its inputs; `plain` is what the untouched module gives."""

    entry: Entry
    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    plain: Tensor
    net: Network
    trace: Trace

    def inputs(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Fresh copies of the inputs, as some networks write into theirs."""
        return clones(self.args), clones(self.kwargs)

    def other(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Other inputs of the same shapes."""
        torch.manual_seed(5)
        return self.entry.inputs()

    def run_plain(
        self, hooks: dict[str, Callable[[Tensor], Tensor]] | None = None, other: bool = False, frozen: bool = False
    ) -> Any:
        """The output of an equal module that was never opened, with plain forward hooks that change first outputs.

        `frozen`: its parameters require no gradient, as in a recording; torch chooses other kernels for some ops then.
        """
        module = self.entry.make(twin=True)[0].requires_grad_(not frozen)
        args, kwargs = self.other() if other else self.inputs()
        torch.manual_seed(3)
        with hooked(module, hooks or {}):
            return module(*args, **kwargs)


@cache
def case(name: str) -> Case:
    """An entry, built, run once plainly, opened and recorded."""
    entry = ZOO[name]
    module, args, kwargs = entry.make()
    found = Case(entry, module, args, kwargs, torch.empty(0), cw.open(module), None)  # type: ignore[arg-type]
    found.plain = first(found.run_plain(frozen=True)).detach()
    torch.manual_seed(3)
    args, kwargs = found.inputs()
    found.trace = found.net.record(*args, **kwargs)
    return found


@contextmanager
def hooked(module: nn.Module, hooks: dict[str, Callable[[Tensor], Tensor]]):
    """Plain forward hooks that change the first floating point output of modules."""
    modules = dict(module.named_modules())

    def hook(change: Callable[[Tensor], Tensor]):
        return lambda mod, args, out: replaced(out, change)

    handles = [modules[name].register_forward_hook(hook(change)) for name, change in hooks.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def replaced(out: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """An output with its first tensor changed."""
    if isinstance(out, Tensor):
        return change(out)
    return type(out)([replaced(out[0], change), *out[1:]])


def clones(tree: Any) -> Any:
    """A copy of nested inputs."""
    if isinstance(tree, Tensor):
        return tree.clone()
    if isinstance(tree, dict):
        return {key: clones(value) for key, value in tree.items()}
    return type(tree)(clones(item) for item in tree) if isinstance(tree, (list, tuple)) else tree


def hookable(found: Case, count: int = 4) -> list[str]:
    """Up to `count` modules, spread over the run, that ran once and whose first output is one floating point tensor."""
    seen: dict[str, int] = {}

    def note(name: str):
        def hook(module: nn.Module, args: Any, out: Any) -> None:
            out = out[0] if isinstance(out, (tuple, list)) and out else out
            good = isinstance(out, Tensor) and out.is_floating_point()
            seen[name] = seen.get(name, 0) + (1 if good else 9)

        return hook

    module = found.entry.make(twin=True)[0]
    for name, inner in module.named_modules():
        if name:
            inner.register_forward_hook(note(name))
    args, kwargs = found.inputs()
    with torch.no_grad():
        module(*args, **kwargs)
    names = [name for name, times in seen.items() if times == 1]
    step = max(len(names) // count, 1)
    return names[::step][:count]


def error(got: Tensor, want: Tensor) -> float:
    """The largest difference, relative to the largest wanted number."""
    assert got.shape == want.shape, f"{tuple(got.shape)} where {tuple(want.shape)} was wanted"
    assert torch.isfinite(want).all()
    if got.dtype != want.dtype:
        return float("inf")
    scale = want.abs().max().item() or 1.0
    return (got.detach().double() - want.detach().double()).abs().max().item() / scale if want.numel() else 0.0
