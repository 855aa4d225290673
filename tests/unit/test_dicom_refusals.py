"""Files that the DICOM reader refuses: what it says of them, what they cost, and that it tells no name."""

import io
import logging
import os
import random
import re
import struct
import time
import tracemalloc
import warnings
import zlib

import numpy as np
import pytest
from pydicom.filereader import dcmread
from pydicom.uid import DeflatedExplicitVRLittleEndian, DigitalXRayImageStorageForProcessing

from mura_ray import dicom as dicom_module
from mura_ray.dicom import read_radiograph
from mura_ray.images import MAX_PIXELS
from tests.unit.dicom_files import (
    ENCODERS,
    LOSSLESS,
    PATIENT,
    SQUARE,
    dicom,
    frame_of,
    jpeg_2000,
    lut_item,
    phantom,
    run_tool,
    saved,
    start_of_elements,
    with_frame,
)

FUZZ_SEED = int(os.environ.get("MURA_FUZZ_SEED", "0"))
SMALL = np.arange(64, dtype=np.uint8).reshape(8, 8)
REFUSED = {
    "another modality": ({"Modality": "CT"}, r"\(0008,0060\) Modality is 'CT': send radiographs, of CR, DX, RF"),
    "secondary captures": ({"Modality": "OT"}, "Modality is 'OT'"),
    "no modality": ({"Modality": None}, "Modality is missing"),
    "a name for a modality": ({"Modality": PATIENT}, "Modality is unreadable"),
    "several frames": ({"NumberOfFrames": 2}, r"\(0028,0008\) NumberOfFrames is 2: send single frames"),
    "no pixels": ({"PixelData": None}, r"\(7fe0,0010\) PixelData is missing"),
    "colour": ({"PhotometricInterpretation": "RGB"}, "PhotometricInterpretation is 'RGB': send MONOCHROME1"),
    "samples": ({"SamplesPerPixel": 3}, "SamplesPerPixel is 3"),
    "raw detector data": ({"SOPClassUID": DigitalXRayImageStorageForProcessing}, "FOR PROCESSING: send the image"),
    "for processing": ({"PresentationIntentType": "FOR PROCESSING"}, "FOR PROCESSING: send the image"),
    "too many pixels": ({"Rows": 9000, "Columns": 9000}, f"9000 x 9000 pixels: the limit is {MAX_PIXELS:,}"),
    "no rows": ({"Rows": 0}, r"\(0028,0010\) Rows is 0"),
    "rows missing": ({"Rows": None}, "Rows is missing"),
    "32 bits": ({"BitsAllocated": 32}, "BitsAllocated is 32: send 8 or 16"),
    "few bits": ({"BitsStored": 4, "HighBit": 3}, "BitsStored is 4"),
    "many bits": ({"BitsStored": 12}, "BitsStored is 12 of 8"),
    "high bit": ({"HighBit": 3}, "HighBit is 3"),
    "too few rows of pixels": ({"Rows": 9}, r"PixelData has 64 bytes, and 9 rows of 8 are due"),
    "too many rows of pixels": ({"Rows": 7}, r"PixelData has 64 bytes, and 7 rows of 8 are due"),
    "an endless body part": ({"BodyPartExamined": "A " * 3000}, "BodyPartExamined has 6,000 bytes"),
    "another window": ({"WindowCenter": 1, "WindowWidth": 2, "VOILUTFunction": "CUBIC"}, "VOILUTFunction is 'CUBIC'"),
}


class TestRefused:
    @pytest.mark.filterwarnings("ignore::UserWarning:pydicom")  # of what we write
    @pytest.mark.parametrize("case", REFUSED)
    def test_says_element_value_and_remedy(self, case: str):
        elements, words = REFUSED[case]
        content = dicom(SMALL, **elements)
        with pytest.raises(ValueError, match=words):
            read_radiograph(content)

    @pytest.mark.parametrize(
        ("text", "words"),
        [("1e400", "is no number"), ("nan", "is no number"), ("MILLER^ANNA", "is no number")],
    )
    def test_numbers_that_are_none(self, text: str, words: str):
        content = dicom(SMALL, RescaleSlope="1.23456789012", RescaleIntercept=0)
        with pytest.raises(ValueError, match=rf"\(0028,1053\) RescaleSlope {words}") as caught:
            read_radiograph(content.replace(b"1.23456789012 ", text.encode().ljust(14)))
        assert "MILLER" not in str(caught.value)

    @pytest.mark.parametrize("name", ENCODERS)
    def test_a_file_that_is_cut_off(self, name: str):
        plain = dicom(phantom(8))
        content = ENCODERS[name](plain)
        for length in (140, 300, 900, len(content) // 2, len(content) - 400):
            with pytest.raises(ValueError, match=r"cut off|missing|damaged|due"):
                read_radiograph(content[:length])

    @pytest.mark.parametrize("name", [name for name in ENCODERS if "JPEG" in name or "RLE" in name])
    def test_a_frame_that_is_cut_off(self, name: str):
        content = ENCODERS[name](dicom(phantom(8)))
        frame = frame_of(content)
        for length in (2, 4, 20, 70, len(frame) // 2, len(frame) - 300):
            with pytest.raises(ValueError, match=r"PixelData|damaged"):
                read_radiograph(with_frame(content, frame[:length]))

    @pytest.mark.parametrize(
        "name", ["JPEG lossless, process 14", "JPEG-LS by dcmtk", "JPEG 2000 lossless", "JPEG baseline"]
    )
    def test_a_frame_of_another_size(self, name: str):
        content = ENCODERS[name](dicom(phantom(8)))
        found = dcmread(io.BytesIO(content))
        found.Rows, found.Columns = found.Rows // 2, found.Columns * 2
        with pytest.raises(ValueError, match="the frame says"):
            read_radiograph(saved(found))

    def test_several_frames_in_disguise(self):
        content = run_tool("dcmcrle", content=dicom(np.stack([SMALL] * 2).reshape(16, 8), Rows=8, NumberOfFrames=2))
        found = dcmread(io.BytesIO(content))
        del found.NumberOfFrames
        with pytest.raises(ValueError, match="several frames"):
            read_radiograph(saved(found))


def raw_element(tag: int, vr: bytes, value: bytes) -> bytes:
    return struct.pack("<HH", tag >> 16, tag & 0xFFFF) + vr + struct.pack("<H", len(value)) + value


def deflated(content: bytes, more: int) -> bytes:
    """A deflated file with zeros behind its elements."""
    found = dcmread(io.BytesIO(content))
    found.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    whole = saved(found)
    start = start_of_elements(whole)
    elements = zlib.decompress(whole[start:], -zlib.MAX_WBITS)
    packer = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    pieces = [packer.compress(elements), *(packer.compress(bytes(2**20)) for _ in range(more)), packer.flush()]
    return whole[:start] + b"".join(pieces)


def nested(depth: int) -> bytes:
    """A sequence in a sequence, and so on, before the pixels."""
    opening = b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
    closing = b"\xfe\xff\x0d\xe0\0\0\0\0\xfe\xff\xdd\xe0\0\0\0\0"
    return inserted(opening * depth + closing * depth)


def inserted(elements: bytes) -> bytes:
    """A file with these bytes before its modality."""
    content = dicom(SMALL)
    place = content.index(b"\x08\x00\x60\x00CS")
    return content[:place] + elements + content[place:]


def jpeg_2000_with(place: int, value: bytes) -> bytes:
    content = jpeg_2000(dicom(phantom(8)))
    frame = frame_of(content)
    return with_frame(content, frame[:place] + value + frame[place + len(value) :])


def endless_segments() -> bytes:
    content = jpeg_2000(dicom(phantom(8)))
    frame = frame_of(content)
    place = frame.index(b"\xff\x52")  # behind SIZ
    return with_frame(content, frame[:place] + b"\xff\x64\0\2" * 10**6 + frame[place:])


HOSTILE = {
    "a bomb in a deflated file": lambda: deflated(dicom(SMALL), more=400),
    "sequences nested 100,000 deep": lambda: nested(100_000),
    "a million items": lambda: inserted(
        b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff" + b"\xfe\xff\x00\xe0\0\0\0\0" * 10**6
    ),
    "a million elements": lambda: inserted(raw_element(0x00080041, b"LO", b"") * 10**6),
    "a length of four gigabytes": lambda: inserted(b"\x08\x00\x41\x00UT\0\0\xfe\xff\xff\xff"),
    "an endless sequence": lambda: inserted(b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff"),
    "a million tiles": lambda: jpeg_2000_with(24, struct.pack(">II", 1, 1)),
    "segments without end": endless_segments,
}


def fuzzed_files() -> list[bytes]:
    square, plain = phantom(8)[:64, :64], {"WindowCenter": 100, "WindowWidth": 90}
    files = [dicom(square), dicom(square, VOILUTSequence=lut_item(0, 10, SQUARE[:256]), **plain)]
    encoders = [*(LOSSLESS[name] for name in LOSSLESS if "pydicom" not in name), ENCODERS["JPEG baseline"]]
    return [*files, *(encode(files[0]) for encode in encoders)][:12]


def mutate(content: bytes, rng: random.Random) -> bytes:
    """Changes, removes, repeats or cuts off bytes, header bytes more often than others."""
    mutated = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 4, 16])):
        place = rng.randrange(132, min(len(mutated), 1200) if rng.random() < 0.7 else len(mutated))
        kind = rng.random()
        if kind < 0.7:
            mutated[place] = rng.choice([0, 0xFF, rng.randrange(256), mutated[place] ^ 1 << rng.randrange(8)])
        elif kind < 0.8:
            del mutated[place : place + rng.randrange(1, 9)]
        elif kind < 0.9:
            mutated[place:place] = mutated[place : place + rng.randrange(1, 40)]
        else:
            mutated[place : place + 4] = rng.choice([b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\0"])
    return bytes(mutated[: rng.randrange(132, len(mutated))] if rng.random() < 0.1 else mutated)


class TestHostile:
    @pytest.mark.parametrize("case", HOSTILE)
    def test_costs_little_and_is_refused(self, case: str):
        content = HOSTILE[case]()
        tracemalloc.start()
        try:
            started = time.process_time()
            with pytest.raises(ValueError, match=r".{20}"):
                read_radiograph(content)
            assert time.process_time() - started < 5
            assert tracemalloc.get_traced_memory()[1] < 400 * 2**20
        finally:
            tracemalloc.stop()

    def test_pixels_too_many_are_refused_before_they_are_decoded(self, monkeypatch: pytest.MonkeyPatch):
        def decoded(*_: object) -> None:
            raise AssertionError("decoded")

        content = run_tool("dcmcjpeg", "+e1", content=dicom(phantom(12), 12))
        found = dcmread(io.BytesIO(content))
        found.Rows = found.Columns = 65535
        monkeypatch.setattr(dicom_module, "decode_frame", decoded)
        with pytest.raises(ValueError, match="65535 x 65535"):
            read_radiograph(saved(found))

    @pytest.mark.parametrize("place", range(12))
    def test_mutated_files_are_read_or_refused_without_a_name(self, place: int, caplog: pytest.LogCaptureFixture):
        """Twelve kinds of files, 25 mutations each."""
        caplog.set_level(logging.DEBUG)
        content = fuzzed_files()[place]
        for number in range(25):
            rng = random.Random(f"{FUZZ_SEED} {place} {number}")
            mutated = mutate(content, rng)
            started = time.monotonic()
            with warnings.catch_warnings(record=True) as warned:
                warnings.simplefilter("always")
                try:
                    found = read_radiograph(mutated)
                    told = f"{found.warnings} {found.study_type}"
                except ValueError as error:
                    told = f"{error} {error.__cause__}"
            assert time.monotonic() - started < 10, (FUZZ_SEED, place, number)
            assert not warned, (FUZZ_SEED, place, number)
            assert not re.search("MILLER|ANNA|4711|19010203", told), (FUZZ_SEED, place, number)
        assert not caplog.text

    def test_what_pydicom_warns_of_is_not_told(
        self, recwarn: pytest.WarningsRecorder, caplog: pytest.LogCaptureFixture
    ):
        content = dicom(SMALL, SpecificCharacterSet="ISO_IR 100").replace(b"ISO_IR 100", b"MILLER_ANN")
        read_radiograph(content)
        assert not list(recwarn)
        assert not caplog.text
