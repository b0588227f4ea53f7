"""Members of zip archives whose bytes do not agree with the checksum that the archive keeps of them."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from cutaway.formats.checkpoint import Checkpoint
from cutaway.formats.reading import HEAD_BYTES, file_size, read_range, shown
from cutaway.formats.zip_directory import DEFLATED, STORED, Member, members

PIECE = 1 << 20
REPORTED = 200


def damage(checkpoint: Checkpoint) -> list[dict[str, str]]:
    """A finding for each tensor in a damaged member, or for the member itself where no tensor lies in it.

    Every byte of every archive is read once, in pieces of a megabyte. PyTorch can be told to write no checksums
    (`torch.serialization.set_crc32_options`), and then writes 0, which says nothing. Raises FormatError.
    """
    found: list[dict[str, str]] = []
    for path in checkpoint.paths:
        if not read_range(path, 0, min(file_size(path), HEAD_BYTES)).startswith(b"PK\3\4"):
            continue
        with path.open("rb") as file:
            for member in members(path).values():
                if member.crc and len(found) < REPORTED and not _agrees(file, member):
                    found += _findings(checkpoint, path, member)
    return found


def _findings(checkpoint: Checkpoint, path: Path, member: Member) -> Iterator[dict[str, str]]:
    text = f"{shown(member.name)} in {path.name} does not agree with its checksum; get the file again"
    stop = member.offset + max(1, member.packed)
    names = [
        name
        for name, tensor in checkpoint.tensors.items()
        if tensor.place.path == path and member.offset <= tensor.place.offset < stop and not tensor.place.refusal
    ]
    for name in names[:REPORTED] or [shown(member.name)]:
        yield {"kind": "damaged", "tensor": name, "text": text}


def _agrees(file: BinaryIO, member: Member) -> bool:
    """Whether a member unpacks to bytes of its size and its checksum; one packed in another way is not judged."""
    if member.method not in (STORED, DEFLATED):
        return True
    file.seek(member.offset)
    crc = size = 0
    inflate = zlib.decompressobj(-zlib.MAX_WBITS) if member.method == DEFLATED else None
    left = member.packed
    try:
        while left and size <= member.size:
            piece = file.read(min(PIECE, left))
            if not piece:
                return False
            left -= len(piece)
            content = b""
            while piece or len(content) == PIECE:  # a full piece may have more behind it, all input taken
                content = piece if inflate is None else inflate.decompress(piece, PIECE)
                piece = b"" if inflate is None else inflate.unconsumed_tail
                crc, size = zlib.crc32(content, crc), size + len(content)
                if size > member.size:
                    return False
    except zlib.error:
        return False
    return size == member.size and crc == member.crc
