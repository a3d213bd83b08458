"""The directory of a zip archive whose entries are stored, not compressed: name -> byte range. Strict; no extraction.

Format: PKWARE APPNOTE 4.3 (zip64 included). Written for torch's archives, so anything they never hold is refused.
"""

from __future__ import annotations

import struct

from .mapped import MappedFile, refuse

MAX_ENTRIES = 1 << 18
MAX_DIRECTORY_BYTES = 64 << 20
END = struct.Struct("<4sHHHHIIH")
END64_LOCATOR = struct.Struct("<4sIQI")
END64 = struct.Struct("<4sQHHIIQQQQ")
CENTRAL = struct.Struct("<4sHHHHHHIIIHHHHHII")
LOCAL = struct.Struct("<4sHHHHHIIIHH")
ENCRYPTED = 0x41  # flag bits 0 and 6
ZIP64_EXTRA = 1


def read_directory(file: MappedFile) -> dict[str, tuple[int, int]]:
    """Name -> (first byte, byte after the last). Raises CheckpointError with what is wrong."""
    begin, size, count = _find_directory(file)
    directory = file.read(begin, begin + size)
    ranges: dict[str, tuple[int, int]] = {}
    problems: list[str] = []
    at = 0
    for _ in range(count):
        if at + CENTRAL.size > size:
            refuse(file.path, ["its zip directory is cut short"])
        fields = CENTRAL.unpack_from(directory, at)
        names, extras, comments = fields[10:13]
        at += CENTRAL.size
        if fields[0] != b"PK\x01\x02" or at + names + extras + comments > size:
            refuse(file.path, ["its zip directory is malformed"])
        raw_name, extra = directory[at : at + names], directory[at + names : at + names + extras]
        at += names + extras + comments
        name = raw_name.decode("utf-8", "backslashreplace")
        if name in ranges:
            problems.append(f"entry {name!r:.80} appears twice")
        elif fields[3] & ENCRYPTED or fields[4] != 0:
            problems.append(f"entry {name!r:.80} is compressed or encrypted, torch stores entries plainly")
        else:
            ranges[name] = _entry_range(file, begin, raw_name, fields, extra, problems)
    refuse(file.path, problems)
    _check_overlaps(ranges, problems)
    refuse(file.path, problems)
    return ranges


def _find_directory(file: MappedFile) -> tuple[int, int, int]:
    """(first byte, size in bytes, number of entries) of the central directory."""
    tail_begin = max(0, file.size - END.size - 0xFFFF)
    tail = file.read(tail_begin, file.size)
    found = tail.rfind(b"PK\x05\x06")
    if found < 0 or found + END.size > len(tail):
        refuse(file.path, ["its zip directory is missing (truncated)"])
    end = tail_begin + found
    _, disk, first_disk, _, count, size, begin, _ = END.unpack_from(tail, found)
    limit = end
    if count == 0xFFFF or size == 0xFFFFFFFF or begin == 0xFFFFFFFF:
        limit, begin, size, count = _find_directory64(file, end)
    elif disk or first_disk:
        refuse(file.path, ["it is one part of a split zip archive"])
    if count > MAX_ENTRIES or size > MAX_DIRECTORY_BYTES:
        refuse(file.path, [f"its zip directory claims {count} entries in {size} bytes, more than any checkpoint has"])
    if begin + size > limit:
        refuse(file.path, ["its zip directory lies outside the file (truncated)"])
    return begin, size, count


def _find_directory64(file: MappedFile, end: int) -> tuple[int, int, int, int]:
    """(where the zip64 end record begins, then begin, size, count of the directory)."""
    locator = end - END64_LOCATOR.size
    if locator < 0 or file.read(locator, locator + 4) != b"PK\x06\x07":
        refuse(file.path, ["its zip64 directory is missing"])
    _, _, record, _ = END64_LOCATOR.unpack(file.read(locator, end))
    if record + END64.size > locator or file.read(record, record + 4) != b"PK\x06\x06":
        refuse(file.path, ["its zip64 directory is malformed"])
    fields = END64.unpack(file.read(record, record + END64.size))
    return record, fields[9], fields[8], fields[7]


def _entry_range(
    file: MappedFile, limit: int, name: bytes, fields: tuple[int, ...], extra: bytes, problems: list[str]
) -> tuple[int, int]:
    """The bytes of one entry, which must lie before `limit`; (0, 0) after adding to `problems`."""
    stored, size, header = fields[8], fields[9], fields[16]
    wide = _zip64_values(extra)
    if size == 0xFFFFFFFF:
        size = wide.pop(0) if wide else -1
    if stored == 0xFFFFFFFF:
        stored = wide.pop(0) if wide else -1
    if header == 0xFFFFFFFF:
        header = wide.pop(0) if wide else -1
    shown = f"entry {name!r:.80}"
    if stored != size or size < 0 or header < 0 or header + LOCAL.size > limit:
        problems.append(f"{shown} has impossible sizes")
        return 0, 0
    local = LOCAL.unpack(file.read(header, header + LOCAL.size))
    names, extras = local[9:11]
    begin = header + LOCAL.size + names + extras
    if local[0] != b"PK\x03\x04" or file.read(header + LOCAL.size, header + LOCAL.size + names) != name:
        problems.append(f"{shown} has no local header where the directory says")
        return 0, 0
    if begin + size > limit:
        problems.append(f"{shown} reaches beyond the data (truncated)")
        return 0, 0
    return begin, begin + size


def _zip64_values(extra: bytes) -> list[int]:
    """The 8-byte values of the zip64 extra field, in their fixed order; empty without one."""
    at = 0
    while at + 4 <= len(extra):
        kind, size = struct.unpack_from("<HH", extra, at)
        if kind == ZIP64_EXTRA:
            body = extra[at + 4 : at + 4 + size]
            return [int.from_bytes(body[i : i + 8], "little") for i in range(0, len(body) - 7, 8)]
        at += 4 + size
    return []


def _check_overlaps(ranges: dict[str, tuple[int, int]], problems: list[str]) -> None:
    end, before = 0, ""
    for (first, last), name in sorted((span, name) for name, span in ranges.items()):
        if first < end:
            problems.append(f"entries {before!r:.80} and {name!r:.80} overlap")
        end, before = last, name
