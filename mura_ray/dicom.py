"""A radiograph's file, DICOM or not, to 8-bit gray pixels and what a study needs to know of it.

Only the elements named here are looked at, and what is refused quotes none that could name a person.
"""

import io
import logging
import math
import re
import struct
import warnings
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
from pydicom.charset import convert_encodings
from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.encaps import generate_fragments, parse_basic_offsets
from pydicom.filereader import data_element_generator, read_sequence
from pydicom.sequence import Sequence
from pydicom.tag import BaseTag
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    DigitalXRayImageStorageForProcessing,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from mura_ray.dicom_frames import SYNTAXES, FrameSize, decode_frame
from mura_ray.images import MAX_PIXELS, read_gray

MODALITIES = ("CR", "DX", "RF")

BODY_PARTS = {
    "ELBOW": "elbow",
    "FINGER": "finger", "FINGERS": "finger", "THUMB": "finger",
    "FOREARM": "forearm", "RADIUSULNA": "forearm",
    "HAND": "hand",
    "HUMERUS": "humerus", "UPPERARM": "humerus",
    "SHOULDER": "shoulder",
    "WRIST": "wrist",
}  # fmt: skip
"""Study types by BodyPartExamined, its letters alone and without the side. ARM or UP_EXM could be one of several."""

_IDENTITY = (
    "SpecificCharacterSet", "SOPClassUID", "SOPInstanceUID", "StudyDate", "StudyTime", "AccessionNumber", "Modality",
    "ReferringPhysicianName", "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "BodyPartExamined",
    "StudyInstanceUID", "SeriesInstanceUID", "StudyID", "Laterality", "ImageLaterality", "PatientOrientation",
    "PixelSpacing", "BurnedInAnnotation",
)  # fmt: skip
"""What an object that is made of an image takes over from it."""

_NATIVE = {
    ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian
}  # fmt: skip
_SYNTAXES_IN_WORDS = "uncompressed, deflated, RLE, JPEG baseline, extended or lossless, JPEG-LS, JPEG 2000"

_MAX_INFLATED_BYTES = 2 * MAX_PIXELS + 16 * 2**20
"""Of a deflated file: the largest image, and a header."""

_MAX_READS = 20_000
"""Of pieces of a header, one to three an element: a radiograph has some hundred elements, a hostile file millions."""

_MAX_SHORT_BYTES = 4096
_STRIP_PIXELS = 2**20

_AGAIN = "export the file again"
_UNDEFINED = 0xFFFFFFFF


@dataclass(frozen=True, slots=True, eq=False)
class Radiograph:
    """One view, and what its file says of it.

    Attributes:
        gray: uint8 [H, W], bone bright.
        is_dicom: whether the file is DICOM; the others say nothing but their pixels.
        pixel_spacing_mm: between the centres of rows and of columns: of PixelSpacing, else at the detector.
        study_type: of BodyPartExamined; None where that is no single one of `domain.STUDY_TYPES`.
        study_uid: StudyInstanceUID; None where it is missing or no UID.
        warnings: what makes the pixels mean less than they should.
    """

    gray: np.ndarray
    is_dicom: bool = False
    pixel_spacing_mm: tuple[float, float] | None = None
    study_type: str | None = None
    study_uid: str | None = None
    warnings: tuple[str, ...] = ()


def read_radiograph(content: bytes) -> Radiograph:
    """Reads a DICOM, PNG or JPEG file; its content tells which.

    Args:
        content: the whole file.

    Raises:
        ValueError: it is none of these, or not a radiograph that can be read; the text names element, value and remedy.
    """
    if not is_dicom(content):
        return Radiograph(read_gray(content))
    if content.startswith((b"\x89PNG", b"\xff\xd8\xff")):
        raise ValueError("the file is DICOM and PNG or JPEG at once: send one of the two")
    return read_dicom(content)


def is_dicom(content: bytes) -> bool:
    """Whether this is a DICOM file: by its signature, or without one by a first element of group 0002 or 0008."""
    if content[128:132] == b"DICM":
        return True
    first = content[:8]
    if len(first) < 8 or first[0] not in (0x02, 0x08) or first[1] or first[3]:
        return False
    return (first[4:6].isalpha() and first[4:6].isupper()) or int.from_bytes(first[4:], "little") <= 64


def read_dicom(content: bytes) -> Radiograph:
    """Reads a DICOM file: a single gray frame of 8 to 16 bits, as its own window shows it.

    Modality LUT or rescaling, VOI LUT or else the first window, then the inversion of MONOCHROME1. Without LUT and
    window the range of the pixels becomes the range of gray, padding left out.

    Raises:
        ValueError: see `read_radiograph`.
    """
    try:
        return _read_image(_read_header(content, _TAGS.values()))
    except _RefusedError as refused:
        raise ValueError(str(refused)) from None
    except MemoryError:
        raise
    except Exception as error:  # parsers answer damage with whatever they stumble over, and may quote names
        raise ValueError(f"the file is damaged or cut off ({type(error).__name__}): {_AGAIN}") from None


def read_identity(content: bytes) -> Dataset:
    """Which patient, study and image a DICOM file says that it is, for objects that are made of it.

    Raises:
        ValueError: an element is damaged.
    """
    try:
        header = _read_header(content, [tag_for_keyword(keyword) or 0 for keyword in _IDENTITY])
        found = Dataset({BaseTag(tag): element for tag, element in header.elements.items()})
        encoding = convert_encodings(found.get("SpecificCharacterSet") or "ISO_IR 6")
        found.set_original_encoding(False, header.order == "<", encoding)
        return Dataset({element.tag: element for element in found})  # which decodes each: damage shows here
    except MemoryError:
        raise
    except Exception as error:
        raise ValueError(
            f"the patient's or the study's elements are damaged ({type(error).__name__}): {_AGAIN}"
        ) from None


def study_type_of_body_part(body_part: str) -> str | None:
    """The study type that a value of BodyPartExamined names beyond doubt."""
    words = re.findall(r"[A-Z]+", body_part.upper())
    return BODY_PARTS.get("".join(word for word in words if word not in ("L", "R", "LT", "RT", "LEFT", "RIGHT")))


def _read_image(header: "_Header") -> Radiograph:
    gray, notes = _to_gray(header, _samples(header, _check_image(header)))
    spacing, study_uid = _pixel_spacing(header), header.text("StudyInstanceUID")
    if spacing is None:
        notes.append("no pixel spacing in (0028,0030) or (0018,1164): lengths are unknown")
    if header.code("BurnedInAnnotation") == "YES":
        notes.append(
            "(0028,0301) BurnedInAnnotation is YES: text in the pixels may name the patient and sway the result"
        )
    return Radiograph(
        gray=gray,
        is_dicom=True,
        pixel_spacing_mm=spacing,
        study_type=study_type_of_body_part(header.text("BodyPartExamined")),
        study_uid=study_uid if re.fullmatch(r"[0-9A-Za-z][0-9A-Za-z._-]{0,63}", study_uid) else None,
        warnings=tuple(notes),
    )


class _RefusedError(Exception):
    """A file that is refused in words which are fit to be shown."""


def _refuse(keyword: str, what: str, remedy: str) -> NoReturn:
    raise _RefusedError(f"{_name(keyword)} {what}: {remedy}")


def _name(keyword: str) -> str:
    tag = _TAGS[keyword]
    return f"({tag >> 16:04x},{tag & 0xFFFF:04x}) {keyword}"


_TAGS = {
    "TransferSyntaxUID": 0x00020010,
    "SOPClassUID": 0x00080016,
    "Modality": 0x00080060,
    "PresentationIntentType": 0x00080068,
    "BodyPartExamined": 0x00180015,
    "ImagerPixelSpacing": 0x00181164,
    "StudyInstanceUID": 0x0020000D,
    "SamplesPerPixel": 0x00280002,
    "PhotometricInterpretation": 0x00280004,
    "NumberOfFrames": 0x00280008,
    "Rows": 0x00280010,
    "Columns": 0x00280011,
    "PixelSpacing": 0x00280030,
    "BitsAllocated": 0x00280100,
    "BitsStored": 0x00280101,
    "HighBit": 0x00280102,
    "PixelRepresentation": 0x00280103,
    "PixelPaddingValue": 0x00280120,
    "PixelPaddingRangeLimit": 0x00280121,
    "BurnedInAnnotation": 0x00280301,
    "WindowCenter": 0x00281050,
    "WindowWidth": 0x00281051,
    "RescaleIntercept": 0x00281052,
    "RescaleSlope": 0x00281053,
    "VOILUTFunction": 0x00281056,
    "ModalityLUTSequence": 0x00283000,
    "LUTDescriptor": 0x00283002,
    "LUTData": 0x00283006,
    "VOILUTSequence": 0x00283010,
    "PresentationLUTShape": 0x20500020,
    "PixelData": 0x7FE00010,
}


class _Reader(io.BytesIO):
    """A file of a bounded number of reads."""

    def __init__(self, content: bytes, first: int = 0) -> None:
        super().__init__(content)
        self.seek(first)
        self._num_reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self._num_reads += 1
        if self._num_reads > _MAX_READS:
            raise _RefusedError(f"the file has more than {_MAX_READS:,} pieces: it is no radiograph")
        return super().read(size)


@dataclass(frozen=True, slots=True)
class _Header:
    """Elements by tag, their values bytes still, and how the file is written."""

    elements: Mapping[int, RawDataElement | DataElement]
    syntax: str
    order: str
    """Of bytes, as `struct` and NumPy write it: < or >."""

    def raw(self, keyword: str) -> bytes:
        """The bytes of a value, none for an element that is missing."""
        element = self.elements.get(_TAGS[keyword])
        if element is None:
            return b""
        if not isinstance(element, RawDataElement):
            _refuse(keyword, "is a sequence", _AGAIN)
        value = element.value or b""
        if len(value) < element.length != _UNDEFINED:
            _refuse(keyword, f"has {len(value):,} of {element.length:,} bytes", "the file is cut off; export it again")
        return value

    def short(self, keyword: str) -> bytes:
        """The bytes of a value that is short by its nature."""
        value = self.raw(keyword)
        if len(value) > _MAX_SHORT_BYTES:
            _refuse(keyword, f"has {len(value):,} bytes", _AGAIN)
        return value

    def text(self, keyword: str) -> str:
        return self.short(keyword).decode("latin-1").strip(" \0")

    def code(self, keyword: str) -> str:
        """The first of the values, in capitals."""
        return self.text(keyword).partition("\\")[0].strip().upper()

    def numbers(self, keyword: str) -> list[float]:
        """The numbers that a value writes in decimal."""
        try:
            numbers = [float(part) for part in self.text(keyword).split("\\") if part.strip()]
        except ValueError:
            numbers = [math.nan]
        if not all(math.isfinite(number) for number in numbers):
            _refuse(keyword, "is no number", _AGAIN)
        return numbers

    def unsigned(self, keyword: str) -> list[int]:
        """16-bit numbers."""
        value = self.short(keyword)
        return list(struct.unpack(f"{self.order}{len(value) // 2}H", value[: len(value) // 2 * 2]))

    def count(self, keyword: str) -> int:
        """A 16-bit number that has to be there."""
        numbers = self.unsigned(keyword)
        if len(numbers) != 1:
            _refuse(keyword, "is missing or no 16-bit number", _AGAIN)
        return numbers[0]

    def first_item(self, keyword: str) -> "_Header | None":
        """The elements of a sequence's first item."""
        element = self.elements.get(_TAGS[keyword])
        if element is None:
            return None
        if isinstance(element, RawDataElement):
            value = self.raw(keyword)
            little = element.is_little_endian
            items = read_sequence(_Reader(value), element.is_implicit_VR, little, len(value), "latin-1")
        else:
            items = element.value
        if not isinstance(items, Sequence) or not items:
            return None
        item = items[0]
        elements = {tag: item.get_item(tag) for tag in (_TAGS["LUTDescriptor"], _TAGS["LUTData"]) if tag in item}
        return _Header(elements, self.syntax, self.order)


def _read_header(content: bytes, tags: Iterable[int]) -> _Header:
    """Reads these elements, up to the pixels."""
    _silence_pydicom()
    file = _Reader(content, first=132 if content[128:132] == b"DICM" else 0)
    meta = {int(e.tag): e for e in data_element_generator(file, False, True, stop_when=lambda tag, *_: tag >> 16 != 2)}
    start = file.tell()
    # The form decides: some writers say implicit and write explicit, and without group 0002 nothing is said.
    explicit = re.fullmatch(rb"[A-Z]{2}", content[start + 4 : start + 6]) is not None
    syntax = _Header(meta, "", "<").text("TransferSyntaxUID") if meta else ImplicitVRLittleEndian
    if syntax not in _NATIVE and syntax not in SYNTAXES:
        _refuse("TransferSyntaxUID", f"is {_shown(syntax)}", f"export it {_SYNTAXES_IN_WORDS}")
    if syntax == DeflatedExplicitVRLittleEndian:
        file, explicit = _Reader(_inflate(content[start:])), True
    little = syntax != ExplicitVRBigEndian
    elements = {}
    for element in data_element_generator(file, not explicit, little, specific_tags=[*map(BaseTag, tags)]):
        elements[int(element.tag)] = element
        if element.tag == _TAGS["PixelData"]:
            break
    return _Header(elements, syntax, "<" if little else ">")


def _inflate(deflated: bytes) -> bytes:
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    inflated = inflater.decompress(deflated, _MAX_INFLATED_BYTES)
    if inflater.unconsumed_tail:
        raise _RefusedError(f"the file inflates to more than {_MAX_INFLATED_BYTES:,} bytes: it is no radiograph")
    if not inflater.eof:
        raise _RefusedError(f"the deflated file is cut off: {_AGAIN}")
    return inflated


def _silence_pydicom() -> None:
    """Keeps pydicom from quoting values: it warns and logs what it reads in spite of."""
    warnings.filterwarnings("ignore", module="pydicom")


def _never(_: logging.LogRecord) -> bool:
    return False


logging.getLogger("pydicom").addFilter(_never)


def _shown(code: str) -> str:
    """A code or UID as a text may show it; anything else could be a name."""
    return repr(code) if re.fullmatch(r"[A-Z0-9_ .]{1,64}", code) else "missing" if not code else "unreadable"


def _check_image(header: _Header) -> FrameSize:
    """Refuses what is no single gray frame of a radiograph, before anything is decoded."""
    modality, photometric = header.code("Modality"), header.code("PhotometricInterpretation")
    if modality not in MODALITIES:
        remedy = f"send radiographs, of {', '.join(MODALITIES)}"
        _refuse("Modality", f"is {_shown(modality)}", remedy)
    raw_detector = header.text("SOPClassUID") == DigitalXRayImageStorageForProcessing
    if raw_detector or header.code("PresentationIntentType") == "FOR PROCESSING":
        _refuse("PresentationIntentType", "is FOR PROCESSING", "send the image that is FOR PRESENTATION")
    if not header.elements.get(_TAGS["PixelData"]):
        _refuse("PixelData", "is missing", "send a file with an image")
    frames = header.numbers("NumberOfFrames") or [1]
    if frames != [1]:
        _refuse("NumberOfFrames", f"is {frames[0]:g}", "send single frames")
    if photometric not in ("MONOCHROME1", "MONOCHROME2"):
        _refuse("PhotometricInterpretation", f"is {_shown(photometric)}", "send MONOCHROME1 or MONOCHROME2")
    if (samples := header.count("SamplesPerPixel")) != 1:
        _refuse("SamplesPerPixel", f"is {samples}", "send gray images, of 1")
    rows, columns = header.count("Rows"), header.count("Columns")
    if not rows * columns:
        _refuse("Rows", f"is {rows} and {_name('Columns')} {columns}", _AGAIN)
    if rows * columns > MAX_PIXELS:
        _refuse("Rows", f"and {_name('Columns')} make {columns} x {rows} pixels", f"the limit is {MAX_PIXELS:,}")
    allocated, stored, high = (header.count(keyword) for keyword in ("BitsAllocated", "BitsStored", "HighBit"))
    if allocated not in (8, 16):
        _refuse("BitsAllocated", f"is {allocated}", "send 8 or 16")
    if not 8 <= stored <= allocated:
        _refuse("BitsStored", f"is {stored} of {allocated}", "send images of 8 to 16 bits")
    if not stored - 1 <= high < allocated:
        _refuse("HighBit", f"is {high} with {stored} bits in {allocated}", _AGAIN)
    return FrameSize(rows, columns, allocated // 8)


def _samples(header: _Header, size: FrameSize) -> np.ndarray:
    """The pixels as the file has them, uint8 or uint16 [H, W]."""
    element, value = header.elements[_TAGS["PixelData"]], header.raw("PixelData")
    assert isinstance(element, RawDataElement)
    if (element.length == _UNDEFINED) != (header.syntax in SYNTAXES):
        _refuse("PixelData", f"is not of the form that {_name('TransferSyntaxUID')} says", _AGAIN)
    if header.syntax in SYNTAXES:
        file = _Reader(value)
        if len(parse_basic_offsets(file)) > 1:
            _refuse("PixelData", "has several frames", "send single frames")
        frame = b"".join(generate_fragments(file))
        try:
            return decode_frame(header.syntax, frame, size)
        except ValueError as error:
            _refuse("PixelData", f"cannot be decoded, {error}", _AGAIN)
    row = size.columns * size.sample_bytes
    if not 0 <= len(value) - size.rows * row < max(row, 2):
        _refuse("PixelData", f"has {len(value):,} bytes, and {size.rows} rows of {row:,} are due", _AGAIN)
    samples = np.frombuffer(value, f"{header.order}u{size.sample_bytes}", size.rows * size.columns)
    if header.order == ">" and size.sample_bytes == 1 and element.VR == "OW":  # bytes in words
        samples = np.frombuffer(value, ">u2").byteswap().view(np.uint8)[: samples.size]
    return samples.reshape(size.rows, size.columns)


def _to_gray(header: _Header, samples: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """The pixels as they are meant to be seen, and what to warn of.

    Every step is one table over all values that a pixel can have: exact, and quick for any size.
    """
    stored, codes = _stored_values(header, samples)
    with np.errstate(all="ignore"):
        values = _modality(header, stored)
        levels, notes = _present(header, values, _seen(header, stored, codes))
    if not np.isfinite(levels).all():
        _refuse("RescaleSlope", "or window has no meaning with these pixels", _AGAIN)
    shape = {"IDENTITY": "MONOCHROME2", "INVERSE": "MONOCHROME1"}.get(header.code("PresentationLUTShape"))
    if (shape or header.code("PhotometricInterpretation")) == "MONOCHROME1":  # dcmtk too has the shape decide
        levels = 1 - levels
    shown, gray = np.rint(255 * levels).astype(np.uint8), np.empty(codes.shape, np.uint8)
    for strip in _strips(codes.shape):
        gray[strip] = shown[codes[strip]]
    return gray, notes


def _strips(shape: tuple[int, ...]) -> Iterator[slice]:
    """Rows that go through a table together: NumPy makes 8 bytes of each pixel to look it up."""
    num_rows = max(1, _STRIP_PIXELS // shape[1])
    for first in range(0, shape[0], num_rows):
        yield slice(first, first + num_rows)


def _stored_values(header: _Header, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
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


def _modality(header: _Header, stored: np.ndarray) -> np.ndarray:
    if (item := header.first_item("ModalityLUTSequence")) is not None:
        return _look_up(item, stored, "ModalityLUTSequence")[0]
    slope, intercept = (header.numbers(keyword) for keyword in ("RescaleSlope", "RescaleIntercept"))
    return stored * (slope or [1])[0] + (intercept or [0])[0]


def _present(header: _Header, values: np.ndarray, seen: np.ndarray) -> tuple[np.ndarray, list[str]]:
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
        _refuse("VOILUTFunction", f"is {_shown(function)}", "send LINEAR, LINEAR_EXACT or SIGMOID")
    if width == 1:
        return (values > center - 0.5).astype(float)
    return np.clip((values - (center - 0.5)) / (width - 1) + 0.5, 0, 1)


def _look_up(item: _Header, values: np.ndarray, sequence: str) -> tuple[np.ndarray, int]:
    """What a LUT has for each value, and the bits of its entries (PS3.3, C.11.1 and C.11.2)."""
    descriptor, data = item.unsigned("LUTDescriptor"), item.raw("LUTData")
    if len(descriptor) != 3 or not 8 <= descriptor[2] <= 16:
        _refuse("LUTDescriptor", f"in {_name(sequence)} is not of three numbers, the third of 8 to 16", _AGAIN)
    length, first, bits = descriptor[0] or 2**16, descriptor[1], descriptor[2]
    if first >= 2**15 and values.min() < 0:
        first -= 2**16  # written as a signed number
    entry_bytes = 2 if len(data) >= 2 * length else 1
    if len(data) < length:
        _refuse("LUTData", f"in {_name(sequence)} has {len(data)} bytes for {length} entries", _AGAIN)
    table = np.frombuffer(data, f"{item.order}u{entry_bytes}", length).astype(float)
    return table[np.clip(np.rint(values) - first, 0, length - 1).astype(int)], bits


def _seen(header: _Header, stored: np.ndarray, codes: np.ndarray) -> np.ndarray:
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


def _pixel_spacing(header: _Header) -> tuple[float, float] | None:
    for keyword in ("PixelSpacing", "ImagerPixelSpacing"):
        spacing = header.numbers(keyword)
        if len(spacing) == 2 and min(spacing) > 0:
            return spacing[0], spacing[1]
    return None
