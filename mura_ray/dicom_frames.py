"""One compressed frame of a DICOM file to its samples. Knows no data elements.

What a frame says of itself is checked before a codec sees it: a few bytes can ask for gigabytes or for minutes.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass

import imagecodecs
import numpy as np
from pydicom.uid import (
    JPEG2000,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

_END = b"\xff\xd9"  # EOI of JPEG and JPEG-LS, EOC of JPEG 2000

# Frame headers of JPEG: baseline, extended, lossless, JPEG-LS. Others (progressive, arithmetic) are of no syntax here.
_SEQUENTIAL, _LOSSLESS, _LS = {0xC0, 0xC1}, {0xC3}, {0xF7}
_MAX_SEGMENTS = 100_000
_WITHOUT_LENGTH = {0x00, 0x01, *range(0xD0, 0xDA)}

# JPEG 2000 keeps a record of each tile, code block and layer, however little data there is for it.
_MAX_TILES = 4096
_MAX_LAYERS = 256
_MIN_CODE_BLOCK = 2**8
_MIN_PRECINCT_EXPONENT = 5
_SIZ, _COD, _SOT, _SOD = b"\xff\x51", b"\xff\x52", b"\xff\x90", b"\xff\x93"
_REFUSED_2000 = {b"\xff\x53": "COC", b"\xff\x5f": "POC", b"\xff\x60": "PPM", b"\xff\x61": "PPT"}


@dataclass(frozen=True, slots=True)
class FrameSize:
    """What the data elements say of a frame: rows, columns and bytes a sample (1 or 2)."""

    rows: int
    columns: int
    sample_bytes: int


def decode_frame(syntax: str, frame: bytes, size: FrameSize) -> np.ndarray:
    """Decodes a frame of one sample a pixel.

    Args:
        syntax: UID of the transfer syntax, one of `SYNTAXES`.
        frame: the joined fragments.
        size: what the frame must turn out to be.

    Returns:
        uint8 or uint16 [rows, columns]: the samples' bits as they were stored, negative ones in two's complement.

    Raises:
        ValueError: the frame is damaged or cut off, or says another size.
    """
    return SYNTAXES[syntax](frame, size)


def _decode_jpeg(types: set[int], codec: Callable[..., np.ndarray]) -> Callable[[bytes, FrameSize], np.ndarray]:
    def decode(frame: bytes, size: FrameSize) -> np.ndarray:
        precision = _check_jpeg(frame, size, types)
        _check_end(frame)
        return codec(frame, out=np.empty((size.rows, size.columns), np.uint8 if precision <= 8 else np.uint16))

    return decode


def _check_jpeg(frame: bytes, size: FrameSize, types: set[int]) -> int:
    """Walks the segments to the frame header (ITU-T T.81, annex B; T.87 keeps its form); the bits of a sample."""
    if frame[:2] != b"\xff\xd8":
        raise ValueError("the frame does not begin like JPEG")
    place = 2
    for _ in range(_MAX_SEGMENTS):
        if frame[place : place + 1] != b"\xff" or len(frame) < place + 10:
            break
        marker = frame[place + 1]
        if marker in _WITHOUT_LENGTH:
            break
        if marker == 0xFF:  # a fill byte
            place += 1
        elif marker in _SEQUENTIAL | _LOSSLESS | _LS:
            precision, rows, columns, components = struct.unpack_from(">BHHB", frame, place + 4)
            if marker not in types:
                raise ValueError(f"its frame header 0x{marker:02X} is of another transfer syntax")
            _check_size(size, rows, columns, components)
            if precision > 8 * size.sample_bytes:
                raise ValueError(f"the frame has {precision} bits a sample, (0028,0100) allots {8 * size.sample_bytes}")
            return precision
        else:
            place += 2 + int.from_bytes(frame[place + 2 : place + 4], "big")
    raise ValueError("the frame has no frame header of a supported kind")


def _decode_jpeg_2000(frame: bytes, size: FrameSize) -> np.ndarray:
    _check_jpeg_2000(frame, size)
    _check_end(frame)
    samples = imagecodecs.jpeg2k_decode(frame)
    if samples.shape != (size.rows, size.columns) or samples.dtype.itemsize > size.sample_bytes:
        raise ValueError(f"the frame decodes to {samples.shape} of {samples.dtype}")
    return samples.view(f"u{samples.dtype.itemsize}")


def _check_jpeg_2000(frame: bytes, size: FrameSize) -> None:
    """Walks the main header and those of the tile-parts (ITU-T T.800, annex A)."""
    if frame[:4] != b"\xff\x4f" + _SIZ:
        raise ValueError("the frame does not begin like a JPEG 2000 codestream")
    width, height, left, top, *tile = struct.unpack_from(">8I", frame, 8)
    components, depth, *sampling = struct.unpack_from(">HBBB", frame, 40)
    _check_size(size, height - top, width - left, components)
    if left or top or sampling != [1, 1] or not all(tile[:2]):
        raise ValueError("the frame's grid is not that of its pixels")
    num_tiles = -(-width // tile[0]) * -(-height // tile[1])
    if num_tiles > _MAX_TILES:
        raise ValueError(f"the frame has {num_tiles} tiles; the limit is {_MAX_TILES}")
    if (depth & 0x7F) + 1 > 8 * size.sample_bytes:
        raise ValueError(
            f"the frame has {(depth & 0x7F) + 1} bits a sample, (0028,0100) allots {8 * size.sample_bytes}"
        )
    place, next_tile_part = 2, 0
    for _ in range(_MAX_SEGMENTS):
        marker = frame[place : place + 2]
        if marker == _END:
            return
        if marker == _SOD:
            place = next_tile_part
            continue
        length = int.from_bytes(frame[place + 2 : place + 4], "big")
        if length < 2 or place + 2 + length > len(frame):
            raise ValueError("the frame's headers are damaged or cut off")
        if marker in _REFUSED_2000:
            raise ValueError(f"the frame has a {_REFUSED_2000[marker]} segment")
        if marker == _COD:
            _check_coding(frame[place + 4 : place + 2 + length])
        if marker == _SOT:
            tile_part_length = int.from_bytes(frame[place + 6 : place + 10], "big")
            next_tile_part = place + tile_part_length if tile_part_length else len(frame.rstrip(b"\0")) - 2
            if next_tile_part < place + 2 + length or next_tile_part > len(frame) - 2:
                raise ValueError("the frame's tiles are damaged or cut off")
        place += 2 + length
    raise ValueError(f"the frame has more than {_MAX_SEGMENTS:,} segments")


def _check_coding(segment: bytes) -> None:
    """Bounds what a COD segment, without marker and length, asks the codec to keep records of."""
    style, _, layers, _, _, width, height = struct.unpack_from(">BBHBBBB", segment)
    precincts = segment[10:] if style & 1 else b""
    if layers > _MAX_LAYERS or 2 ** ((width & 15) + (height & 15) + 4) < _MIN_CODE_BLOCK:
        raise ValueError(f"the frame has {layers} layers, or code blocks of fewer than {_MIN_CODE_BLOCK} samples")
    if any(min(exponents & 15, exponents >> 4) < _MIN_PRECINCT_EXPONENT for exponents in precincts[1:]):
        raise ValueError(f"the frame has precincts of fewer than {2**_MIN_PRECINCT_EXPONENT} samples a side")


def _decode_rle(frame: bytes, size: FrameSize) -> np.ndarray:
    """Byte planes, the highest first, each packed by itself (PS3.5, annex G)."""
    if len(frame) < 64:
        raise ValueError("the frame is cut off in its header")
    num_segments, *starts = struct.unpack("<16I", frame[:64])
    if num_segments != size.sample_bytes:
        raise ValueError(f"the frame has {num_segments} segments, and a sample has {size.sample_bytes} bytes")
    starts = [*starts[:num_segments], len(frame)]
    samples = np.empty((size.sample_bytes, size.rows * size.columns), np.uint8)
    for place, plane in enumerate(samples):
        start, stop = starts[place : place + 2]
        if not 64 <= start < stop <= len(frame):
            raise ValueError("the frame's segments are damaged or cut off")
        unpacked = imagecodecs.packbits_decode(frame[start:stop], out=plane.size + 2)
        if len(unpacked) < plane.size:
            raise ValueError(f"segment {place + 1} of the frame has {len(unpacked)} of {plane.size} samples")
        plane[:] = np.frombuffer(unpacked, np.uint8, plane.size)
    joined = samples.T.copy().view(f">u{size.sample_bytes}").reshape(size.rows, size.columns)
    return joined.astype(f"u{size.sample_bytes}")


def _check_size(size: FrameSize, rows: int, columns: int, components: int) -> None:
    if (rows, columns, components) != (size.rows, size.columns, 1):
        raise ValueError(
            f"the frame says {columns} x {rows} pixels of {components} samples, (0028,0011) and (0028,0010) say "
            f"{size.columns} x {size.rows} of 1"
        )


def _check_end(frame: bytes) -> None:
    """A codec fills what is missing with gray, or (CharLS) looks for it for minutes: only the end tells of its lack."""
    if not frame.rstrip(b"\0").endswith(_END):
        raise ValueError("the frame is cut off")


_SEQUENTIAL_JPEG = _decode_jpeg(_SEQUENTIAL, imagecodecs.jpeg8_decode)
_LOSSLESS_JPEG = _decode_jpeg(_LOSSLESS, imagecodecs.jpeg8_decode)
_JPEG_LS = _decode_jpeg(_LS, imagecodecs.jpegls_decode)

SYNTAXES: dict[str, Callable[[bytes, FrameSize], np.ndarray]] = {
    JPEGBaseline8Bit: _SEQUENTIAL_JPEG,
    JPEGExtended12Bit: _SEQUENTIAL_JPEG,
    JPEGLossless: _LOSSLESS_JPEG,
    JPEGLosslessSV1: _LOSSLESS_JPEG,
    JPEGLSLossless: _JPEG_LS,
    JPEGLSNearLossless: _JPEG_LS,
    JPEG2000Lossless: _decode_jpeg_2000,
    JPEG2000: _decode_jpeg_2000,
    RLELossless: _decode_rle,
}
"""Decoders by the UID of the compressed transfer syntax."""
