"""A single safetensors file: eight bytes of length, a JSON header, then the tensors' bytes.

https://github.com/huggingface/safetensors#format — every rule there is checked: offsets in range, in order, without
holes or overlaps, and sizes that agree with shape and dtype.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any

from cutaway.errors import FormatError
from cutaway.formats.checkpoint import Checkpoint, Place, TensorInfo
from cutaway.formats.dtypes import DTYPES, bytes_of
from cutaway.formats.reading import JSON_BYTES, file_size, read_range, shown, strict_json

NAME = "safetensors"
CODES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "U16": "uint16", "I16": "int16", "U32": "uint32", "I32": "int32",
    "U64": "uint64", "I64": "int64", "F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64",
    "C64": "complex64", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu",
    "F6_E2M3": "float6_e2m3", "F6_E3M2": "float6_e3m2", "F4": "float4_e2m1",
}  # fmt: skip
DIMENSIONS, TENSORS = 64, 100_000


def detect(path: Path, head: bytes) -> bool:
    """By suffix, or by a length that is followed by a JSON object."""
    if path.suffix == ".safetensors":
        return True
    return len(head) > 8 and head[8:9] == b"{" and struct.unpack("<Q", head[:8])[0] <= JSON_BYTES


def open(path: Path) -> Checkpoint:
    """Read and check the header. Raises FormatError."""
    size = file_size(path)
    if size < 8:
        raise FormatError(f"{path} has {size} bytes, too few for a safetensors file; get it again.")
    (length,) = struct.unpack("<Q", read_range(path, 0, 8))
    if length > min(JSON_BYTES, size - 8):
        raise FormatError(
            f"The header of {path} claims {length:,} bytes; the file has {size:,}, and a header at most {JSON_BYTES:,}."
        )
    header = strict_json(read_range(path, 8, length), f"the header of {path}")
    if not isinstance(header, dict):
        raise FormatError(f"The header of {path} is not a JSON object; it is no safetensors file.")
    if len(header) > TENSORS:
        raise FormatError(f"{path} claims {len(header):,} tensors, more than any model has (at most {TENSORS:,}).")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise FormatError(f"The metadata of {path} are not texts by name, as safetensors demands.")
    tensors = {name: _tensor(path, 8 + length, name, entry) for name, entry in header.items()}
    _check_cover(path, 8 + length, size, tensors)
    return Checkpoint(NAME, [path], tensors, {"metadata": metadata} if metadata else {})


def _tensor(path: Path, start: int, name: str, entry: Any) -> TensorInfo:
    where = f"The tensor {shown(name)!r} in {path}"
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise FormatError(f"{where} lacks dtype, shape or data_offsets, or has more; the header is damaged.")
    code, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(code, str) or code not in CODES:
        raise FormatError(f"{where} has the unknown dtype {shown(str(code), 40)!r}.")
    if not _counts(shape) or len(shape) > DIMENSIONS:
        raise FormatError(f"{where} has a shape that is no list of at most {DIMENSIONS} sizes.")
    if not _counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise FormatError(f"{where} has offsets that are no range of bytes.")
    elements, dtype = math.prod(shape), CODES[code]
    if elements >= 1 << 63:
        raise FormatError(f"{where} claims more elements than any file holds.")
    if elements * DTYPES[dtype].bits % 8:
        raise FormatError(f"{where} does not fill whole bytes.")
    nbytes = bytes_of(dtype, elements)
    if nbytes != offsets[1] - offsets[0]:
        raise FormatError(f"{where} needs {nbytes:,} bytes by shape and dtype, but has {offsets[1] - offsets[0]:,}.")
    return TensorInfo(dtype, tuple(shape), nbytes, Place(path, start + offsets[0], nbytes))


def _counts(value: Any) -> bool:
    """Whether `value` is a list of integers from 0 to 2**63 (JSON's true and 1.0 are none)."""
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 1 << 63 for item in value)


def _check_cover(path: Path, start: int, size: int, tensors: dict[str, TensorInfo]) -> None:
    """Tensors must follow one another from the header to the end of the file."""
    at = start
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].place.offset, item[1].nbytes)):
        if tensor.place.offset != at:
            what = "overlaps another" if tensor.place.offset < at else "leaves a hole before it"
            raise FormatError(f"The tensor {shown(name)!r} in {path} {what}; the header is damaged.")
        at += tensor.nbytes
    if at != size:
        what = "is cut short" if at > size else "has bytes that belong to no tensor"
        raise FormatError(f"{path} {what}: the tensors end at byte {at:,}, the file at {size:,}; get it again.")
