"""What the recorder knows of a torch function: its name, whether it may write in place, draws numbers, or ends in
Python.

Everything here is derived from names, signatures and torch's own tags; there is no list of layers or models.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from .backward import taken_backward, taken_by_method

# Calls that turn a tensor into Python values: what follows may depend on them, so a replay must see the same answer.
GUARDS = frozenset("item tolist equal allclose is_nonzero numpy".split())
_GUARD_DUNDERS = frozenset("__bool__ __int__ __float__ __index__ __complex__ __array__".split())
# Python functions that are worth more as their parts than as one op.
_COMPOSITE = {"multi_head_attention_forward"}
_BACKWARD: dict[Any, Callable[..., Any]] = {
    torch.Tensor.backward: taken_by_method,
    torch.autograd.backward: taken_backward,
}
# Functions that write into arguments without saying so in their name or schema: those arguments, and the one that, when
# it is given and true, makes them do it; each as (position, keyword).
HIDDEN_WRITES: dict[str, tuple[tuple[tuple[int, str], ...], tuple[int, str]]] = {
    "batch_norm": (((1, "running_mean"), (2, "running_var")), (5, "training")),
    "instance_norm": (((1, "running_mean"), (2, "running_var")), (5, "use_input_stats")),
    "embedding": (((1, "weight"),), (3, "max_norm")),
    "embedding_bag": (((1, "weight"),), (3, "max_norm")),
}


@dataclass(frozen=True)
class Kind:
    """What is known of a torch function before it is called."""

    name: str
    writes: bool
    inplace: int
    random: bool
    guard: bool
    parts: Callable[..., Any] | None
    hidden: bool = False
    foreign: bool = False

    @functools.cached_property
    def plain(self) -> bool:
        """Whether a call can only compute: no write, no draw, no guard."""
        return not (self.writes or self.inplace >= 0 or self.random or self.guard or self.parts or self.hidden)


_KINDS: dict[Any, Kind] = {}


def kind_of(func: Any) -> Kind:
    """The Kind of a torch function, from a cache."""
    found = _KINDS.get(func)
    if found is None:
        found = _KINDS[func] = _classify(func)
    return found


def op_name(func: Any) -> str:
    """`add` for Tensor.__add__ and aten.add.Tensor, `T` for the getter of Tensor.T."""
    schema = getattr(func, "_schema", None)
    if schema is not None:
        return schema.name.rsplit("::", 1)[-1]
    name = getattr(func, "__name__", type(func).__name__)
    if name in ("__get__", "__set__"):
        owner = getattr(func.__self__, "__name__", "property")
        return owner if name == "__get__" else f"set_{owner}"
    if name.startswith("__") and name.endswith("__"):
        return name[2:-2]
    return name


def without_write(kind: Kind, func: Any, args: tuple[Any, ...]) -> tuple[Callable[..., Any], tuple[Any, ...]] | None:
    """The same call as one that returns its result instead of writing it into the first argument, if torch has one."""
    if kind.random:
        return None
    if kind.inplace >= 0:
        if len(args) > kind.inplace:
            return func, (*args[: kind.inplace], False, *args[kind.inplace + 1 :])
        return functools.partial(func, inplace=False), args
    schema = getattr(func, "_schema", None)
    if schema is not None:
        packet = getattr(torch.ops.aten, kind.name.removesuffix("_"), None) if kind.name.endswith("_") else None
        overload = getattr(packet, func._overloadname, None) if packet is not None else None
        return (_keeping_dtype(overload), args) if overload is not None else None
    if kind.name.endswith("_"):
        found = getattr(torch.Tensor, kind.name[:-1], None)
    elif kind.name.startswith("i") and getattr(func, "__name__", "").startswith("__i"):
        found = getattr(torch.Tensor, f"__{kind.name[1:]}__", None)
    else:
        found = None
    return (_keeping_dtype(found), args) if found is not None else None


def _keeping_dtype(func: Callable[..., Any]) -> Callable[..., Any]:
    """A write keeps the dtype of what it writes into."""

    def call(first: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        out = func(first, *args, **kwargs)
        return out if out.dtype == first.dtype else out.to(first.dtype)

    return call


def _classify(func: Any) -> Kind:
    raw = getattr(func, "__name__", "")
    name = op_name(func)
    schema = getattr(func, "_schema", None)
    inplace = -1
    if schema is not None:
        writes = any(argument.alias_info is not None and argument.alias_info.is_write for argument in schema.arguments)
    else:
        dunder = raw.startswith("__") and raw.endswith("__")
        iop = dunder and raw[2] == "i" and raw not in ("__invert__", "__index__", "__int__", "__iter__", "__init__")
        writes = iop or raw in ("__setitem__", "__set__") or (name.endswith("_") and not dunder)
        writes = writes or not _is_torchs(func)
        inplace = _inplace_position(func)
    parts = _BACKWARD.get(func) or (_with_parts_visible(func) if name in _COMPOSITE else None)
    guard = name in GUARDS or raw in _GUARD_DUNDERS
    hidden = schema is None and name in HIDDEN_WRITES
    return Kind(
        name, writes, inplace, _is_random(name, func), guard, parts, hidden, schema is None and not _is_torchs(func)
    )


def _is_torchs(func: Any) -> bool:
    if isinstance(func, (types.BuiltinFunctionType, types.MethodDescriptorType, types.WrapperDescriptorType)):
        return True
    module = getattr(func, "__module__", None) or getattr(getattr(func, "__objclass__", None), "__module__", "")
    return str(module).startswith("torch") or isinstance(func, (types.MethodWrapperType, types.GetSetDescriptorType))


def _inplace_position(func: Any) -> int:
    """The position of an `inplace` parameter of a Python function, or -1."""
    if not isinstance(func, types.FunctionType):
        return -1
    names = list(inspect.signature(func, follow_wrapped=False).parameters)  # what is wrapped may be built in
    return names.index("inplace") if "inplace" in names else -1


def _is_random(name: str, func: Any) -> bool:
    packet = getattr(torch.ops.aten, name, None) if name.isidentifier() else None
    if packet is None:
        return "dropout" in name or "gumbel" in name
    tag = torch.Tag.nondeterministic_seeded
    return any(tag in getattr(packet, overload).tags for overload in packet.overloads())


def _with_parts_visible(func: Any) -> Callable[..., Any]:
    """A copy of a Python function of torch that does not hand itself to the mode, so that its parts are seen.

    torch's Python functions begin with `if has_torch_function(...)`; the copy reads a namespace in which the answer is
    no. torch's own function is left as it is.
    """
    answers = {name: (lambda *_: False) for name in func.__globals__ if name.startswith("has_torch_function")}
    copy = types.FunctionType(
        func.__code__, {**func.__globals__, **answers}, func.__name__, func.__defaults__, func.__closure__
    )
    copy.__kwdefaults__ = func.__kwdefaults__
    return copy
