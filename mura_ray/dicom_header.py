"""The elements of a DICOM file that somebody asks for, up to its pixels, read with bounds and without quoting names."""

import io
import logging
import math
import re
import struct
import warnings
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NoReturn

from pydicom.charset import convert_encodings
from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.filereader import data_element_generator, read_sequence
from pydicom.sequence import Sequence
from pydicom.tag import BaseTag
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from mura_ray.dicom_frames import SYNTAXES
from mura_ray.images import MAX_PIXELS

_IDENTITY = (
    "SpecificCharacterSet", "SOPClassUID", "SOPInstanceUID", "StudyDate", "StudyTime", "AccessionNumber", "Modality",
    "ReferringPhysicianName", "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "BodyPartExamined",
    "StudyInstanceUID", "SeriesInstanceUID", "StudyID", "Laterality", "ImageLaterality", "PatientOrientation",
    "PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing", "BurnedInAnnotation",
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

AGAIN = "export the file again"
"""The remedy for damage."""

UNDEFINED = 0xFFFFFFFF
"""A length: as far as the next delimiter."""


TAGS = {
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


class RefusedError(Exception):
    """A file that is refused in words which are fit to be shown."""


def refuse(keyword: str, what: str, remedy: str) -> NoReturn:
    """Refuses the file for an element, in words that quote no value which could name a person."""
    raise RefusedError(f"{name_of(keyword)} {what}: {remedy}")


def name_of(keyword: str) -> str:
    """An element's tag and keyword."""
    tag = TAGS[keyword]
    return f"({tag >> 16:04x},{tag & 0xFFFF:04x}) {keyword}"


class Reader(io.BytesIO):
    """A file of a bounded number of reads."""

    def __init__(self, content: bytes, first: int = 0) -> None:
        super().__init__(content)
        self.seek(first)
        self._num_reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        """As of any file, so many times.

        Raises:
            RefusedError: too often.
        """
        self._num_reads += 1
        if self._num_reads > _MAX_READS:
            raise RefusedError(f"the file has more than {_MAX_READS:,} pieces: it is no radiograph")
        return super().read(size)


@dataclass(frozen=True, slots=True)
class Header:
    """Elements by tag, their values bytes still, and how the file is written."""

    elements: Mapping[int, RawDataElement | DataElement]
    syntax: str
    order: str
    """Of bytes, as `struct` and NumPy write it: < or >."""

    def raw(self, keyword: str) -> bytes:
        """The bytes of a value, none for an element that is missing."""
        element = self.elements.get(TAGS[keyword])
        if element is None:
            return b""
        if not isinstance(element, RawDataElement):
            refuse(keyword, "is a sequence", AGAIN)
        value = element.value or b""
        if len(value) < element.length != UNDEFINED:
            refuse(keyword, f"has {len(value):,} of {element.length:,} bytes", "the file is cut off; export it again")
        return value

    def short(self, keyword: str) -> bytes:
        """The bytes of a value that is short by its nature."""
        value = self.raw(keyword)
        if len(value) > _MAX_SHORT_BYTES:
            refuse(keyword, f"has {len(value):,} bytes", AGAIN)
        return value

    def text(self, keyword: str) -> str:
        """The value as text, none for an element that is missing."""
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
            refuse(keyword, "is no number", AGAIN)
        return numbers

    def unsigned(self, keyword: str) -> list[int]:
        """16-bit numbers."""
        value = self.short(keyword)
        return list(struct.unpack(f"{self.order}{len(value) // 2}H", value[: len(value) // 2 * 2]))

    def count(self, keyword: str) -> int:
        """A 16-bit number that has to be there."""
        numbers = self.unsigned(keyword)
        if len(numbers) != 1:
            refuse(keyword, "is missing or no 16-bit number", AGAIN)
        return numbers[0]

    def first_item(self, keyword: str) -> "Header | None":
        """The elements of a sequence's first item."""
        element = self.elements.get(TAGS[keyword])
        if element is None:
            return None
        if isinstance(element, RawDataElement):
            value = self.raw(keyword)
            little = element.is_little_endian
            items = read_sequence(Reader(value), element.is_implicit_VR, little, len(value), "latin-1")
        else:
            items = element.value
        if not isinstance(items, Sequence) or not items:
            return None
        item = items[0]
        elements = {tag: item.get_item(tag) for tag in (TAGS["LUTDescriptor"], TAGS["LUTData"]) if tag in item}
        return Header(elements, self.syntax, self.order)


def read_header(content: bytes, tags: Iterable[int]) -> Header:
    """Reads these elements, up to the pixels."""
    _silence_pydicom()
    file = Reader(content, first=132 if content[128:132] == b"DICM" else 0)
    meta = {int(e.tag): e for e in data_element_generator(file, False, True, stop_when=lambda tag, *_: tag >> 16 != 2)}
    start = file.tell()
    # The form decides: some writers say implicit and write explicit, and without group 0002 nothing is said.
    explicit = re.fullmatch(rb"[A-Z]{2}", content[start + 4 : start + 6]) is not None
    syntax = Header(meta, "", "<").text("TransferSyntaxUID") if meta else ImplicitVRLittleEndian
    if syntax not in _NATIVE and syntax not in SYNTAXES:
        refuse("TransferSyntaxUID", f"is {shown(syntax)}", f"export it {_SYNTAXES_IN_WORDS}")
    if syntax == DeflatedExplicitVRLittleEndian:
        file, explicit = Reader(_inflate(content[start:])), True
    little = syntax != ExplicitVRBigEndian
    elements = {}
    for element in data_element_generator(file, not explicit, little, specific_tags=[*map(BaseTag, tags)]):
        elements[int(element.tag)] = element
        if element.tag == TAGS["PixelData"]:
            break
    return Header(elements, syntax, "<" if little else ">")


def read_identity(content: bytes) -> Dataset:
    """Which patient, study and image a DICOM file says that it is, for objects that are made of it.

    Raises:
        ValueError: an element is damaged.
    """
    try:
        header = read_header(content, [tag_for_keyword(keyword) or 0 for keyword in _IDENTITY])
        found = Dataset({BaseTag(tag): element for tag, element in header.elements.items()})
        encoding = convert_encodings(found.get("SpecificCharacterSet") or "ISO_IR 6")
        found.set_original_encoding(False, header.order == "<", encoding)
        return Dataset({element.tag: element for element in found})  # which decodes each: damage shows here
    except MemoryError:
        raise
    except Exception as error:
        raise ValueError(
            f"the patient's or the study's elements are damaged ({type(error).__name__}): {AGAIN}"
        ) from None


def _inflate(deflated: bytes) -> bytes:
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    inflated = inflater.decompress(deflated, _MAX_INFLATED_BYTES)
    if inflater.unconsumed_tail:
        raise RefusedError(f"the file inflates to more than {_MAX_INFLATED_BYTES:,} bytes: it is no radiograph")
    if not inflater.eof:
        raise RefusedError(f"the deflated file is cut off: {AGAIN}")
    return inflated


def _silence_pydicom() -> None:
    """Keeps pydicom from quoting values: it warns and logs what it reads in spite of."""
    warnings.filterwarnings("ignore", module="pydicom")


def _never(_: logging.LogRecord) -> bool:
    return False


logging.getLogger("pydicom").addFilter(_never)


def shown(code: str) -> str:
    """A code or UID as a text may show it; anything else could be a name."""
    return repr(code) if re.fullmatch(r"[A-Z0-9_ .]{1,64}", code) else "missing" if not code else "unreadable"
