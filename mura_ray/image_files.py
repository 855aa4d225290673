"""The parts of a PNG or JPEG file that make its pixels, found with bounds before a decoder sees the file.

Some kilobytes of scans, chunks or metadata can cost a decoder hours or gigabytes, in a thread that nothing can stop. So
it gets what makes pixels and nothing else, and of that no more parts than real files have.
"""

import re
import zlib

MAX_SCANS = 100
"""Of a JPEG file: each passes over all pixels. Progressive files have some 10."""

_MAX_PARTS = 100_000
"""Chunks of a PNG file, segments of a JPEG file: real ones have some thousands."""

_MAX_TABLE_BYTES = 2**18
"""Of a JPEG file before its first scan, metadata left out: real ones have some thousands."""

_FOLLOWERS = {
    "zip": (b"pk\x03\x04", b"pk\x05\x06"),
    "PDF": (b"%pdf-",),
    "HTML": (b"<!doctype", b"<html", b"<script", b"<svg"),
    "PHP": (b"<?php",),
    "RAR": (b"rar!\x1a\x07",),
    "7z": (b"7z\xbc\xaf\x27\x1c",),
}
"""How files begin, in small letters, that programs open although something else is before them."""

_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
_PNG_PARTS = (b"IHDR", b"PLTE", b"IDAT", b"IEND")

_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]")
"""Of JPEG, but for stuffed bytes, TEM, restarts and fill bytes, which a decoder passes over (ITU-T T.81, annex B)."""

_END, _SCAN = 0xD9, 0xDA
_METADATA = {*range(0xE1, 0xEE), 0xEF, 0xFE}
"""APP segments and comments. APP0 (JFIF) and APP14 (Adobe) are none: they say what colours the components are."""


def pixel_parts(content: bytes) -> tuple[bytes, int]:
    """The file without its metadata, and its number of scans.

    A file that is cut off is given back as far as it goes. What lies inside metadata is not looked at.

    Args:
        content: the whole file; one that is neither PNG nor JPEG comes back as it is.

    Returns:
        A file of the same pixels; how many times a decoder passes over them.

    Raises:
        ValueError: too many parts, a wrong checksum, an animation, or another file behind the image.
    """
    if content.startswith(_PNG):
        return _parts_of_png(content), 1
    if content.startswith(_JPEG):
        return _parts_of_jpeg(content)
    return content, 1


def _parts_of_png(content: bytes) -> bytes:
    view, place = memoryview(content), len(_PNG)
    parts = [view[:place]]
    for _ in range(_MAX_PARTS):
        length, name = int.from_bytes(view[place : place + 4], "big"), content[place + 4 : place + 8]
        chunk = view[place : place + 12 + length]
        place += 12 + length
        is_whole = len(chunk) == 12 + length
        if is_whole and zlib.crc32(chunk[4:-4]) != int.from_bytes(chunk[-4:], "big"):
            raise ValueError(f"the checksum of its chunk {name!r} is wrong: export it again")
        if name == b"acTL":
            raise ValueError("the PNG file is an animation: send single frames")
        if name in _PNG_PARTS or not is_whole:
            parts.append(chunk)
        if name == b"IEND" or not is_whole:
            _check_rest(content[place:])
            return b"".join(parts)
    raise ValueError(f"the PNG file has more than {_MAX_PARTS:,} chunks: save it again")


def _parts_of_jpeg(content: bytes) -> tuple[bytes, int]:
    tables, scans, place = [content[:2]], [], 2
    for _ in range(_MAX_PARTS):
        found = _MARKER.search(content, place)
        if found is None or found[0][1] == _END:
            break
        marker, start = found[0][1], found.start()
        place = found.end() + max(2, int.from_bytes(content[start + 2 : start + 4], "big"))
        if place > len(content):
            raise ValueError("the JPEG file is truncated: export it again")
        if marker == _SCAN:
            scans.append(start)
        elif not scans and marker not in _METADATA:
            tables.append(content[start:place])
        if len(scans) > MAX_SCANS:
            raise ValueError(f"the JPEG file has more than {MAX_SCANS} scans: save it as baseline JPEG")
    else:
        raise ValueError(f"the JPEG file has more than {_MAX_PARTS:,} segments: save it again")
    if sum(map(len, tables)) > _MAX_TABLE_BYTES:
        raise ValueError(f"the JPEG file has more than {_MAX_TABLE_BYTES:,} bytes of tables: save it again")
    end = found.end() if found else len(content)
    _check_rest(content[end:])
    return b"".join([*tables, content[scans[0] : end] if scans else b""]), len(scans)


def _check_rest(rest: bytes) -> None:
    """Refuses two files in one. Padding, remains of a disk and further JPEG images (MPO) are found in real files."""
    small = rest.lower()
    for kind, beginnings in _FOLLOWERS.items():
        if any(beginning in small for beginning in beginnings):
            raise ValueError(f"a {kind} file follows the image in the same file: send the image alone")
