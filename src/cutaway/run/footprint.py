"""What a call could leave behind: the state of a network, of torch and of the generators, as something to compare.

`check` takes one before and one after its runs, one of which it interrupts in the middle, and names what differs.
"""

from __future__ import annotations

import gc
import hashlib
import random
import sys
import warnings
from inspect import getattr_static
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

_GLOBAL_HOOKS = [name for name in dir(hooks) if name.startswith("_global_") and name.endswith("hooks")]

Footprint = dict[str, Any]


def footprint(module: nn.Module) -> Footprint:
    """Everything that a call must leave as it was, by what a person calls it; equal when nothing changed."""
    modules = list(module.named_modules())
    parameters = list(module.named_parameters())
    numpy = sys.modules.get("numpy")
    return {
        "weights and buffers": {name: _content(tensor) for name, tensor in _tensors(module)},
        "attributes": {name: _frozen(vars(inner)) for name, inner in modules},
        "forward methods": {name: id(getattr_static(type(inner), "forward", None)) for name, inner in modules},
        "training mode": {name: inner.training for name, inner in modules},
        "requires_grad": {name: parameter.requires_grad for name, parameter in parameters},
        ".grad": {name: None if p.grad is None else (id(p.grad), _content(p.grad)) for name, p in parameters},
        "random numbers of torch": torch.get_rng_state().numpy().tobytes(),
        "random numbers of Python": random.getstate(),
        "random numbers of numpy": str(numpy.random.get_state()) if numpy is not None else "",
        "global module hooks": {name: tuple(map(id, getattr(hooks, name).values())) for name in _GLOBAL_HOOKS},
        "torch function modes": torch.overrides._get_current_function_mode_stack(),
        "dispatch modes": _get_current_dispatch_mode_stack(),
        "patched methods": (
            id(torch.autograd.Function.__dict__["apply"]),
            id(torch._C.ScriptFunction.__call__),
            id(torch._C.ScriptMethod.__call__),
        ),
        "gradient and inference mode": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "autocast": (torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")),
        "default dtype": torch.get_default_dtype(),
        "kernels": (
            torch._C._get_mkldnn_enabled(),
            torch.are_deterministic_algorithms_enabled(),
            torch.backends.cuda.flash_sdp_enabled(),
            torch.backends.cuda.math_sdp_enabled(),
        ),
        "threads": torch.get_num_threads(),
        "garbage collection": gc.isenabled(),
        "warnings filters": tuple(warnings.filters),
    }


def changes(before: Footprint, after: Footprint) -> list[str]:
    """What differs between two footprints, a phrase each, with the first part of the network where it does."""
    found = []
    for what, was in before.items():
        now = after[what]
        if was == now:
            continue
        if isinstance(was, dict):
            name = next(key for key in {**was, **now} if was.get(key) != now.get(key))
            what = f"{what} of '{name}'" if name else f"{what} of the network"
        found.append(what)
    return found


def _tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    held = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    for path, inner in module.named_modules():
        held += [(f"{path}.{key}".lstrip("."), item) for key, item in vars(inner).items() if isinstance(item, Tensor)]
    return held


def _content(tensor: Tensor) -> Any:
    """Something that differs when a number does."""
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_nested or tensor.is_meta:
        return id(tensor), tensor._version, str(tensor.layout)
    with torch.no_grad():
        flat = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous().flatten()
        data = flat.view(torch.uint8).numpy().data if flat.numel() else b""
    return id(tensor), tuple(tensor.shape), tensor.stride(), hashlib.blake2b(data, digest_size=16).digest()


def _frozen(item: Any, depth: int = 0) -> Any:
    """The shape of an attribute: containers by what they hold, everything else by which object it is."""
    if depth < 4 and isinstance(item, dict):
        return tuple((key, _frozen(value, depth + 1)) for key, value in item.items())
    if depth < 4 and isinstance(item, (list, tuple)):
        return tuple(_frozen(value, depth + 1) for value in item)
    return item if isinstance(item, (int, float, str, type(None))) else id(item)
