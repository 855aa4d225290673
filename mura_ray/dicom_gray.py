"""The samples of a DICOM image to 8-bit gray, as the file itself says that they are meant to be seen (PS3.3, C.11)."""

from collections.abc import Iterator

import numpy as np

from mura_ray.dicom_frames import SYNTAXES
from mura_ray.dicom_header import AGAIN, Header, name_of, refuse, shown

_STRIP_PIXELS = 2**20


def to_gray(header: Header, samples: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """The pixels as they are meant to be seen, and what to warn of.

    Every step is one table over all values that a pixel can have: exact, and quick for any size.
    """
    stored, codes = _stored_values(header, samples)
    with np.errstate(all="ignore"):
        values = _modality(header, stored)
        levels, notes = _present(header, values, _seen(header, stored, codes))
    if not np.isfinite(levels).all():
        refuse("RescaleSlope", "or window has no meaning with these pixels", AGAIN)
    shape = {"IDENTITY": "MONOCHROME2", "INVERSE": "MONOCHROME1"}.get(header.code("PresentationLUTShape"))
    if (shape or header.code("PhotometricInterpretation")) == "MONOCHROME1":  # dcmtk too has the shape decide
        levels = 1 - levels
    visible, gray = np.rint(255 * levels).astype(np.uint8), np.empty(codes.shape, np.uint8)
    for strip in _strips(codes.shape):
        gray[strip] = visible[codes[strip]]
    return gray, notes


def _strips(shape: tuple[int, ...]) -> Iterator[slice]:
    """Rows that go through a table together: NumPy makes 8 bytes of each pixel to look it up."""
    num_rows = max(1, _STRIP_PIXELS // shape[1])
    for first in range(0, shape[0], num_rows):
        yield slice(first, first + num_rows)


def _stored_values(header: Header, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The value of each code, float64 [2 ** BitsStored], and the code of each pixel, [H, W]."""
    bits, signed = header.count("BitsStored"), header.count("PixelRepresentation")
    shift, mask = header.count("HighBit") + 1 - bits, 2**bits - 1
    stored = np.arange(2.0**bits)
    if signed:
        stored[2 ** (bits - 1) :] -= 2**bits
    if header.syntax in SYNTAXES and not shift:  # lossy codecs of more bits may pass the ends, and must not wrap around
        if not signed:
            samples = np.minimum(samples, mask)
        elif (whole := samples.view(f"i{samples.dtype.itemsize}")).min() < 0:
            samples = np.clip(whole, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1).view(samples.dtype)
    return stored, samples >> shift & mask


def _modality(header: Header, stored: np.ndarray) -> np.ndarray:
    if (item := header.first_item("ModalityLUTSequence")) is not None:
        return _look_up(item, stored, "ModalityLUTSequence")[0]
    slope, intercept = (header.numbers(keyword) for keyword in ("RescaleSlope", "RescaleIntercept"))
    return stored * (slope or [1])[0] + (intercept or [0])[0]


def _present(header: Header, values: np.ndarray, seen: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """How bright each value is shown, from 0 to 1 (PS3.3, C.11.2), and what to warn of."""
    if (item := header.first_item("VOILUTSequence")) is not None:
        table, bits = _look_up(item, values, "VOILUTSequence")
        return np.minimum(table / (2**bits - 1), 1), []
    centers, widths = header.numbers("WindowCenter"), header.numbers("WindowWidth")
    function = header.code("VOILUTFunction") or "LINEAR"
    if centers and widths and widths[0] > 0 and (function != "LINEAR" or widths[0] >= 1):
        return _window(values, centers[0], widths[0], function), []
    low, high = values[seen].min(), values[seen].max()
    levels = np.clip((values - low) / (high - low), 0, 1) if high > low else np.zeros_like(values)
    return levels, ["no window or VOI LUT in the file: the whole range of its pixels is shown"]


def _window(values: np.ndarray, center: float, width: float, function: str) -> np.ndarray:
    if function == "SIGMOID":
        return 1 / (1 + np.exp(-4 * (values - center) / width))
    if function == "LINEAR_EXACT":
        return np.clip((values - center) / width + 0.5, 0, 1)
    if function != "LINEAR":
        refuse("VOILUTFunction", f"is {shown(function)}", "send LINEAR, LINEAR_EXACT or SIGMOID")
    if width == 1:
        return (values > center - 0.5).astype(float)
    return np.clip((values - (center - 0.5)) / (width - 1) + 0.5, 0, 1)


def _look_up(item: Header, values: np.ndarray, sequence: str) -> tuple[np.ndarray, int]:
    """What a LUT has for each value, and the bits of its entries (PS3.3, C.11.1 and C.11.2)."""
    descriptor, data = item.unsigned("LUTDescriptor"), item.raw("LUTData")
    if len(descriptor) != 3 or not 8 <= descriptor[2] <= 16:
        refuse("LUTDescriptor", f"in {name_of(sequence)} is not of three numbers, the third of 8 to 16", AGAIN)
    length, first, bits = descriptor[0] or 2**16, descriptor[1], descriptor[2]
    if first >= 2**15 and values.min() < 0:
        first -= 2**16  # written as a signed number
    entry_bytes = 2 if len(data) >= 2 * length else 1
    if len(data) < length:
        refuse("LUTData", f"in {name_of(sequence)} has {len(data)} bytes for {length} entries", AGAIN)
    table = np.frombuffer(data, f"{item.order}u{entry_bytes}", length).astype(float)
    return table[np.clip(np.rint(values) - first, 0, length - 1).astype(int)], bits


def _seen(header: Header, stored: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Which codes the pixels have, padding left out unless there is nothing else: bool [2 ** BitsStored]."""
    seen = np.zeros(len(stored), bool)
    for strip in _strips(codes.shape):
        seen[codes[strip]] = True
    ends = header.unsigned("PixelPaddingValue")[:1] + header.unsigned("PixelPaddingRangeLimit")[:1]
    if not ends:
        return seen
    paddings = stored[np.array(ends) & (len(stored) - 1)]
    image = seen & ((stored < paddings.min()) | (stored > paddings.max()))
    return image if image.any() else seen
