"""A study's files to its views: DICOM, PNG or JPEG, one by one or in a zip. Knows no HTTP, writes no file."""

import hashlib
import io
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

import numpy as np

from mura_ray.dicom import Radiograph, is_dicom, read_radiograph
from mura_ray.domain import STUDY_TYPES
from serve.limits import Limits
from serve.problems import ProblemError

Damaged = Literal["refuse", "leave_out"]
"""What becomes of a study when a view of it cannot be read."""

_ZIP_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # the others may ask for gigabytes to begin with
_ZIP_DIRECTORY_BYTES = 2**18
"""An entry takes some hundred bytes of the directory, all of which zipfile reads at once."""

_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".dcm", ".dicom")
_IMAGE_BEGINNINGS = (b"\x89PNG", b"\xff\xd8\xff")
_BEGINNING_BYTES = 132
"""As far as the signature of DICOM."""

_NUM_NAMES = 3
"""Of files that a warning is about, the first."""

_MIN_SIDE = 64
"""Pixels: a view of fewer is an icon, or was scaled down until little can be seen."""


@dataclass(frozen=True, slots=True)
class Upload:
    """One file as it was sent, a view or a zip of views."""

    name: str
    content: bytes


@dataclass(frozen=True, slots=True)
class DecodedView:
    """One view: its file and what it shows."""

    name: str
    content: bytes
    radiograph: Radiograph

    @property
    def gray(self) -> np.ndarray:
        """uint8 [H, W]."""
        return self.radiograph.gray


@dataclass(frozen=True, slots=True)
class DecodedStudy:
    """The views of a request; the study type that it or the files name; what should make a reader doubt the answer.

    `num_left_out`: further views that cannot be read; the warnings name them.
    """

    views: list[DecodedView]
    study_type: str | None
    warnings: list[str]
    num_left_out: int = 0


def is_zip(content: bytes) -> bool:
    """Whether this begins like a zip."""
    return content.startswith((b"PK\x03\x04", b"PK\x05\x06"))


def decode_study(
    uploads: Sequence[Upload], study_type: str | None, limits: Limits, damaged: Damaged = "refuse"
) -> DecodedStudy:
    """Reads the files of one study.

    Args:
        uploads: views, and zips of views.
        study_type: as the caller says; None: as BodyPartExamined says.
        limits: of number, bytes and pixels; views that are left out count too.
        damaged: what becomes of a study with views that cannot be read. A zip that cannot be read is always refused,
            for nobody knows what it holds.

    Raises:
        ProblemError: a file, or each, cannot be read, they are too large together, or they are of several studies.
    """
    views, num_pixels, left_out, skipped = [], 0, [], []
    for upload in _unpacked(uploads, limits, skipped):
        try:
            radiograph = read_radiograph(upload.content)
        except ValueError as error:
            if damaged == "refuse":
                detail = f"{upload.name}: {error}"
                raise ProblemError(422, "damaged-view", "a view cannot be read", detail, view=upload.name) from error
            left_out.append(f"{upload.name}: left out, for it cannot be read: {error}")
            continue
        num_pixels += radiograph.gray.size
        if num_pixels > limits.study_pixels:
            detail = f"the views have more than {limits.study_pixels:,} pixels together; send fewer or smaller ones"
            raise ProblemError(413, "too-many-pixels", "the study is too large", detail, limit=limits.study_pixels)
        views.append(DecodedView(upload.name, upload.content, radiograph))
    if left_out and not views:
        detail = f"of {len(left_out)} views none can be read. {'; '.join(left_out)}"
        raise ProblemError(422, "damaged-view", "no view can be read", detail)
    if not views:
        detail = "the zip holds no DICOM, PNG or JPEG files; put the study's views in it"
        raise ProblemError(422, "no-views", "there are no views", detail)
    _check_one_study(views)
    said = {view.radiograph.study_type for view in views} - {None}
    return DecodedStudy(
        views=views,
        study_type=study_type or (said.pop() if len(said) == 1 else None),
        warnings=[*left_out, *skipped, *_type_warnings(views, study_type), *_view_warnings(views, study_type)],
        num_left_out=len(left_out),
    )


def _check_one_study(views: Sequence[DecodedView]) -> None:
    studies: dict[str, str] = {}
    for view in views:
        if uid := view.radiograph.study_uid:
            studies.setdefault(uid, view.name)
    if len(studies) > 1:
        detail = (
            f"by StudyInstanceUID (0020,000d) the views are of {len(studies)} studies, which begin with "
            f"{', '.join(studies.values())}; send each study by itself"
        )
        raise ProblemError(422, "several-studies", "the views are of several studies", detail)


def _pixel_warnings(views: Sequence[DecodedView]) -> list[str]:
    """What makes the mean over the views mean less than it says."""
    warnings, seen = [], {}
    for view in views:
        if view.gray.min() == view.gray.max():
            warnings.append(f"{view.name}: every pixel is {view.gray.flat[0]}; this is no radiograph")
        elif min(view.gray.shape) < _MIN_SIDE:
            height, width = view.gray.shape
            warnings.append(f"{view.name}: {width} x {height} pixels; of fewer than {_MIN_SIDE} a side little is seen")
        first = seen.setdefault(hashlib.sha256(view.content).digest(), view)
        if first is not view:
            warnings.append(f"{view.name}: the same file as {first.name}; it counts twice in the mean")
    return warnings


def _type_warnings(views: Sequence[DecodedView], study_type: str | None) -> list[str]:
    """At most one: that nobody says what the study shows. Views that disagree have warnings of their own."""
    if study_type or any(view.radiograph.study_type for view in views):
        return []
    parts = sorted({view.radiograph.body_part for view in views if view.radiograph.body_part})
    said = f"BodyPartExamined (0018,0015) is {', '.join(parts)}, and " if parts else ""
    return [f"the study type is not known: {said}the ensemble was trained on {', '.join(STUDY_TYPES)} alone"]


def _view_warnings(views: Sequence[DecodedView], study_type: str | None) -> list[str]:
    """Of what the pixels of each are, then of what its file says."""
    known = study_type or next((view.radiograph.study_type for view in views if view.radiograph.study_type), None)
    of_files = [f"{view.name}: {warning}" for view in views for warning in view.radiograph.warnings_as(known)]
    return [*_pixel_warnings(views), *of_files]


def _unpacked(uploads: Sequence[Upload], limits: Limits, skipped: list[str]) -> Iterator[Upload]:
    """The views among and in the files that were sent, no more of them than a study may have.

    `skipped` gets a warning for each zip with files that are no views.
    """
    num_views = num_bytes = 0
    for upload in uploads:
        for view in _unzipped(upload, limits, skipped) if is_zip(upload.content) else [upload]:
            num_views += 1
            num_bytes += len(view.content)
            if num_views > limits.views:
                detail = f"the study has more than {limits.views} views; send fewer"
                raise ProblemError(413, "too-many-views", "the study is too large", detail, limit=limits.views)
            if num_bytes > limits.study_bytes:
                detail = f"unpacked the views have more than {limits.study_bytes:,} bytes together; send fewer"
                raise ProblemError(413, "study-too-large", "the study is too large", detail, limit=limits.study_bytes)
            yield view


def _unzipped(upload: Upload, limits: Limits, skipped: list[str]) -> Iterator[Upload]:
    """The images in a zip. Hidden files are left out, and what else is on a DICOM medium: a viewer, texts."""
    others: list[str] = []
    try:
        _check_directory(upload.content)
        with zipfile.ZipFile(io.BytesIO(upload.content)) as archive:
            for entry in archive.infolist():
                parts = PurePosixPath(entry.filename).parts
                hidden = any(part.startswith((".", "__MACOSX")) for part in parts)
                if entry.is_dir() or hidden or parts[-1:] == ("DICOMDIR",):
                    continue
                if _may_be_image(archive, entry):
                    yield Upload(entry.filename, _read_entry(archive, entry, limits))
                else:
                    others.append(entry.filename)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, OSError, ValueError) as error:
        detail = f"{upload.name}: the zip is damaged or of an unusual kind ({type(error).__name__}); pack it again"
        raise ProblemError(422, "damaged-zip", "a zip cannot be read", detail, view=upload.name) from error
    if others:
        names = ", ".join(others[:_NUM_NAMES]) + (", ..." if len(others) > _NUM_NAMES else "")
        skipped.append(f"{upload.name}: left out {len(others)} files that are no DICOM, PNG or JPEG: {names}")


def _may_be_image(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bool:
    """By its suffix or its first bytes; a damaged one is an image too, and so is a zip, which may hold some."""
    _check_entry(entry)
    if entry.filename.lower().endswith((*_IMAGE_SUFFIXES, ".zip")):
        return True
    with archive.open(entry) as file:
        beginning = file.read(_BEGINNING_BYTES)
    return beginning.startswith(_IMAGE_BEGINNINGS) or is_dicom(beginning)


def _check_directory(content: bytes) -> None:
    """Bounds what zipfile reads before it gives the first entry.

    Raises:
        ValueError: the directory is too large, or the zip is of the 64-bit kind, which no study needs.
    """
    end = len(content) - 22
    if content[end : end + 4] != b"PK\x05\x06" or content[-2:] != b"\0\0":  # where zipfile looks first
        end = content.rfind(b"PK\x05\x06", max(0, end - 0xFFFF))
    if end < 0 or len(content) < end + 22:
        raise zipfile.BadZipFile
    (num_bytes,) = struct.unpack_from("<I", content, end + 12)
    if num_bytes > _ZIP_DIRECTORY_BYTES or content[max(0, end - 20) : end].startswith(b"PK\x06\x07"):
        raise ValueError("too many entries")


def _check_entry(entry: zipfile.ZipInfo) -> None:
    if entry.flag_bits & 1:
        raise _refused(entry, "is encrypted; pack it without a password")
    if entry.compress_type not in _ZIP_METHODS:
        raise _refused(entry, "is compressed by an unusual method; pack it by deflate")


def _refused(entry: zipfile.ZipInfo, reason: str) -> ProblemError:
    detail = f"{entry.filename} in the zip {reason}"
    return ProblemError(422, "damaged-zip", "a zip cannot be read", detail, view=entry.filename)


def _read_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, limits: Limits) -> bytes:
    with archive.open(entry) as file:
        content = file.read(limits.view_bytes + 1)
    if len(content) > limits.view_bytes:
        detail = f"{entry.filename} in the zip has more than {limits.view_bytes:,} bytes; send it compressed"
        raise ProblemError(
            413, "view-too-large", "a view is too large", detail, view=entry.filename, limit=limits.view_bytes
        )
    if is_zip(content):
        raise _refused(entry, "is a zip itself; pack the views without it")
    return content
