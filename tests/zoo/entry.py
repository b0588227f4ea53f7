"""What a zoo entry is. Adding a network to every parametrised test is adding one entry to one of the lists."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

BATCH, LENGTH, WORDS = 3, 7, 41
Inputs = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Entry:
    """One network.

    `expected` maps a lifted component's name to (units, calls). `stream` counts the residual values. `fused` says that
    recording turns off a fused path, so the output is equal to 1e-6 and not to the bit. `problems` are parts of what
    the tape says it cannot follow. `twin` builds the same network in a form that plain autograd can do.
    `batches` and `lengths`: whether it takes inputs of another batch size, and token ids of another length. `varies`:
    other inputs make it run other ops, such as one step a token.
    """

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[], Inputs]
    expected: dict[str, tuple[int, int]]
    stream: int = 0
    fused: bool = False
    problems: tuple[str, ...] = ()
    twin: Callable[[], nn.Module] | None = None
    batches: bool = True
    lengths: bool = True
    varies: bool = False

    def make(self, twin: bool = False) -> tuple[nn.Module, tuple[Any, ...], dict[str, Any]]:
        """The module with seeded weights, and inputs for it."""
        torch.manual_seed(0)
        module = self.twin() if twin and self.twin else self.build()
        scatter(module)
        torch.manual_seed(1)
        args, kwargs = self.inputs()
        return module, args, kwargs


def scatter(module: nn.Module) -> None:
    """Random weights of a size that makes attention patterns, norms and biases matter."""
    with torch.no_grad():
        for parameter in {id(p): p for p in module.parameters()}.values():
            if parameter.ndim > 1:
                parameter.normal_(0, parameter[0].numel() ** -0.5)
            else:
                parameter.add_(0.1 * torch.randn_like(parameter))
        for name, buffer in module.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.add_(0.2 * torch.rand_like(buffer))


def ids(length: int = LENGTH, words: int = WORDS) -> Inputs:
    """Token ids [BATCH, length]."""
    return (torch.randint(3, words, (BATCH, length)),), {}


def floats(*shape: int) -> Inputs:
    """Normal numbers [BATCH, *shape]."""
    return (torch.randn(BATCH, *shape),), {}


def resized(inputs: Inputs, batch: int = 0, longer: int = 0) -> Inputs:
    """Inputs with another number of rows, where the first axis holds the batch, and with token ids so much longer."""

    def change(tree: Any) -> Any:
        if isinstance(tree, dict):
            return {key: change(value) for key, value in tree.items()}
        if isinstance(tree, (list, tuple)):
            return type(tree)(change(value) for value in tree)
        if not isinstance(tree, Tensor) or not tree.ndim or len(tree) != BATCH:
            return tree
        if longer and tree.ndim == 2 and not tree.is_floating_point():
            tree = tree[:, torch.arange(tree.shape[1] + longer) % tree.shape[1]]
        return tree[torch.arange(batch) % BATCH] if batch else tree

    return change(inputs[0]), change(inputs[1])


def first(output: Any) -> Tensor:
    """An output's logits, else its first floating point tensor, found without the package's help."""
    if isinstance(output, Tensor):
        return output
    if isinstance(getattr(output, "logits", None), Tensor):
        return output.logits
    if hasattr(output, "to_tuple"):
        output = output.to_tuple()
    if isinstance(output, dict):
        output = list(output.values())
    if hasattr(output, "__dataclass_fields__"):
        output = [getattr(output, name) for name in output.__dataclass_fields__]
    return next(first(item) for item in output if item is not None)


def layers(neurons: int, words: int = WORDS, count: int = 2, heads: int = 4, **more: int) -> dict[str, tuple[int, int]]:
    """What is expected of a transformer on tokens: `more` names further components of so many units."""
    found = {f"L{layer}.attn": (heads, 1) for layer in range(count)}
    found |= {f"L{layer}.mlp": (neurons, 1) for layer in range(count)} if neurons else {}
    more.setdefault("embed", 1)
    return (
        found | {"unembed": (words, 1)} | {name.replace("__", "."): (units, 1) for name, units in more.items() if units}
    )


def channels(*counts: int, kind: str = "conv") -> dict[str, tuple[int, int]]:
    """What is expected of convolutions, or of blocks of another kind, with so many channels each."""
    return {f"L{layer}.{kind}": (count, 1) for layer, count in enumerate(counts)}
