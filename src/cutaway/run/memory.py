"""Tensors on one storage: which of them share memory, and how one follows from another that was written into."""

from __future__ import annotations

import torch
from torch import Tensor

_EXACT = 1 << 22  # elements up to which overlap is decided element by element


def storage_of(tensor: Tensor) -> int:
    """What two tensors on the same memory have in common."""
    try:
        return tensor.untyped_storage()._cdata
    except (NotImplementedError, RuntimeError):  # sparse, functorch and other tensors without a storage of their own
        return id(tensor)


def overlap(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors on one storage share an element."""
    if not one.numel() or not other.numel() or one.layout != torch.strided or other.layout != torch.strided:
        return False
    size = max(_end(one), _end(other))
    if _begin(one) >= _end(other) or _begin(other) >= _end(one):
        return False
    if one.element_size() != other.element_size() or size > _EXACT:
        return True
    with torch._C.DisableTorchFunction(), torch.no_grad():
        marks = torch.zeros(size, dtype=torch.bool)
        marks.as_strided(one.shape, one.stride(), one.storage_offset()).fill_(True)
        return bool(marks.as_strided(other.shape, other.stride(), other.storage_offset()).any())


def spans(outer: Tensor, inner: Tensor) -> bool:
    """Whether `outer` lies on its memory without gaps, axes in whatever order, and holds every element of `inner`."""
    if outer.dtype != inner.dtype or not _is_dense(outer):
        return False
    return _begin(outer) <= _begin(inner) and _end(inner) <= _end(outer)


def overlaps_itself(tensor: Tensor) -> bool:
    """Whether two places of a view may lie on one element, as in expanded tensors and sliding windows."""
    extent = 1
    for size, step in sorted(zip(tensor.shape, tensor.stride(), strict=True), key=lambda pair: pair[1]):
        if size > 1:
            if step < extent:
                return True
            extent += (size - 1) * step
    return False


def viewed(
    whole: Tensor, stride: tuple[int, ...], shape: tuple[int, ...], steps: tuple[int, ...], offset: int
) -> Tensor:
    """The part of `whole`, once laid out by `stride`, that a strided view names."""
    return _laid(whole, stride).as_strided(shape, steps, offset)


def scattered(
    whole: Tensor, part: Tensor, stride: tuple[int, ...], shape: tuple[int, ...], steps: tuple[int, ...], offset: int
) -> Tensor:
    """A copy of `whole`, laid out by `stride`, with `part` where a strided view names it.

    `torch.as_strided_scatter` does the same, but its gradient for `whole` is wrong (torch 2.13).
    """
    copy = _laid(whole, stride).clone()
    copy.as_strided(shape, steps, offset).copy_(part)
    return copy


def _laid(tensor: Tensor, stride: tuple[int, ...]) -> Tensor:
    """The tensor laid out by `stride` from offset 0; copied where it lies otherwise."""
    if tensor.stride() == stride and tensor.storage_offset() == 0:
        return tensor
    return torch.empty_strided(tuple(tensor.shape), stride, dtype=tensor.dtype, device=tensor.device).copy_(tensor)


def _is_dense(tensor: Tensor) -> bool:
    expected = 1
    for size, step in sorted(zip(tensor.shape, tensor.stride(), strict=True), key=lambda pair: (pair[1], pair[0])):
        if size == 1:
            continue
        if step != expected:
            return False
        expected *= size
    return True


def _begin(tensor: Tensor) -> int:
    return int(tensor.storage_offset())


def _end(tensor: Tensor) -> int:
    last = sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
    return int(tensor.storage_offset()) + last + 1
