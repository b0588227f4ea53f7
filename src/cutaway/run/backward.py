"""`backward` inside a forward, as what it stands for: `torch.autograd.grad`, and additions to what the leaves hold.

A recording sees those, and a replay makes them again (inner_gradients.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

Many = Tensor | Sequence[Tensor]


def taken_backward(
    tensors: Many,
    grad_tensors: Tensor | Sequence[Tensor | None] | None = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    grad_variables: Any = None,
    inputs: Many | Mapping[str, Tensor] | None = None,
    alive: Iterable[Tensor] = (),
) -> None:
    """What `torch.autograd.backward` does with the same arguments.

    Gradients go to `inputs`, else to the leaves below `tensors` and to those `alive` that retain theirs.
    """
    listed = [tensors] if isinstance(tensors, Tensor) else list(tensors)
    given = grad_tensors if grad_tensors is not None else grad_variables
    with torch._C.DisableTorchFunction():
        leaves = _asked(inputs) if inputs is not None else [*_leaves(listed), *_retaining(alive)]
        if not leaves or not all(isinstance(item, Tensor) for item in (*listed, *leaves)):
            # Nothing to take, of which torch says what is wrong, or edges of the graph itself.
            torch.autograd.backward(tensors, given, retain_graph, create_graph, inputs=inputs)  # type: ignore[arg-type]
            return
        before = [leaf.grad for leaf in leaves]
    found = torch.autograd.grad(listed, leaves, given, retain_graph, create_graph, allow_unused=True)
    used = [given] if isinstance(given, Tensor) else list(given or ())
    for leaf, held, gradient in zip(leaves, before, found, strict=True):
        if gradient is None:
            continue
        if held is None or create_graph or leaf.grad_fn is not None:  # torch adds to a leaf's in place
            if held is not None:
                gradient = held + gradient
            elif gradient.stride() != leaf.stride() or any(gradient is one for one in used):
                gradient = gradient.clone(memory_format=torch.contiguous_format)
            with torch._C.DisableTorchFunction():
                leaf.grad = gradient
        else:
            with torch.no_grad():
                held += gradient


def taken_by_method(
    tensor: Tensor,
    gradient: Tensor | None = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    inputs: Many | None = None,
    alive: Iterable[Tensor] = (),
) -> None:
    """What `Tensor.backward` does with the same arguments."""
    taken_backward(tensor, gradient, retain_graph, create_graph, None, inputs, alive)


def _asked(inputs: Many | Mapping[str, Tensor]) -> list[Tensor]:
    if isinstance(inputs, Tensor):
        return [inputs]
    return list(inputs.values()) if isinstance(inputs, Mapping) else list(inputs)


def _retaining(alive: Iterable[Tensor]) -> list[Tensor]:
    return [tensor for tensor in alive if tensor.grad_fn is not None and tensor.retains_grad]


def _leaves(roots: Sequence[Any]) -> list[Tensor]:
    """The leaves that require gradients below some tensors, in the order in which they are met."""
    roots = [root for root in roots if isinstance(root, Tensor)]
    found = {id(root): root for root in roots if root.grad_fn is None and root.requires_grad}
    waiting: list[Any] = [root.grad_fn for root in roots if root.grad_fn is not None]
    seen: set[Any] = set()
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if isinstance(leaf, Tensor):
            found[id(leaf)] = leaf
        waiting += [inner for inner, _ in node.next_functions if inner is not None]
    return list(found.values())
