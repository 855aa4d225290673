"""DICOM files for the tests: made by pydicom, and rewritten by dcmtk's tools."""

import io
import struct
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.filereader import dcmread
from pydicom.uid import (
    JPEG2000,
    UID,
    ComputedRadiographyImageStorage,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from mura_ray.data.phantom_view import DIFFICULTIES, render_view

PATIENT = "MILLER^ANNA"
STUDY_UID = "1.2.826.0.1.3680043.8.498.1"


def phantom(bits: int, study_type: str = "wrist") -> np.ndarray:
    """A phantom's view with random low bits: uint8 or uint16 [H, W], all values below 2 ** bits."""
    gray, _ = render_view(study_type, 1, DIFFICULTIES["easy"], (1, 2), 0)
    if bits == 8:
        return gray
    low = np.random.default_rng(0).integers(0, 2 ** (bits - 8), gray.shape)
    return (gray.astype(np.uint16) << (bits - 8) | low).astype(np.uint16)


def dataset(pixels: np.ndarray, bits: int | None = None, **elements: Any) -> Dataset:
    """A computed radiograph of these pixels; an element given as None is left out."""
    bits = bits or pixels.dtype.itemsize * 8
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = ComputedRadiographyImageStorage
    meta.MediaStorageSOPInstanceUID = UID(f"{STUDY_UID}.1.1")
    found = Dataset()
    found.file_meta = meta
    known = {
        "SOPClassUID": ComputedRadiographyImageStorage, "SOPInstanceUID": f"{STUDY_UID}.1.1",
        "StudyInstanceUID": STUDY_UID, "SeriesInstanceUID": f"{STUDY_UID}.1", "SeriesNumber": 1, "InstanceNumber": 1,
        "StudyDate": "20200102", "StudyTime": "030405", "StudyID": "1", "AccessionNumber": "",
        "ReferringPhysicianName": "", "PatientName": PATIENT, "PatientID": "MILLER-4711",
        "PatientBirthDate": "19010203", "PatientSex": "F", "Modality": "CR", "BodyPartExamined": "WRIST",
        "Laterality": "L", "PixelSpacing": [0.2, 0.1],
        "SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2", "Rows": pixels.shape[0],
        "Columns": pixels.shape[1], "BitsAllocated": pixels.dtype.itemsize * 8, "BitsStored": bits, "HighBit": bits - 1,
        "PixelRepresentation": int(pixels.dtype.kind == "i"),
        "PixelData": pixels.tobytes() + b"\0" * (pixels.nbytes % 2),
    }  # fmt: skip
    for keyword, value in (known | elements).items():
        if value is not None:
            setattr(found, keyword, value)
    if "PixelData" in found:
        found["PixelData"].VR = "OW" if pixels.dtype.itemsize == 2 else "OB"
    return found


def dicom(pixels: np.ndarray, bits: int | None = None, **elements: Any) -> bytes:
    """The file of a `dataset`."""
    return saved(dataset(pixels, bits, **elements))


def saved(content: Dataset) -> bytes:
    file = io.BytesIO()
    content.save_as(file, enforce_file_format=True)
    return file.getvalue()


def run_tool(*command: str, content: bytes, suffix: str = ".dcm") -> bytes:
    """What a tool of dcmtk that reads a file and writes another makes of this one."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "in.dcm"), Path(folder, f"out{suffix}")
        source.write_bytes(content)
        subprocess.run([*command, str(source), str(target)], check=True, capture_output=True)
        return target.read_bytes()


def frame_of(content: bytes) -> bytes:
    """The compressed frame of a file."""
    return next(generate_frames(dcmread(io.BytesIO(content)).PixelData, number_of_frames=1))


def with_frame(content: bytes, frame: bytes, syntax: str | None = None) -> bytes:
    """The file with another compressed frame, and of another transfer syntax."""
    found = dcmread(io.BytesIO(content))
    found.file_meta.TransferSyntaxUID = UID(syntax or found.file_meta.TransferSyntaxUID)
    found.PixelData = encapsulate([frame])
    found["PixelData"].VR = "OB"
    found["PixelData"].is_undefined_length = True
    return saved(found)


def start_of_elements(content: bytes) -> int:
    """Behind group 0002, whose first element says its length."""
    return 144 + struct.unpack_from("<I", content, 140)[0]


def lut_item(first: int, bits: int, entries: np.ndarray) -> list[Dataset]:
    """A sequence of one table: `first` is the value that gets its first entry."""
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [len(entries), first, bits])
    item.add_new("LUTData", "OW", entries.astype("<u2").tobytes())
    return [item]


SQUARE = (np.linspace(0, 1, 4096) ** 2 * 1023).round()


def jpeg_2000(content: bytes, lossless: bool = True) -> bytes:
    """With Pillow's encoder: the decoder under test is another build of the same library, and no judge of itself."""
    pixels, file = dcmread(io.BytesIO(content)).pixel_array, io.BytesIO()
    how = {} if lossless else {"irreversible": True, "quality_mode": "rates", "quality_layers": [8]}
    Image.fromarray(pixels).save(file, "JPEG2000", no_jp2=True, **how)
    return with_frame(content, file.getvalue(), JPEG2000Lossless if lossless else JPEG2000)


def compressed_by_pydicom(content: bytes, syntax: str) -> bytes:
    found = dcmread(io.BytesIO(content))
    found.compress(syntax, generate_instance_uid=False)
    return saved(found)


def tool(*command: str):
    return lambda content: run_tool(*command, content=content)


LOSSLESS = {
    "implicit little endian": tool("dcmconv", "+ti"),
    "explicit big endian": tool("dcmconv", "+tb"),
    "deflated": tool("dcmconv", "+td"),
    "RLE by dcmtk": tool("dcmcrle"),
    "RLE by pydicom": lambda content: compressed_by_pydicom(content, RLELossless),
    "JPEG lossless, process 14": tool("dcmcjpeg", "+el"),
    "JPEG lossless, selection value 1": tool("dcmcjpeg", "+e1"),
    "JPEG lossless, predictor 6": tool("dcmcjpeg", "+el", "+sv", "6"),
    "JPEG-LS by dcmtk": tool("dcmcjpls", "+el"),
    "JPEG-LS by pydicom": lambda content: compressed_by_pydicom(content, JPEGLSLossless),
    "JPEG 2000 lossless": jpeg_2000,
}
"""Encoders of a file into each syntax, by name."""

LOSSY = {
    "JPEG baseline": (8, tool("dcmcjpeg", "+eb", "+q", "95")),
    "JPEG extended, 8 bits": (8, tool("dcmcjpeg", "+ee", "+q", "95")),
    "JPEG extended, 12 bits": (12, tool("dcmcjpeg", "+ee", "+q", "98")),
    "JPEG-LS near lossless": (12, tool("dcmcjpls", "+en", "+md", "2")),
    "JPEG-LS near lossless, 8 bits": (8, tool("dcmcjpls", "+en", "+md", "2")),
    "JPEG 2000 lossy": (12, lambda content: jpeg_2000(content, lossless=False)),
}
"""The same, each with the bits of the pixels that it takes."""

ENCODERS = LOSSLESS | {name: encode for name, (_, encode) in LOSSY.items()}
