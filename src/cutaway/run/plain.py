"""The network by plain PyTorch: the reference that a recording is compared with.

Nothing of the recorder is used here but the promise to put things back: the module is called as its user calls it, with
an ordinary forward hook on one of its modules or a write into one of its parameters where an edit is to be imitated.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointFunction

from .structure import fresh, swap, within
from .untouched import untouched

Change = Callable[[Tensor], Tensor]


class Plain:
    """A module and its inputs, to be run without a recorder, each time from the same state."""

    def __init__(
        self,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        generators: Sequence[torch.Generator] = (),
    ) -> None:
        self.module = module
        self.args = args
        self.kwargs = kwargs
        self.generators = generators
        held = [*module.parameters(), *module.buffers()]
        held += within([vars(inner) for inner in module.modules()])  # in caches of its own, too
        self._saved = [(tensor, tensor.detach().clone()) for tensor in {id(tensor): tensor for tensor in held}.values()]
        self._leaves = {id(tensor) for tensor in held if not tensor.requires_grad}

    def run(
        self,
        read: Callable[[Any], Any] = fresh,
        *,
        at: tuple[str, int] | None = None,
        change: Change | None = None,
        parameter: str = "",
        inputs: Change | None = None,
    ) -> Any:
        """`read` of what the module returns. `change` is made to what the call `at` (path, count) returns, or to a
        parameter; `inputs` to every tensor given."""
        args, kwargs = fresh((self.args, self.kwargs))
        if inputs is not None:
            args, kwargs = swap((args, kwargs), Tensor, inputs)
        with ExitStack() as stack:
            stack.enter_context(self._from_the_same_state())
            stack.enter_context(untouched(self.module))
            stack.enter_context(torch.enable_grad())
            stack.enter_context(_checkpoints_inlined())
            if "torch._dynamo" in sys.modules:  # compiled code does not see hooks that come later
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            if change is not None and at is not None:
                hook = _on_call(at[1], change)
                # Before hooks of the user's own: a module's value is what its forward returns.
                stack.callback(self.module.get_submodule(at[0]).register_forward_hook(hook, prepend=True).remove)
            if change is not None and parameter:
                tensor = self.module.get_parameter(parameter)
                tensor.data.copy_(change(tensor.data.clone()))
            return read(self.module(*args, **kwargs))

    @contextmanager
    def _from_the_same_state(self) -> Iterator[None]:
        """Put back what a run writes into buffers, parameters and tensors in attributes."""
        versions = [tensor._version for tensor, _ in self._saved]
        states = [generator.get_state() for generator in self.generators]
        try:
            yield
        finally:
            for generator, state in zip(self.generators, states, strict=True):
                generator.set_state(state)
            for (tensor, content), version in zip(self._saved, versions, strict=True):
                if tensor._version != version or not same(tensor.detach(), content):
                    tensor.data.copy_(content)
                    torch._C._autograd._unsafe_set_version_counter((tensor,), (version,))
                if tensor.requires_grad and id(tensor) in self._leaves and not tensor._is_view():
                    tensor.detach_()  # a gradient led through what was written


def same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same numbers, sparse ones too."""
    if one.layout == torch.strided:
        return torch.equal(one, other)
    return one.shape == other.shape and torch.equal(one.to_dense(), other.to_dense())


def _on_call(count: int, change: Change) -> Callable[[nn.Module, Any, Any], Any]:
    """A forward hook that changes what the call number `count` returns."""
    seen = 0

    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        nonlocal seen
        seen += 1
        return swap(output, Tensor, change) if seen == count + 1 else None

    return hook


@contextmanager
def _checkpoints_inlined() -> Iterator[None]:
    """Re-entrant checkpointing run as what it stands for: `autograd.grad` cannot go through it, and hooks run twice."""
    setattr(CheckpointFunction, "apply", staticmethod(lambda function, preserve, *args: function(*args)))  # noqa: B010
    try:
        yield
    finally:
        delattr(CheckpointFunction, "apply")
