"""Which imports of a pickle are mere data, and what is said about all others.

An allow-list: everything that is not on it is dangerous, whatever it is. (Lists of what is forbidden have been
bypassed dozens of times.) The rows are constructors of values that PyTorch's own `weights_only` reader also accepts.
"""

from __future__ import annotations

from cutaway.formats.checkpoint import Risk
from cutaway.formats.dtypes import DTYPES
from cutaway.formats.pickle_program import Global

STORAGES = {
    "DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16", "BFloat16Storage": "bfloat16",
    "LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8",
    "ByteStorage": "uint8", "BoolStorage": "bool", "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128", "QInt8Storage": "qint8", "QUInt8Storage": "quint8",
    "QInt32Storage": "qint32", "UntypedStorage": "uint8",
}  # fmt: skip
DTYPE_NAMES = {name: name for name in DTYPES} | {"half": "float16", "float": "float32", "double": "float64"}

_REBUILD = (
    "_rebuild_tensor _rebuild_tensor_v2 _rebuild_tensor_v3 _rebuild_parameter _rebuild_parameter_with_state "
    "_rebuild_qtensor _rebuild_sparse_tensor _rebuild_meta_tensor_no_storage"
)
_VALUES = set("set frozenset dict list tuple int float bool str bytes bytearray complex slice".split())
ALLOWED: dict[str, set[str]] = {
    "torch": {*STORAGES, *DTYPE_NAMES, "Size", "Tensor", "device", "strided", "contiguous_format", "per_tensor_affine"},
    "torch.storage": {"UntypedStorage", "TypedStorage", "_UntypedStorage"},
    "torch._utils": set(_REBUILD.split()),
    "torch._tensor": {"_rebuild_from_type_v2"},
    "torch.nn.parameter": {"Parameter", "Buffer"},
    "torch.serialization": {"_get_layout"},
    "collections": {"OrderedDict", "defaultdict", "Counter"},
    "numpy": {"dtype", "ndarray"},
    "numpy.core.multiarray": {"_reconstruct", "scalar"},
    "numpy._core.multiarray": {"_reconstruct", "scalar"},
    "_codecs": {"encode"},
    "builtins": _VALUES,
    "__builtin__": _VALUES,
}  # fmt: skip
REPORTED = 100  # imports that get a line of their own


def is_allowed(item: Global) -> bool:
    """Whether importing and calling `item` only builds a value."""
    return item.name in ALLOWED.get(item.module, ())


def import_risks(imports: list[Global], where: str) -> list[Risk]:
    """A high risk for each import outside the allow-list, and a low one for the pickle itself."""
    foreign = [item for item in imports if not is_allowed(item)]
    risks = [Risk("high", f"unpickling {where} would import {item} and run its code") for item in foreign[:REPORTED]]
    if len(foreign) > REPORTED:
        risks.append(Risk("high", f"unpickling {where} would import {len(foreign) - REPORTED} other things as well"))
    if not foreign:
        risks.append(
            Risk("low", f"{where} is a pickle; all it imports builds plain data, and nothing of it was run here")
        )
    return risks
