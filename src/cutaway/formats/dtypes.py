"""Number types of tensors in files: one name for each, how NumPy can look at its bytes, and what is not a number.

Types that NumPy lacks are shown as their bits: bfloat16 as uint16, the float8 types as uint8, and types of less than
a byte as the flat row of bytes they are packed into, as are the quantised blocks of GGUF (`q4_0` …), which `decoding`
turns into numbers. The name always says what the bits mean.
"""

from __future__ import annotations

from typing import NamedTuple


class Dtype(NamedTuple):
    """A number type: `view` is the NumPy type of its bytes; the masks are for float types that NumPy lacks.

    Quantised types share a scale among `block` numbers, which together take `bits`.
    """

    view: str
    bits: int
    exponent: int = 0
    mantissa: int = 0
    block: int = 1

    @property
    def packed(self) -> bool:
        """Whether a number has no byte of its own, so that an array of this type is a flat row of bytes."""
        return self.bits < 8 or self.block > 1


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
    # Blocks of ggml (ggml/src/ggml-common.h): the bytes of a block, times eight, for so many numbers
    "q4_0": Dtype("u1", 8 * 18, block=32),
    "q4_1": Dtype("u1", 8 * 20, block=32),
    "q5_0": Dtype("u1", 8 * 22, block=32),
    "q5_1": Dtype("u1", 8 * 24, block=32),
    "q8_0": Dtype("u1", 8 * 34, block=32),
    "q2_k": Dtype("u1", 8 * 84, block=256),
    "q3_k": Dtype("u1", 8 * 110, block=256),
    "q4_k": Dtype("u1", 8 * 144, block=256),
    "q5_k": Dtype("u1", 8 * 176, block=256),
    "q6_k": Dtype("u1", 8 * 210, block=256),
}


def bytes_of(dtype: str, elements: int) -> int:
    """Bytes that `elements` numbers take, rounded up to whole bytes."""
    kind = DTYPES[dtype]
    return -(-elements * kind.bits // (8 * kind.block))

