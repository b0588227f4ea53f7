"""Numbers out of bits that NumPy has no type for: bfloat16, float8, float4, ggml's blocks, protobuf's varints.

The layouts of quantised blocks are those of ggml/src/ggml-common.h. In the blocks of 256 ("k") a scale is itself
quantised; `_spread` takes several small numbers out of each byte in the order in which ggml lays them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np

from cutaway.errors import FormatError
from cutaway.formats.dtypes import DTYPES

VARINT_BYTES = 10


def is_coded(dtype: str) -> bool:
    """Whether arrays of this type show bits, which `decode` turns into numbers."""
    return bool(DTYPES[dtype].exponent) or DTYPES[dtype].packed


def decode(dtype: str, raw: np.ndarray, elements: int) -> np.ndarray:
    """`elements` numbers as flat float32, from bits as `Checkpoint.read` shows them. FormatError for float6."""
    if elements == 0:
        return np.empty(0, np.float32)
    if dtype in _BLOCKS:
        blocks = np.ascontiguousarray(raw).reshape(-1, DTYPES[dtype].bits // 8)
        with np.errstate(all="ignore"):  # a scale may be infinite or no number, like any float of a file
            return _BLOCKS[dtype](blocks).reshape(-1)
    flat = raw.reshape(-1)
    if dtype == "bfloat16":
        return (flat.astype(np.uint32) << 16).view(np.float32)
    if dtype == "float4_e2m1":
        flat = np.stack([flat & 15, flat >> 4], 1).reshape(-1)[:elements]
    elif dtype not in _SMALL:
        raise FormatError(f"Values of the type {dtype} are listed but cannot be read; convert them first.")
    return _table(dtype)[flat]


_SMALL = {"float8_e4m3fn": (4, 3), "float8_e5m2": (5, 2), "float4_e2m1": (2, 1), "float8_e8m0fnu": (8, 0)}


@cache
def _table(dtype: str) -> np.ndarray:
    """Every value of a small float type, by its bits (https://arxiv.org/abs/2209.05433; OCP microscaling, 2023)."""
    exponent_bits, mantissa_bits = _SMALL[dtype]
    if dtype == "float8_e8m0fnu":  # a power of two without sign
        return np.append(np.exp2(np.arange(255, dtype=np.float64) - 127), np.nan).astype(np.float32)
    bits = np.arange(1 << (1 + exponent_bits + mantissa_bits))
    exponent = bits >> mantissa_bits & (1 << exponent_bits) - 1
    fraction = (bits & (1 << mantissa_bits) - 1) / (1 << mantissa_bits)
    bias = (1 << exponent_bits - 1) - 1
    value = np.where(exponent == 0, fraction * 2.0 ** (1 - bias), (1 + fraction) * 2.0 ** (exponent - bias))
    if dtype == "float8_e5m2":
        value = np.where(exponent == 31, np.where(fraction == 0, np.inf, np.nan), value)
    elif dtype == "float8_e4m3fn":
        value = np.where(bits & 0x7F == 0x7F, np.nan, value)
    return np.where(bits >> (exponent_bits + mantissa_bits), -value, value).astype(np.float32)


def _half(blocks: np.ndarray, at: int) -> np.ndarray:
    return np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2").astype(np.float32)


def _spread(part: np.ndarray, run: int, shifts: range) -> np.ndarray:
    """From each run of bytes the lowest bits of all, then the next bits of all …: [block, numbers]."""
    step = shifts.step
    taken = part.reshape(len(part), -1, 1, run) >> np.array(shifts, np.uint8)[:, None] & (1 << step) - 1
    return taken.reshape(len(part), -1)


def _nibbles(part: np.ndarray, run: int) -> np.ndarray:
    return _spread(part, run, range(0, 8, 4))


def _fifth_bit(part: np.ndarray) -> np.ndarray:
    return np.unpackbits(np.ascontiguousarray(part), axis=1, bitorder="little") << 4


def _scale_and_minimum(packed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eight scales and eight minima of six bits each, out of twelve bytes."""
    first, second, rest = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scale = np.concatenate([first & 63, (rest & 15) | (first >> 2 & 48)], 1)
    return scale, np.concatenate([second & 63, (rest >> 4) | (second >> 2 & 48)], 1)


def _scaled(numbers: np.ndarray, scale: np.ndarray, minimum: np.ndarray | None = None) -> np.ndarray:
    """[block, groups, numbers] × a scale for each group, less a minimum for each."""
    grouped = numbers.reshape(*scale.shape, -1).astype(np.float32) * scale[..., None]
    return grouped if minimum is None else grouped - minimum[..., None]


def _q4_0(b: np.ndarray) -> np.ndarray:
    return (_nibbles(b[:, 2:], 16).astype(np.float32) - 8) * _half(b, 0)


def _q4_1(b: np.ndarray) -> np.ndarray:
    return _nibbles(b[:, 4:], 16) * _half(b, 0) + _half(b, 2)


def _q5_0(b: np.ndarray) -> np.ndarray:
    return ((_nibbles(b[:, 6:], 16) | _fifth_bit(b[:, 2:6])).astype(np.float32) - 16) * _half(b, 0)


def _q5_1(b: np.ndarray) -> np.ndarray:
    return (_nibbles(b[:, 8:], 16) | _fifth_bit(b[:, 4:8])) * _half(b, 0) + _half(b, 2)


def _q8_0(b: np.ndarray) -> np.ndarray:
    return b[:, 2:].view(np.int8) * _half(b, 0)


def _q2_k(b: np.ndarray) -> np.ndarray:
    scales, numbers = b[:, :16], _spread(b[:, 16:80], 32, range(0, 8, 2))
    return _scaled(numbers, _half(b, 80) * (scales & 15), _half(b, 82) * (scales >> 4))


def _q3_k(b: np.ndarray) -> np.ndarray:
    low = _nibbles(b[:, 96:104], 8)
    scale = (low | _spread(b[:, 104:108], 4, range(0, 8, 2)) << 4).astype(np.float32) - 32
    high = _spread(b[:, :32], 32, range(8))
    numbers = _spread(b[:, 32:96], 32, range(0, 8, 2)).astype(np.int8) - 4 * (1 - high.astype(np.int8))
    return _scaled(numbers, _half(b, 108) * scale)


def _q4_k(b: np.ndarray) -> np.ndarray:
    scale, minimum = _scale_and_minimum(b[:, 4:16])
    return _scaled(_nibbles(b[:, 16:], 32), _half(b, 0) * scale, _half(b, 2) * minimum)


def _q5_k(b: np.ndarray) -> np.ndarray:
    scale, minimum = _scale_and_minimum(b[:, 4:16])
    numbers = _nibbles(b[:, 48:], 32) | _spread(b[:, 16:48], 32, range(8)) << 4
    return _scaled(numbers, _half(b, 0) * scale, _half(b, 2) * minimum)


def _q6_k(b: np.ndarray) -> np.ndarray:
    numbers = (_nibbles(b[:, :128], 64) | _spread(b[:, 128:192], 32, range(0, 8, 2)) << 4).astype(np.int8) - 32
    return _scaled(numbers, _half(b, 208) * np.ascontiguousarray(b[:, 192:208]).view(np.int8))


_BLOCKS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "q4_0": _q4_0, "q4_1": _q4_1, "q5_0": _q5_0, "q5_1": _q5_1, "q8_0": _q8_0,
    "q2_k": _q2_k, "q3_k": _q3_k, "q4_k": _q4_k, "q5_k": _q5_k, "q6_k": _q6_k,
}  # fmt: skip


def varints(content: bytes, elements: int, dtype: np.dtype) -> np.ndarray:
    """Protobuf's integers of variable length, each cut to the width of `dtype`; float16 comes as its bits. FormatError
    if there are not exactly `elements`."""
    raw = np.frombuffer(content, np.uint8)
    ends = np.flatnonzero(raw < 128)
    starts = np.append(0, ends[:-1] + 1)
    lengths = ends - starts + 1
    if len(ends) != elements or not len(ends) or ends[-1] != len(raw) - 1 or lengths.max() > VARINT_BYTES:
        raise FormatError(f"A tensor of {elements:,} numbers has {len(ends):,} in its file, or a broken one.")
    whole = np.zeros(elements, np.uint64)
    for place in range(int(lengths.max())):
        longer = np.flatnonzero(lengths > place)
        whole[longer] |= (raw[starts[longer] + place] & 127).astype(np.uint64) << np.uint64(7 * place)
    bits = whole.astype(f"<u{dtype.itemsize}")
    return bits.view(dtype.newbyteorder("<")) if dtype.kind != "b" else whole != 0
