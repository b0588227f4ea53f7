"""The self-test of an opened network: does what is recorded, replayed and edited agree with the network itself?

The oracle is plain PyTorch: the module run without a recorder, and forward hooks on a few of its modules. A network
that passes is verified; one that does not says where, and its explanations are not to be trusted before that is
understood.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import CutawayError
from .interventions import apply, scale
from .network import Network
from .replay import execute, plan
from .structure import swap
from .trace import Trace, main_output
from .untouched import untouched

TOLERANCE = 1e-5  # relative to the largest number; torch's fused kernels differ by about 1e-6 from their parts


@dataclass(frozen=True)
class Check:
    """Largest relative errors (lower is better): of the recorded output, of a replay of everything, of the gradient and
    of edits against plain hooks. None where the network has no module to hook. `problems` is what cannot be
    followed."""

    parity: float
    replay_error: float
    gradient_error: float | None
    hook_error: float | None
    problems: tuple[str, ...]

    @property
    def verified(self) -> bool:
        """Whether nothing disagrees and nothing happened out of sight."""
        errors = (self.parity, self.replay_error, self.gradient_error, self.hook_error)
        return not self.problems and all(error is None or error <= TOLERANCE for error in errors)

    def __str__(self) -> str:
        errors = {
            "output": self.parity,
            "replay": self.replay_error,
            "gradient": self.gradient_error,
            "edits": self.hook_error,
        }
        shown = ", ".join(f"{name} {'untested' if error is None else f'{error:.1e}'}" for name, error in errors.items())
        return f"{'verified' if self.verified else 'not verified'}: {shown}" + "".join(
            f"\n  {text}" for text in self.problems
        )


def check(net: Network, *inputs: Any, edits: int = 3, **kwargs: Any) -> Check:
    """Record `net` on inputs and compare with the plain module; `edits` modules are scaled by one half, one at a time.

    Raises InputError and ModelError as `record` does. The module is left as it was.
    """
    trace = net.record(*inputs, **kwargs)
    problems = list(trace.tape.problems)
    parity = difference(trace.logits, main_output(_plain(trace)))
    made = execute(trace.tape, plan(trace.tape, [], trace.graph.outputs, recompute=True))
    kept = {value: trace.tape.kept.get(value) for value in trace.graph.outputs}
    replayed = max((difference(made[value], want) for value, want in kept.items() if want is not None), default=0.0)
    paths = _once(trace)
    paths = paths[:: max(len(paths) // max(edits, 1), 1)][:edits]
    hooked: list[float] = []
    gradients: list[float] = []
    for path in paths:
        try:
            hooked.append(_edited(trace, path))
            if (error := _gradient(trace, path)) is not None:
                gradients.append(error)
        except (CutawayError, RuntimeError) as failure:
            problems.append(f"'{path}' could not be compared: {failure}")
    return Check(parity, replayed, max(gradients, default=None), max(hooked, default=None), tuple(problems))


def difference(got: Tensor, want: Tensor) -> float:
    """The largest difference of two tensors, relative to the largest number wanted; infinite where shapes differ."""
    if got.shape != want.shape:
        return float("inf")
    if not want.numel():
        return 0.0
    got, want = got.detach().double(), want.detach().double()
    worst = torch.where((got == want) | (got.isnan() & want.isnan()), 0.0, (got - want).abs()).max().item()
    largest = want[want.isfinite()].abs().max().item() if want.isfinite().any() else 0.0
    return worst / (largest or 1.0)


def _once(trace: Trace) -> list[str]:
    """Paths of modules that ran once and returned one floating point tensor."""
    counts: dict[str, int] = {}
    for call in trace.graph.modules[1:]:
        counts[call.path] = counts.get(call.path, 0) + 1
    values, known = trace.graph.values, dict(trace.net.module.named_modules())
    return [
        call.path
        for call in trace.graph.modules[1:]
        if call.path in known
        and counts[call.path] == 1
        and len(call.outputs) == 1
        and values[call.outputs[0]].dtype.startswith(("float", "bfloat"))
    ]


def _edited(trace: Trace, path: str) -> float:
    """How far a replay that halves a module's output is from a plain hook that does."""
    return difference(
        trace.replay(scale(path, 0.5)).logits, main_output(_plain(trace, path, lambda value: value * 0.5))
    )


def _gradient(trace: Trace, path: str) -> float | None:
    """The same for the gradient of a random direction of the output; None where the output does not depend on it."""
    value = trace.value(path)
    weight = torch.randn(trace.logits.shape, generator=torch.Generator().manual_seed(0)).to(trace.logits)
    found = []
    for replayed in (True, False):
        delta = torch.zeros_like(value).requires_grad_()
        add = delta.add

        def slope(output: Any, delta: Tensor = delta) -> Tensor | None:
            out = main_output(output)
            return torch.autograd.grad((out * weight).sum(), delta, allow_unused=True)[0] if out.requires_grad else None

        try:
            found.append(slope(trace.replay(apply(path, add)).output) if replayed else _plain(trace, path, add, slope))
        except RuntimeError:
            if replayed:
                raise
            return None  # the network itself cannot be differentiated, for it writes over what its gradient needs
    if found[0] is None or found[1] is None:
        return None if found[0] is found[1] else float("inf")
    return difference(found[0], found[1])


def _plain(
    trace: Trace,
    path: str = "",
    change: Callable[[Tensor], Tensor] | None = None,
    read: Callable[[Any], Any] = lambda output: swap(output, Tensor, torch.clone),
) -> Any:
    """`read` of what the module itself returns, with a plain forward hook on one of its modules."""
    module = trace.net.module
    with ExitStack() as stack:
        stack.enter_context(_contents(module))
        stack.enter_context(untouched(module))
        stack.enter_context(torch.enable_grad())
        if change is not None:
            hook = module.get_submodule(path).register_forward_hook(lambda mod, args, out: swap(out, Tensor, change))
            stack.callback(hook.remove)
        args, kwargs = swap((trace.args, trace.kwargs), Tensor, torch.clone)
        return read(module(*args, **kwargs))


@contextmanager
def _contents(module: torch.nn.Module) -> Iterator[None]:
    """Put back what a run writes into buffers, parameters and tensors in attributes."""
    held = [*module.parameters(), *module.buffers()]
    held += [item for inner in module.modules() for item in vars(inner).values() if isinstance(item, Tensor)]
    saved = [(tensor, tensor._version, tensor.detach().clone()) for tensor in held]
    try:
        yield
    finally:
        for tensor, version, content in saved:
            if tensor._version != version or not torch.equal(tensor.detach(), content):
                tensor.data.copy_(content)
                torch._C._autograd._unsafe_set_version_counter((tensor,), (version,))
