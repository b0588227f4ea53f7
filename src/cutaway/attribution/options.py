"""Options of scoring and saliency methods, held against the types that a method's signature states."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

from ..errors import InputError

_TYPES: dict[str, tuple[tuple[type, ...], str]] = {
    "int": ((int,), "a whole number"),
    "float": ((int, float), "a finite number"),
    "bool": ((bool,), "True or False"),
    "str": ((str,), "a text"),
}


def check_options(function: Callable[..., Any], options: Mapping[str, Any], least: Mapping[str, float]) -> None:
    """Raise InputError for an option of another type than its parameter's, or below its `least`.

    Parameters of any other type than int, float, bool and str are left to the method.
    """
    parameters = inspect.signature(function).parameters
    for name, value in options.items():
        kinds, said = _TYPES.get(str(parameters[name].annotation), ((), ""))
        if not kinds:
            continue
        fits = isinstance(value, kinds) and isinstance(value, bool) == (bool in kinds)
        low = least.get(name, -math.inf)
        if not fits or (not isinstance(value, str) and not (math.isfinite(value) and value >= low)):
            bound = f" of at least {low:g}" if name in least else ""
            raise InputError(f"{name} is {said}{bound}, and {value!r} was given.")
