"""Find the tensors in what a PyTorch pickle would build.

Names are the path of keys to a tensor, joined by dots. A pickled module shows its parameters as `state_dict` would
name them. Every size is checked: a tensor must lie within its storage, and a storage within the file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from cutaway.errors import FormatError
from cutaway.formats.checkpoint import Place, TensorInfo
from cutaway.formats.dtypes import DTYPES, bytes_of
from cutaway.formats.pickle_program import Call, Global, Persistent
from cutaway.formats.reading import shown
from cutaway.formats.torch_imports import DTYPE_NAMES, STORAGES

DEPTH = 100
VISITS = 500_000
DIMENSIONS = 64
LARGEST = 1 << 62

_MODULE_PARTS = ("_parameters", "_buffers", "_modules")


class Storage(NamedTuple):
    """A reference to a storage: `elements` of `dtype` under `key`; `begin` and `view` where it is part of another."""

    key: str
    dtype: str
    elements: int
    begin: int = 0
    view: int | None = None


@dataclass(frozen=True)
class Extent:
    """Where a storage is in a file."""

    path: Path
    offset: int
    size: int
    big_endian: bool = False


def storage_of(reference: Persistent) -> Storage:
    """Read a persistent id `('storage', type, key, location, elements[, view])`. Raises FormatError for another."""
    id = reference.id
    if not isinstance(id, tuple) or len(id) not in (5, 6) or id[0] != "storage" or not isinstance(id[1], Global):
        raise FormatError("A checkpoint refers to something outside that is no tensor storage; get it again.")
    if id[1].name not in STORAGES or not _is_size(id[4]) or not _is_key(id[2]):
        raise FormatError(f"A checkpoint has a storage of the unknown type {id[1]}, or of an impossible key or size.")
    begin, view = 0, None
    if len(id) == 6 and id[5] is not None:
        if not isinstance(id[5], tuple) or len(id[5]) != 3 or not all(_is_size(part) for part in id[5][1:]):
            raise FormatError("A checkpoint has a view of a storage without a place; get it again.")
        begin, view = id[5][1:]
        if begin + view > id[4]:
            raise FormatError("A checkpoint has a view that is larger than its storage; get it again.")
    return Storage(str(id[2]), STORAGES[id[1].name], id[4], begin, view)


def collect(value: Any, locate: Callable[[Storage], Extent], where: Path) -> dict[str, TensorInfo]:
    """All tensors below `value`, by name. `locate` finds a storage in the file `where`. Raises FormatError."""
    tensors: dict[str, TensorInfo] = {}
    taken: dict[str, int] = {}
    for path, call in _Walk().tensors(value, (), DEPTH):
        name = shown(".".join(path) or "tensor", 500)
        taken[name] = taken.get(name, 0) + 1
        if taken[name] > 1:
            name = f"{name}#{taken[name]}"
        tensors[name] = _tensor(name, call, locate) if _name(call) in _REBUILDERS else _undecoded(call, where)
    return tensors


class _Walk:
    """Depth first, each path separately (a module used twice is shown twice), within a bound on visits."""

    def __init__(self) -> None:
        self.visits = 0

    def tensors(self, value: Any, path: tuple[str, ...], depth: int) -> Iterator[tuple[tuple[str, ...], Call]]:
        self.visits += 1
        if self.visits > VISITS:
            raise FormatError(f"A checkpoint has more than {VISITS:,} parts, or repeats some without end; not read.")
        if depth == 0 or not isinstance(value, (dict, list, tuple, Call)) or isinstance(value, Global):
            return
        if isinstance(value, Call) and _name(value) in _REBUILDERS:
            yield path, value
            return
        found = False
        for step, child in _children(value):
            for below in self.tensors(child, path if step is None else (*path, step), depth - 1):
                found = True
                yield below
        if not found and isinstance(value, Call) and _name(value).startswith(_REBUILD) and not _is_passed_on(value):
            yield path, value


def _children(value: Any) -> Iterator[tuple[str | None, Any]]:
    """The parts of a container with the step to each; None for a part that is not named in a path."""
    if isinstance(value, dict):
        if any(part in value for part in _MODULE_PARTS):
            # The state of a pickled module: what its `state_dict` would show, and no other attribute.
            yield from ((None, value[part]) for part in _MODULE_PARTS if part in value)
        else:
            yield from ((_step(key), child) for key, child in value.items())
    elif isinstance(value, (list, tuple)):
        for index, child in enumerate(value):
            yield str(index), child
    elif _name(value) == _SUBCLASS and isinstance(value.arguments, tuple) and len(value.arguments) > 2:
        yield None, Call(value.arguments[0], value.arguments[2])
    elif _name(value) in _PASSED_ON:
        yield None, value.arguments[0] if isinstance(value.arguments, tuple) and value.arguments else None
    else:
        yield None, value.items
        yield None, value.appended
        yield None, value.state
        if isinstance(value.arguments, tuple) and not value.items:
            for child in value.arguments:
                yield None, child


_SUBCLASS = "torch._tensor._rebuild_from_type_v2"  # also of plain tensors that bear attributes
_REBUILD = "torch._utils._rebuild_"
_REBUILDERS = {"torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor_v3"}
_PASSED_ON = {"torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state"}


def _is_passed_on(call: Call) -> bool:
    return _name(call) in _PASSED_ON


def _name(call: Call) -> str:
    return f"{call.function.module}.{call.function.name}" if isinstance(call.function, Global) else ""


def _tensor(name: str, call: Call, locate: Callable[[Storage], Extent]) -> TensorInfo:
    """Check one call of `_rebuild_tensor…(storage, offset, shape, strides, …)` against its storage."""
    arguments = call.arguments
    if not isinstance(arguments, tuple) or len(arguments) < 4 or not isinstance(arguments[0], Persistent):
        raise FormatError(f"The tensor {name!r} is built from something that is no storage; get the file again.")
    storage = storage_of(arguments[0])
    offset, shape, strides = arguments[1], _sizes(arguments[2]), _sizes(arguments[3])
    if not _is_size(offset) or shape is None or strides is None or len(shape) != len(strides):
        raise FormatError(f"The tensor {name!r} has an impossible shape, stride or offset; get the file again.")
    dtype = storage.dtype
    if _name(call).endswith("_v3"):
        kind = arguments[6] if len(arguments) > 6 else None
        if not isinstance(kind, Global) or kind.name not in DTYPE_NAMES:
            raise FormatError(f"The tensor {name!r} has an unknown dtype.")
        dtype = DTYPE_NAMES[kind.name]
    elements = math.prod(shape)
    if elements > LARGEST:
        raise FormatError(f"The tensor {name!r} claims more elements than any file holds.")
    extent = locate(storage)
    available = bytes_of(storage.dtype, storage.elements if storage.view is None else storage.view)
    first = bytes_of(dtype, offset)
    span = 1 + sum((size - 1) * step for size, step in zip(shape, strides, strict=True)) if elements else 0
    if first + bytes_of(dtype, span) > available or bytes_of(storage.dtype, storage.elements) > extent.size:
        raise FormatError(
            f"The tensor {name!r} reaches beyond its storage; the file is damaged or was made to deceive."
        )
    start = extent.offset + bytes_of(storage.dtype, storage.begin) + first
    plain = strides == _contiguous(shape) or elements <= 1
    place = Place(extent.path, start, bytes_of(dtype, span), extent.big_endian, None if plain else strides)
    return TensorInfo(dtype, shape, elements * DTYPES[dtype].bits // 8, place)


def _undecoded(call: Call, where: Path) -> TensorInfo:
    """A tensor of a kind that is only listed, such as a quantised one; its shape, if it says so as all others do."""
    kind = _name(call).removeprefix(_REBUILD).replace("qtensor", "quantised tensor")
    arguments = call.arguments if isinstance(call.arguments, tuple) else ()
    shape = (_sizes(arguments[2]) if len(arguments) > 2 else None) or ()
    if math.prod(shape) > LARGEST:
        raise FormatError("A tensor claims more elements than any file holds.")
    nbytes = 0
    if arguments and isinstance(arguments[0], Persistent):
        storage = storage_of(arguments[0])
        kind, nbytes = storage.dtype, bytes_of(storage.dtype, math.prod(shape))
    return TensorInfo(kind, shape, nbytes, Place(where, 0, nbytes, refusal="is of a kind that is not decoded here"))


def _contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def _sizes(value: Any) -> tuple[int, ...] | None:
    if isinstance(value, Call) and _name(value) == "torch.Size" and isinstance(value.arguments, tuple):
        value = value.arguments[0] if value.arguments else ()
    if not isinstance(value, (tuple, list)) or len(value) > DIMENSIONS or not all(_is_size(item) for item in value):
        return None
    return tuple(value)


def _step(key: Any) -> str:
    """A dict's key as part of a name; what is no short text or integer only by its type."""
    return str(key) if _is_key(key) else f"<{type(key).__name__}>"


def _is_key(value: Any) -> bool:
    # Python refuses to write integers of thousands of digits, and nested tuples can exhaust the stack.
    return isinstance(value, str) or (type(value) is int and abs(value) < 1 << 63)


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 62
