"""Number types of tensors in files: one name for each, how NumPy can look at its bytes, and what is not a number.

Types that NumPy lacks are shown as their bits: bfloat16 as uint16, the float8 types as uint8, and types of less than
a byte as the flat row of bytes they are packed into. The name always says what the bits mean.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Dtype(NamedTuple):
    """A number type: `view` is the NumPy type of its bytes; the masks are for float types that NumPy lacks."""

    view: str
    bits: int
    exponent: int = 0
    mantissa: int = 0


DTYPES: dict[str, Dtype] = {
    "bool": Dtype("?", 8),
    "uint8": Dtype("u1", 8),
    "int8": Dtype("i1", 8),
    "uint16": Dtype("u2", 16),
    "int16": Dtype("i2", 16),
    "uint32": Dtype("u4", 32),
    "int32": Dtype("i4", 32),
    "uint64": Dtype("u8", 64),
    "int64": Dtype("i8", 64),
    "float16": Dtype("f2", 16),
    "float32": Dtype("f4", 32),
    "float64": Dtype("f8", 64),
    "complex64": Dtype("c8", 64),
    "complex128": Dtype("c16", 128),
    "bfloat16": Dtype("u2", 16, exponent=0x7F80, mantissa=0x007F),
    # e4m3fn has no infinities, and one NaN for each sign (https://arxiv.org/abs/2209.05433, table 1)
    "float8_e4m3fn": Dtype("u1", 8, exponent=0x7F, mantissa=0x7F),
    "float8_e5m2": Dtype("u1", 8, exponent=0x7C, mantissa=0x03),
    "float8_e8m0fnu": Dtype("u1", 8, exponent=0xFF, mantissa=0xFF),
    "float6_e2m3": Dtype("u1", 6),
    "float6_e3m2": Dtype("u1", 6),
    "float4_e2m1": Dtype("u1", 4),
    "qint8": Dtype("i1", 8),
    "quint8": Dtype("u1", 8),
    "qint32": Dtype("i4", 32),
}


def bytes_of(dtype: str, elements: int) -> int:
    """Bytes that `elements` numbers take, rounded up to whole bytes."""
    return -(-elements * DTYPES[dtype].bits // 8)


def nonfinite(dtype: str, values: np.ndarray) -> tuple[int, int]:
    """How many of `values` (any shape, as `Checkpoint.read` shows them) are NaN, and how many infinite."""
    kind = DTYPES[dtype]
    if kind.exponent:
        special = values[(values & kind.exponent) == kind.exponent] & kind.mantissa
        if kind.exponent == kind.mantissa:
            return int(special.size), 0
        nan = int(np.count_nonzero(special))
        return nan, int(special.size) - nan
    if values.dtype.kind not in "fc":
        return 0, 0
    return int(np.count_nonzero(np.isnan(values))), int(np.count_nonzero(np.isinf(values)))
