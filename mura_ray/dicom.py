"""A radiograph's file, DICOM or not, to 8-bit gray pixels and what a study needs to know of it.

Only the elements named here are looked at, and what is refused quotes none that could name a person.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from pydicom.dataelem import RawDataElement
from pydicom.encaps import generate_fragments, parse_basic_offsets
from pydicom.uid import DigitalXRayImageStorageForProcessing

from mura_ray.dicom_frames import SYNTAXES, FrameSize, decode_frame
from mura_ray.dicom_gray import to_gray
from mura_ray.dicom_header import (
    AGAIN,
    TAGS,
    UNDEFINED,
    Header,
    Reader,
    RefusedError,
    name_of,
    read_header,
    refuse,
    shown,
)
from mura_ray.images import MAX_PIXELS, read_picture

T = TypeVar("T")

MODALITIES = ("CR", "DX", "RF")

SIGNATURE_BYTES = 132
"""What `is_dicom` looks at."""

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

_COLOUR = "the picture is in colour, and radiographs are gray: its colours are lost, and it may be no radiograph"


@dataclass(frozen=True, slots=True, eq=False)
class Radiograph:
    """One view, and what its file says of it.

    Attributes:
        gray: uint8 [H, W], bone bright.
        is_dicom: whether the file is DICOM; the others say nothing but their pixels.
        pixel_spacing_mm: between the centres of rows and of columns: of PixelSpacing, else at the detector.
        body_part: BodyPartExamined as a text may show it; None where it is missing.
        study_type: of BodyPartExamined; None where that is no single one of `domain.STUDY_TYPES`.
        study_uid: StudyInstanceUID; None where it is missing or no UID.
        warnings: what makes the pixels mean less than they should.
    """

    gray: np.ndarray
    is_dicom: bool = False
    pixel_spacing_mm: tuple[float, float] | None = None
    body_part: str | None = None
    study_type: str | None = None
    study_uid: str | None = None
    warnings: tuple[str, ...] = ()

    def warnings_as(self, study_type: str | None) -> tuple[str, ...]:
        """The warnings about a view of a study of this type; None: the type is not known."""
        if study_type and self.study_type and study_type != self.study_type:
            return *self.warnings, f"BodyPartExamined (0018,0015) says {self.study_type}, not {study_type}"
        return self.warnings


def read_radiograph(content: bytes) -> Radiograph:
    """Reads a DICOM, PNG or JPEG file; its content tells which.

    Args:
        content: the whole file.

    Raises:
        ValueError: it is none of these, or not a radiograph that can be read; the text names element, value and remedy.
    """
    if not is_dicom(content):
        gray, is_colour = read_picture(content)
        return Radiograph(gray, warnings=(_COLOUR,) if is_colour else ())
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
    return _checked(content, _read_image)


def _checked(content: bytes, read: Callable[[Header], T]) -> T:
    try:
        return read(read_header(content, TAGS.values()))
    except RefusedError as refused:
        raise ValueError(str(refused)) from None
    except MemoryError:
        raise
    except Exception as error:  # parsers answer damage with whatever they stumble over, and may quote names
        raise ValueError(f"the file is damaged or cut off ({type(error).__name__}): {AGAIN}") from None


@dataclass(frozen=True, slots=True)
class StudySaid:
    """What a DICOM file says of the study that it is a view of; the attributes are those of `Radiograph`."""

    study_uid: str | None
    body_part: str | None
    study_type: str | None


def read_study(content: bytes) -> StudySaid:
    """What a DICOM file says of its study. Its pixels are not looked at, and need not be there.

    Raises:
        ValueError: it is no DICOM file, or a damaged one.
    """
    if not is_dicom(content):
        raise ValueError("the file is no DICOM file")
    return _checked(content, _study)


def study_type_of_body_part(body_part: str) -> str | None:
    """The study type that a value of BodyPartExamined names beyond doubt."""
    words = re.findall(r"[A-Z]+", body_part.upper())
    return BODY_PARTS.get("".join(word for word in words if word not in ("L", "R", "LT", "RT", "LEFT", "RIGHT")))


def _study(header: Header) -> StudySaid:
    study_uid, body_part = header.text("StudyInstanceUID"), header.text("BodyPartExamined")
    return StudySaid(
        study_uid=study_uid if re.fullmatch(r"[0-9A-Za-z][0-9A-Za-z._-]{0,63}", study_uid) else None,
        body_part=shown(body_part.upper()) if body_part else None,
        study_type=study_type_of_body_part(body_part),
    )


def _read_image(header: Header) -> Radiograph:
    gray, notes = to_gray(header, _samples(header, _check_image(header)))
    study, spacing = _study(header), _pixel_spacing(header)
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
        body_part=study.body_part,
        study_type=study.study_type,
        study_uid=study.study_uid,
        warnings=tuple(notes),
    )


def _check_image(header: Header) -> FrameSize:
    """Refuses what is no single gray frame of a radiograph, before anything is decoded."""
    modality, photometric = header.code("Modality"), header.code("PhotometricInterpretation")
    if modality not in MODALITIES:
        remedy = f"send radiographs, of {', '.join(MODALITIES)}"
        refuse("Modality", f"is {shown(modality)}", remedy)
    raw_detector = header.text("SOPClassUID") == DigitalXRayImageStorageForProcessing
    if raw_detector or header.code("PresentationIntentType") == "FOR PROCESSING":
        refuse("PresentationIntentType", "is FOR PROCESSING", "send the image that is FOR PRESENTATION")
    if not header.elements.get(TAGS["PixelData"]):
        refuse("PixelData", "is missing", "send a file with an image")
    frames = header.numbers("NumberOfFrames") or [1]
    if frames != [1]:
        refuse("NumberOfFrames", f"is {frames[0]:g}", "send single frames")
    if photometric not in ("MONOCHROME1", "MONOCHROME2"):
        refuse("PhotometricInterpretation", f"is {shown(photometric)}", "send MONOCHROME1 or MONOCHROME2")
    if (samples := header.count("SamplesPerPixel")) != 1:
        refuse("SamplesPerPixel", f"is {samples}", "send gray images, of 1")
    rows, columns = header.count("Rows"), header.count("Columns")
    if not rows * columns:
        refuse("Rows", f"is {rows} and {name_of('Columns')} {columns}", AGAIN)
    if rows * columns > MAX_PIXELS:
        refuse("Rows", f"and {name_of('Columns')} make {columns} x {rows} pixels", f"the limit is {MAX_PIXELS:,}")
    allocated, stored, high = (header.count(keyword) for keyword in ("BitsAllocated", "BitsStored", "HighBit"))
    if allocated not in (8, 16):
        refuse("BitsAllocated", f"is {allocated}", "send 8 or 16")
    if not 8 <= stored <= allocated:
        refuse("BitsStored", f"is {stored} of {allocated}", "send images of 8 to 16 bits")
    if not stored - 1 <= high < allocated:
        refuse("HighBit", f"is {high} with {stored} bits in {allocated}", AGAIN)
    return FrameSize(rows, columns, allocated // 8)


def _samples(header: Header, size: FrameSize) -> np.ndarray:
    """The pixels as the file has them, uint8 or uint16 [H, W]."""
    element, value = header.elements[TAGS["PixelData"]], header.raw("PixelData")
    assert isinstance(element, RawDataElement)
    if (element.length == UNDEFINED) != (header.syntax in SYNTAXES):
        refuse("PixelData", f"is not of the form that {name_of('TransferSyntaxUID')} says", AGAIN)
    if header.syntax in SYNTAXES:
        file = Reader(value)
        if len(parse_basic_offsets(file)) > 1:
            refuse("PixelData", "has several frames", "send single frames")
        frame = b"".join(generate_fragments(file))
        try:
            return decode_frame(header.syntax, frame, size)
        except ValueError as error:
            refuse("PixelData", f"cannot be decoded, {error}", AGAIN)
    row = size.columns * size.sample_bytes
    if not 0 <= len(value) - size.rows * row < max(row, 2):
        refuse("PixelData", f"has {len(value):,} bytes, and {size.rows} rows of {row:,} are due", AGAIN)
    samples = np.frombuffer(value, f"{header.order}u{size.sample_bytes}", size.rows * size.columns)
    if header.order == ">" and size.sample_bytes == 1 and element.VR == "OW":  # bytes in words
        samples = np.frombuffer(value, ">u2").byteswap().view(np.uint8)[: samples.size]
    return samples.reshape(size.rows, size.columns)


def _pixel_spacing(header: Header) -> tuple[float, float] | None:
    for keyword in ("PixelSpacing", "ImagerPixelSpacing"):
        spacing = header.numbers(keyword)
        if len(spacing) == 2 and min(spacing) > 0:
            return spacing[0], spacing[1]
    return None
