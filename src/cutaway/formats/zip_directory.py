"""The table of contents of a zip archive, checked before a byte of any member is believed.

Nothing is extracted. Sizes are bounded by the file, members may not overlap (the trick of small zip bombs), names
occur once, and what the directory says of a member must agree with the member's own header. The archive may lie inside
another file. Layout: https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

from cutaway.errors import FormatError
from cutaway.formats.checkpoint import Risk
from cutaway.formats.reading import file_size, read_range, shown

MEMBERS = 50_000
DIRECTORY_BYTES = 64 << 20
STORED, DEFLATED = 0, 8

_END = struct.Struct("<4s4H2LH")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR64 = struct.Struct("<4sLQL")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")


@dataclass(frozen=True)
class Member:
    """A file in an archive: `offset` is where its bytes begin in the whole file, `size` what they unpack to,
    `crc` the checksum of that."""

    name: str
    offset: int
    packed: int
    size: int
    method: int
    crc: int


def members(path: Path, start: int = 0, length: int | None = None) -> dict[str, Member]:
    """The members of the archive in `path`, or in `length` bytes of it from `start`. Raises FormatError."""
    length = file_size(path) - start if length is None else length
    at, size, count = _find_directory(path, start, length)
    directory = read_range(path, start + at, size)
    found: dict[str, Member] = {}
    ranges: list[tuple[int, int]] = []
    position = 0
    for _ in range(count):
        name, entry, position = _central(path, directory, position)
        if name in found:
            raise FormatError(f"{path} holds two members called {shown(name)!r}; it was made to deceive.")
        member = _member(path, start, at, name, entry)
        found[name] = member
        ranges.append((start + entry.header, member.offset + member.packed))
    if position != size:
        raise FormatError(f"{path} has more in its table of contents than it counts; the archive is damaged.")
    ranges.sort()
    for (_, stop), (begin, _) in zip(ranges, ranges[1:], strict=False):
        if begin < stop:
            raise FormatError(f"{path} has members that overlap, as zip bombs do; it was not read.")
    return found


def climbing_risks(found: dict[str, Member]) -> list[Risk]:
    """Members whose names lead out of the folder that they would be unpacked to."""
    names = [name for name in found if name.startswith("/") or ".." in name.replace("\\", "/").split("/")]
    return [Risk("medium", f"{shown(name)!r} would be unpacked outside its folder") for name in names[:20]]


@dataclass(frozen=True)
class _Entry:
    method: int
    packed: int
    size: int
    header: int
    crc: int


def _find_directory(path: Path, start: int, length: int) -> tuple[int, int, int]:
    """Offset in the archive, size and number of entries of the directory."""
    tail = min(length, _END.size + _LOCATOR64.size + 65535)
    content = read_range(path, start + length - tail, tail)
    at = content.rfind(b"PK\5\6")
    if at < 0 or at + _END.size > tail:
        raise FormatError(f"{path} has no zip table of contents: it is cut short or no archive; get it again.")
    _, disk, first, here, count, size, offset, comment = _END.unpack_from(content, at)
    end = length - tail + at
    if end + _END.size + comment != length:
        hint = _text_hint(content)
        raise FormatError(f"{path} does not end where its zip table of contents says{hint}; get it again.")
    if at >= _LOCATOR64.size and content[at - _LOCATOR64.size :][:4] == b"PK\6\7":
        end = _LOCATOR64.unpack_from(content, at - _LOCATOR64.size)[2]
        if end + _END64.size > length:
            raise FormatError(f"{path} points outside itself for its zip table of contents{_text_hint(content)}.")
        record = _END64.unpack(read_range(path, start + end, _END64.size))
        if record[0] != b"PK\6\6":
            raise FormatError(f"{path} has a damaged zip table of contents{_text_hint(content)}; get it again.")
        disk, first, here, count, size, offset = record[4:]
    if disk or first or here != count:
        raise FormatError(f"{path} is one part of a zip archive in several files; join them first.")
    if count > MEMBERS or size > DIRECTORY_BYTES or count * _CENTRAL.size > size:
        raise FormatError(f"{path} has an impossible zip table of contents ({count:,} members in {size:,} bytes).")
    if offset + size != end:
        raise FormatError(
            f"{path} has its zip table of contents in the wrong place{_text_hint(content)}; get it again."
        )
    return offset, size, count


def _text_hint(content: bytes) -> str:
    """Bytes of U+FFFD in a binary file come from a program that copied it as if it were text."""
    if content.count(b"\xef\xbf\xbd") > 3:
        return " (somebody copied it as text, which destroys binary files)"
    return ""


def _central(path: Path, directory: bytes, position: int) -> tuple[str, _Entry, int]:
    """One entry of the directory, and where the next begins."""
    if position + _CENTRAL.size > len(directory):
        raise FormatError(f"{path} has a zip table of contents that is cut short; get it again.")
    fields = _CENTRAL.unpack_from(directory, position)
    flags, method, packed, size = fields[3], fields[4], fields[8], fields[9]
    name_length, extra_length, comment_length, header = fields[10], fields[11], fields[12], fields[16]
    at = position + _CENTRAL.size
    after = at + name_length + extra_length + comment_length
    if fields[0] != b"PK\1\2" or after > len(directory):
        raise FormatError(f"{path} has a damaged zip table of contents; get it again.")
    if flags & 0x41:
        raise FormatError(f"{path} is an encrypted zip archive; decrypt it first.")
    raw = directory[at : at + name_length]
    try:
        name = raw.decode("utf-8")
    except UnicodeDecodeError:
        name = raw.decode("cp437")
    wide = _extra64(directory[at + name_length : at + name_length + extra_length])
    values = []
    for value in (size, packed, header):  # the order in which the 64-bit values stand
        if value == 0xFFFFFFFF:
            if not wide:
                raise FormatError(f"{path} lacks the 64-bit size of {shown(name)!r}; the archive is damaged.")
            value = wide.pop(0)
        values.append(value)
    return name, _Entry(method, values[1], values[0], values[2], fields[7]), after


def _extra64(extra: bytes) -> list[int]:
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        if kind == 1:
            content = extra[at + 4 : at + 4 + length]
            return list(struct.unpack(f"<{len(content) // 8}Q", content[: len(content) // 8 * 8]))
        at += 4 + length
    return []


def _member(path: Path, start: int, limit: int, name: str, entry: _Entry) -> Member:
    """Follow an entry to the member's own header, which must lie before the directory and bear the same name."""
    where = f"The member {shown(name)!r} of {path}"
    if entry.header + _LOCAL.size > limit:
        raise FormatError(f"{where} lies outside the archive; get it again.")
    local = _LOCAL.unpack(read_range(path, start + entry.header, _LOCAL.size))
    at = entry.header + _LOCAL.size
    if local[0] != b"PK\3\4" or at + local[9] + local[10] + entry.packed > limit:
        raise FormatError(f"{where} is cut short or not where it should be; get the file again.")
    own = read_range(path, start + at, local[9])
    if own not in (name.encode("utf-8", "replace"), name.encode("cp437", "replace")):
        raise FormatError(f"{where} calls itself {shown(own.decode('utf-8', 'replace'))!r}; it was made to deceive.")
    if local[3] != entry.method:
        raise FormatError(f"{where} is packed in two contradicting ways; it was made to deceive.")
    if entry.method == STORED and entry.packed != entry.size:
        raise FormatError(f"{where} claims {entry.size:,} bytes but has {entry.packed:,}, as zip bombs do.")
    return Member(name, start + at + local[9] + local[10], entry.packed, entry.size, entry.method, entry.crc)
