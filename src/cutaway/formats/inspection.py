"""`info`: what is in a checkpoint, as plain data for a terminal, a browser or a script."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cutaway.errors import FormatError
from cutaway.formats.checkpoint import Checkpoint, TensorInfo
from cutaway.formats.dtypes import DTYPES
from cutaway.formats.examination import examine, findings
from cutaway.formats.opening import open_checkpoint
from cutaway.formats.reading import file_size
from cutaway.formats.zip_damage import damage

EXAMINED_BYTES, EXAMINED_TENSORS = 64 << 20, 10_000  # values of more are only looked at with `deep`
MODULES, MODULE_DEPTH, FINDINGS = 5_000, 12, 2_000
_ORDER = {"high": 0, "medium": 1, "low": 2}
# Endings of the names that quantising libraries give to what they put beside their integers.
_SCHEMES = {
    "GPTQ or AWQ": (".qweight", ".qzeros", ".g_idx"), "bitsandbytes, 8 bits": (".SCB",),
    "bitsandbytes, 4 bits": (".quant_map", ".absmax"), "float8 with scales": (".weight_scale", ".weight_scale_inv"),
}  # fmt: skip


def info(path: str | Path, *, deep: bool = False, sha256: bool = False) -> dict[str, Any]:
    """Facts about a checkpoint, JSON-able; nothing from the file is executed.

    `parameters` counts every stored value once, tied tensors too. Values are examined, and everything hashed, where all
    tensors together take at most 64 MiB; `deep` examines and `sha256` hashes the files in any case. Raises FormatError.
    """
    checkpoint = open_checkpoint(path)
    tied = _tied(checkpoint)
    again = {name for group in tied for name in group[1:]}
    counted = {name: tensor for name, tensor in checkpoint.tensors.items() if name not in again}
    size = sum(file_size(file) for file in checkpoint.paths)
    small = max(size, sum(tensor.nbytes for tensor in counted.values())) <= EXAMINED_BYTES
    small = small and len(counted) <= EXAMINED_TENSORS
    facts: dict[str, Any] = {
        "path": str(path),
        "format": checkpoint.format,
        "files": [_file(file, sha256 or small) for file in checkpoint.paths],
        "size": size,
        "tensors": [
            {"name": name, "dtype": tensor.dtype, "shape": list(tensor.shape), "bytes": tensor.nbytes}
            for name, tensor in checkpoint.tensors.items()
        ],
        "parameters": sum(tensor.elements for tensor in counted.values()),
        "dtypes": _totals((tensor.dtype, tensor) for tensor in counted.values()),
        "modules": _modules(checkpoint),
        "tied": tied,
        "quantisation": _quantisation(checkpoint),
        "risks": [
            {"severity": risk.severity, "text": risk.text}
            for risk in sorted(checkpoint.risks, key=lambda risk: _ORDER[risk.severity])
        ],
        "metadata": checkpoint.metadata,
        "examined": deep or small,
    }
    if deep or small:
        facts |= _examined(checkpoint, counted, facts["tensors"])
    return facts


def _file(path: Path, sha256: bool) -> dict[str, Any]:
    facts: dict[str, Any] = {"path": str(path), "bytes": file_size(path)}
    if sha256:
        with path.open("rb") as file:
            facts["sha256"] = hashlib.file_digest(file, "sha256").hexdigest()
    return facts


def _totals(rows: Iterable[tuple[str, TensorInfo]]) -> dict[str, dict[str, int]]:
    """Tensors, parameters and bytes for each key, in order of appearance."""
    totals: dict[str, dict[str, int]] = {}
    for key, tensor in rows:
        total = totals.setdefault(key, {"tensors": 0, "parameters": 0, "bytes": 0})
        total["tensors"] += 1
        total["parameters"] += tensor.elements
        total["bytes"] += tensor.nbytes
    return totals


def _modules(checkpoint: Checkpoint) -> dict[str, dict[str, int]]:
    """The tree of modules by the dots (or slashes) in names: what lies below each, itself included."""

    def above(name: str) -> list[str]:
        ends = [place for place, sign in enumerate(name) if sign in "./"][:MODULE_DEPTH]
        return [name[:end] for end in ends if end] or [name]

    rows = ((part, tensor) for name, tensor in checkpoint.tensors.items() for part in above(name))
    return dict(list(_totals(rows).items())[:MODULES])


def _tied(checkpoint: Checkpoint) -> list[list[str]]:
    """Names that share the very same bytes of a file."""
    places: dict[Any, list[str]] = {}
    for name, tensor in checkpoint.tensors.items():
        if tensor.nbytes and not tensor.place.refusal:
            places.setdefault((tensor.place.path, tensor.place.offset, tensor.place.size), []).append(name)
    return [names for names in places.values() if len(names) > 1]


def _quantisation(checkpoint: Checkpoint) -> dict[str, Any]:
    """Quantised types with bits per number, schemes told by names, and what a configuration says."""
    kinds = Counter(tensor.dtype for tensor in checkpoint.tensors.values())
    found: dict[str, Any] = {}
    types = {
        kind: {"tensors": count, "bits": round(DTYPES[kind].bits / DTYPES[kind].block, 2)}
        for kind, count in kinds.items()
        if kind in DTYPES and (DTYPES[kind].packed or kind.startswith(("q", "float8")))
    }
    names = {scheme for name in checkpoint.tensors for scheme, ends in _SCHEMES.items() if name.endswith(ends)}
    config = checkpoint.metadata.get("config")
    stated = config.get("quantization_config") if isinstance(config, dict) else None
    for key, value in (("types", types), ("schemes", sorted(names)), ("config", stated)):
        if value:
            found[key] = value
    return found


def _examined(checkpoint: Checkpoint, counted: dict[str, TensorInfo], rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Findings about all values, NaN and infinities, equal tensors, and a hash of all contents whatever the format."""
    found = damage(checkpoint)
    bad: dict[str, dict[str, int]] = {}
    contents: dict[Any, list[str]] = {}
    skipped: dict[str, str] = {}
    by_name = {row["name"]: row for row in rows}
    for name, tensor in counted.items():
        if not tensor.elements:
            continue
        if tensor.expanded:  # it may be far larger than its file
            skipped[name] = "it repeats its values, and may be larger than its file"
            continue
        try:
            values = examine(checkpoint, name)
        except FormatError as error:
            skipped[name] = str(error)
            continue
        by_name[name]["values"] = values
        if values["nan"] or values["inf"]:
            bad[name] = {"nan": values["nan"], "inf": values["inf"]}
        found += findings(name, tensor.shape, values)[: max(0, FINDINGS - len(found))]
        contents.setdefault((tensor.dtype, tensor.shape, values["sha256"]), []).append(name)
    whole = hashlib.sha256(
        "\n".join(sorted(f"{name!r} {key}" for key, names in contents.items() for name in names)).encode()
    )
    return {
        "findings": found, "nonfinite": bad, "unexamined": skipped, "content_sha256": whole.hexdigest(),
        "duplicates": [names for names in contents.values() if len(names) > 1],
    }  # fmt: skip
