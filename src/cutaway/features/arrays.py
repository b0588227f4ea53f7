"""Large arrays in one safetensors file, filled in place through memory maps, so that they need not fit in memory."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ..errors import FormatError, ResourceError
from ..formats import open_checkpoint
from ..formats.writing import safetensors_head

_CODES = {"int64": "I64", "int32": "I32", "float32": "F32", "float16": "F16", "uint8": "U8"}
Shapes = Mapping[str, tuple[str, tuple[int, ...]]]


def new_arrays(path: Path, shapes: Shapes) -> dict[str, np.ndarray]:
    """Make a safetensors file of zeros for arrays {name: (dtype, shape)} and give them, writable.

    Raises ResourceError when the disk has no room for it.
    """
    named = sorted(shapes.items(), key=lambda item: -np.dtype(item[1][0]).itemsize)  # so that all are aligned
    sizes = {name: math.prod(shape) * np.dtype(dtype).itemsize for name, (dtype, shape) in named}
    head = safetensors_head((name, _CODES[dtype], shape, sizes[name]) for name, (dtype, shape) in named)
    start, at = len(head), sum(sizes.values())
    try:
        with path.open("wb") as file:
            file.write(head)
            if at and hasattr(os, "posix_fallocate"):  # a map of space that is not there ends the process when written
                os.posix_fallocate(file.fileno(), start, at)
            file.truncate(start + at)
        made: dict[str, np.ndarray] = {}
        at = start
        for name, (dtype, shape) in named:
            made[name] = np.memmap(path, dtype, "r+", at, shape) if sizes[name] else np.zeros(shape, dtype)
            at += sizes[name]
    except OSError as error:
        raise ResourceError(f"'{path}' of {at:,} bytes cannot be written: {error.strerror or error}.") from error
    return made


def open_arrays(path: Path, shapes: Shapes) -> dict[str, np.ndarray]:
    """The arrays of a file as read-only views of a memory map, its header checked; -1 in a shape stands for any size.

    Raises FormatError when one is missing or is of another type or shape.
    """
    checkpoint = open_checkpoint(path)
    found = {}
    for name, (dtype, shape) in shapes.items():
        if name not in checkpoint.tensors:
            raise FormatError(f"{str(path)!r} has no array '{name}'; build the index again.")
        info = checkpoint.tensors[name]
        fits = len(info.shape) == len(shape) and all(w in (-1, h) for w, h in zip(shape, info.shape, strict=True))
        if info.dtype != dtype or not fits:
            raise FormatError(
                f"The array '{name}' in {str(path)!r} has {info.dtype} of shape {info.shape} where {dtype} of {shape} "
                "belongs; build the index again."
            )
        found[name] = np.asarray(checkpoint.read(name))  # a plain view: memmap's own indexing is slow
    return found
