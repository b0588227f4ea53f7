"""A zip archive with PyTorch archives inside, as Stable-Baselines3 saves its agents (policy.pth, policy.optimizer.pth).

Inner archives are stored uncompressed, so their tensors are mapped where they lie; their names get the member in front.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cutaway.errors import FormatError
from cutaway.formats import torch_zip
from cutaway.formats.checkpoint import Checkpoint, Risk, TensorInfo
from cutaway.formats.reading import read_range, shown
from cutaway.formats.zip_directory import STORED, Member, climbing_risks, members

NAME = "zip of torch archives"
SUFFIXES = (".pth", ".pt")
DATA_BYTES = 16 << 20


def detect(path: Path, head: bytes) -> bool:
    """Any zip archive that the openers before this one did not take."""
    return head.startswith(b"PK\3\4")


def open(path: Path) -> Checkpoint:
    """Open every inner archive. Raises FormatError if there is none."""
    found = members(path)
    inner = {name: member for name, member in found.items() if name.endswith(SUFFIXES) and member.method == STORED}
    if not inner:
        names = ", ".join(shown(name, 40) for name in list(found)[:5])
        raise FormatError(f"{path} is a zip archive without a checkpoint in it (it holds {names or 'nothing'}).")
    tensors: dict[str, TensorInfo] = {}
    risks = climbing_risks(found)
    imports: set[str] = set()
    for name, member in inner.items():
        part = torch_zip.open_part(path, member.offset, member.size)
        tensors |= {f"{shown(name)}:{key}": tensor for key, tensor in part.tensors.items()}
        risks += [Risk(risk.severity, f"{shown(name)}: {risk.text}") for risk in part.risks]
        imports |= set(part.metadata["imports"])
    others = {name: member for name, member in found.items() if name not in inner}
    risks += [risk for name, member in others.items() if (risk := _serialized(path, name, member))]
    metadata: dict[str, Any] = {"imports": sorted(imports), "members": [shown(name) for name in list(found)[:1000]]}
    return Checkpoint(NAME, [path], tensors, metadata, risks)


def _serialized(path: Path, name: str, member: Member) -> Risk | None:
    """Stable-Baselines3 hides pickles, in base 64, in a JSON member."""
    if member.method == STORED and member.size <= DATA_BYTES:
        content = read_range(path, member.offset, member.size)
        if b'":serialized:"' in content:
            return Risk("high", f"{shown(name)} contains pickles in base 64, which Stable-Baselines3 would run")
    return None
