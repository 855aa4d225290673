"""DICOM radiographs that are read: every syntax, the gray levels, and what is said of them."""

import hashlib
import io
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.filereader import dcmread
from pydicom.uid import JPEG2000Lossless

from mura_ray.data.table import read_collection
from mura_ray.dicom import is_dicom, read_radiograph, study_type_of_body_part
from mura_ray.dicom_frames import SYNTAXES, FrameSize, decode_frame
from mura_ray.distributed.shard_task import (
    DamagedImage,
    ShardJob,
    ShardRecord,
    SourceImage,
    StoredImage,
    convert_shard,
)
from mura_ray.images import read_gray, resize_gray
from mura_ray.model.ensemble import Ensemble
from mura_ray.s3 import FileStat
from tests.unit.dicom_files import (
    LOSSLESS,
    LOSSY,
    SQUARE,
    STUDY_UID,
    dicom,
    frame_of,
    lut_item,
    phantom,
    run_tool,
    start_of_elements,
    with_frame,
)
from tests.unit.tiny_ensemble import write_tiny_ensemble

FRACATLAS = Path(__file__).parents[3] / "shared" / "fracatlas-sample"


def gray_of(content: bytes) -> np.ndarray:
    return read_radiograph(content).gray


class TestTransferSyntaxes:
    @pytest.mark.parametrize("bits", [8, 12, 16])
    @pytest.mark.parametrize("name", LOSSLESS)
    def test_a_lossless_one_gives_every_bit_back(self, name: str, bits: int):
        pixels = phantom(bits)
        plain = dicom(pixels, bits)
        content = LOSSLESS[name](plain)
        np.testing.assert_array_equal(gray_of(content), gray_of(plain))
        syntax = dcmread(io.BytesIO(content)).file_meta.TransferSyntaxUID
        if syntax in SYNTAXES:
            size = FrameSize(pixels.shape[0], pixels.shape[1], pixels.dtype.itemsize)
            np.testing.assert_array_equal(decode_frame(syntax, frame_of(content), size), pixels)

    @pytest.mark.parametrize("name", [name for name in LOSSLESS if name != "JPEG 2000 lossless"])
    def test_negative_pixels_survive(self, name: str):
        pixels = (phantom(12).astype(np.int16) - 2048).astype(np.int16)
        plain = dicom(pixels, 12, WindowCenter=0, WindowWidth=4096)
        assert gray_of(plain).std() > 20
        np.testing.assert_array_equal(gray_of(LOSSLESS[name](plain)), gray_of(plain))

    @pytest.mark.parametrize("signed", [True, False])
    def test_jpeg_2000_may_sign_its_samples_itself(self, signed: bool):
        pixels = (phantom(12).astype(np.int16) - 2048).astype(np.int16)
        plain = dicom(pixels, 12, WindowCenter=0, WindowWidth=4096)
        samples = pixels if signed else pixels.view(np.uint16) & 0xFFF
        frame = imagecodecs.jpeg2k_encode(samples, level=0, reversible=True, codecformat="j2k", bitspersample=12)
        np.testing.assert_array_equal(gray_of(with_frame(plain, bytes(frame), JPEG2000Lossless)), gray_of(plain))

    @pytest.mark.parametrize("name", LOSSY)
    def test_a_lossy_one_is_near(self, name: str):
        bits, encode = LOSSY[name]
        plain = dicom(phantom(bits), bits, WindowCenter=2 ** (bits - 1), WindowWidth=2**bits)
        found, expected = gray_of(encode(plain)).astype(int), gray_of(plain).astype(int)
        assert np.abs(found - expected).mean() < 2
        assert np.abs(found - expected).max() < 32

    @pytest.mark.parametrize("top", [0xFFF, 0])
    def test_what_loss_carries_over_the_ends_does_not_wrap_around(self, top: int):
        pixels = phantom(12)
        pixels[:100] = top
        content = run_tool(
            "dcmcjpls", "+en", "+md", "3", content=dicom(pixels, 12, WindowCenter=2048, WindowWidth=4096)
        )
        assert np.abs(gray_of(content)[:100].astype(int) - top // 16).max() <= 1

    def test_several_fragments_are_one_frame(self):
        plain = dicom(phantom(12), 12)
        content = run_tool("dcmcjpeg", "+e1", "+fs", "16", content=plain)
        assert content.count(b"\xfe\xff\x00\xe0") > 3
        np.testing.assert_array_equal(gray_of(content), gray_of(plain))

    def test_another_one_is_refused_by_name(self):
        content = dicom(phantom(8)).replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.9\0")
        with pytest.raises(ValueError, match=r"TransferSyntaxUID is '1\.2\.840\.10008\.1\.2\.9'.*JPEG-LS"):
            read_radiograph(content)


SIGNED = {"pixels": (phantom(12).astype(np.int16) - 2048).astype(np.int16)}
CASES: dict[str, tuple[list[str], dict[str, Any]]] = {
    "12 bits, window": (["+Wi", "1"], {"WindowCenter": 1500, "WindowWidth": 2100}),
    "16 bits, window": (["+Wi", "1"], {"bits": 16, "WindowCenter": 30000, "WindowWidth": 41234.5}),
    "8 bits, window": (["+Wi", "1"], {"bits": 8, "WindowCenter": 100, "WindowWidth": 99}),
    "10 bits, narrow window": (["+Wi", "1"], {"bits": 10, "WindowCenter": 500, "WindowWidth": 2}),
    "the first of two windows": (["+Wi", "1"], {"WindowCenter": [900, 3000], "WindowWidth": [1000, 50]}),
    "sigmoid": (["+Wi", "1"], {"WindowCenter": 1500, "WindowWidth": 900, "VOILUTFunction": "SIGMOID"}),
    "linear exact": (["+Wi", "1"], {"WindowCenter": 1500, "WindowWidth": 2100, "VOILUTFunction": "LINEAR_EXACT"}),
    "rescaled": (
        ["+Wi", "1"],
        {"RescaleSlope": 0.5, "RescaleIntercept": -300, "WindowCenter": 500.5, "WindowWidth": 1100},
    ),
    "signed": (["+Wi", "1"], {**SIGNED, "WindowCenter": -200, "WindowWidth": 2500}),
    "signed and rescaled": (
        ["+Wi", "1"],
        {**SIGNED, "RescaleSlope": 2, "RescaleIntercept": 1000, "WindowCenter": 1000, "WindowWidth": 5000},
    ),
    "MONOCHROME1": (
        ["+Wi", "1"],
        {"PhotometricInterpretation": "MONOCHROME1", "WindowCenter": 1500, "WindowWidth": 2100},
    ),
    **{
        f"{photometric} of the shape {shape}": (
            ["+Wi", "1"],
            {
                "PhotometricInterpretation": photometric,
                "PresentationLUTShape": shape,
                "WindowCenter": 1500,
                "WindowWidth": 2100,
            },
        )
        for photometric in ("MONOCHROME1", "MONOCHROME2")
        for shape in ("IDENTITY", "INVERSE")
    },
    "VOI LUT": (["+Wl", "1"], {"VOILUTSequence": lut_item(0, 10, SQUARE)}),
    "VOI LUT that begins late": (["+Wl", "1"], {"VOILUTSequence": lut_item(1000, 10, SQUARE[::2])}),
    "modality LUT and window": (
        ["+Wi", "1"],
        {
            "ModalityLUTSequence": [*lut_item(0, 16, SQUARE * 60)],
            "WindowCenter": 30000,
            "WindowWidth": 60000,
        },
    ),
    "no window": (["+Wm"], {"bits": 16}),
    "no window, signed": (["+Wm"], SIGNED),
    "no window, MONOCHROME1": (["+Wm"], {"PhotometricInterpretation": "MONOCHROME1"}),
}


class TestGray:
    @pytest.mark.parametrize("case", CASES)
    def test_is_what_dcm2pnm_shows(self, case: str):
        options, elements = CASES[case]
        elements = dict(elements)
        bits = elements.pop("bits", 12)
        pixels = elements.pop("pixels", None)
        if "ModalityLUTSequence" in elements:
            elements["ModalityLUTSequence"][0].ModalityLUTType = "US"
        content = dicom(phantom(bits) if pixels is None else pixels, bits, **elements)
        picture = Image.open(io.BytesIO(run_tool("dcm2pnm", "+op", *options, content=content, suffix=".pgm")))
        expected = np.asarray(picture).astype(int)
        assert expected.std() > 20
        assert np.abs(gray_of(content).astype(int) - expected).max() <= 2

    def test_bits_above_the_stored_ones_are_no_part_of_a_pixel(self):
        pixels = phantom(12)
        with_overlay = dicom(pixels | 0xA000, 12)
        np.testing.assert_array_equal(gray_of(with_overlay), gray_of(dicom(pixels, 12)))

    def test_a_high_bit_of_its_own_is_heeded(self):
        pixels = phantom(12)
        np.testing.assert_array_equal(gray_of(dicom(pixels << 4, 12, HighBit=15)), gray_of(dicom(pixels, 12)))

    @pytest.mark.parametrize(
        "limits", [{"PixelPaddingValue": 0}, {"PixelPaddingValue": 0, "PixelPaddingRangeLimit": 9}]
    )
    def test_padding_does_not_stretch_the_range(self, limits: dict[str, int]):
        pixels = (phantom(12) // 4 + 3000).astype(np.uint16)
        expected = gray_of(dicom(pixels, 12))
        pixels[:20] = 0
        pixels[20:40] = max(limits.values())
        np.testing.assert_array_equal(gray_of(dicom(pixels, 12, **limits))[40:], expected[40:])

    def test_monochrome1_and_2_of_one_image_have_one_probability(self, tmp_path):
        pixels = phantom(12)
        window = {"WindowCenter": 2048, "WindowWidth": 4096}
        bright = gray_of(dicom(pixels, 12, **window))
        inverted = gray_of(dicom(4095 - pixels, 12, PhotometricInterpretation="MONOCHROME1", **window))
        assert np.abs(bright.astype(int) - inverted).max() <= 1
        ensemble = Ensemble.load(write_tiny_ensemble(tmp_path))
        probabilities = [ensemble.predict_study([gray]).probability for gray in (bright, inverted, 255 - bright)]
        assert probabilities[1] == pytest.approx(probabilities[0], abs=1e-3)
        assert probabilities[2] != pytest.approx(probabilities[0], abs=1e-3)


class TestHeader:
    def test_says_what_a_study_needs(self):
        found = read_radiograph(dicom(phantom(12), 12, WindowCenter=2048, WindowWidth=4096))
        assert (found.is_dicom, found.study_type, found.study_uid) == (True, "wrist", STUDY_UID)
        assert (found.pixel_spacing_mm, found.body_part) == ((0.2, 0.1), "'WRIST'")
        assert found.warnings == ()
        assert found.gray.dtype == np.uint8

    def test_spacing_at_the_detector_does_as_well(self):
        found = read_radiograph(dicom(phantom(8), PixelSpacing=None, ImagerPixelSpacing=[0.3, 0.4]))
        assert found.pixel_spacing_mm == (0.3, 0.4)

    @pytest.mark.parametrize(
        ("elements", "words"),
        [
            ({}, "no window"),
            ({"WindowCenter": 1, "WindowWidth": 0}, "no window"),
            ({"PixelSpacing": None}, "no pixel spacing"),
            ({"PixelSpacing": [0, 0]}, "no pixel spacing"),
            ({"BurnedInAnnotation": "YES"}, "(0028,0301) BurnedInAnnotation is YES"),
        ],
    )
    def test_warns(self, elements: dict[str, Any], words: str):
        found = read_radiograph(dicom(phantom(8), **elements))
        assert sum(words in warning for warning in found.warnings) == 1

    @pytest.mark.parametrize(
        ("body_part", "study_type"),
        [
            ("WRIST", "wrist"), ("Hand", "hand"), ("THUMB", "finger"), ("FINGERS", "finger"), ("FOREARM", "forearm"),
            ("HUMERUS", "humerus"), ("UPPER ARM", "humerus"), ("UPPER_ARM", "humerus"), ("SHOULDER LEFT", "shoulder"),
            ("L-ELBOW", "elbow"), ("WRIST_RT", "wrist"), ("RADIUS/ULNA", "forearm"), ("UP_EXM", None), ("ARM", None),
            ("EXTREMITY", None), ("CHEST", None), ("HAND AND WRIST", None), ("HAND\\WRIST", None), ("", None),
        ],
    )  # fmt: skip
    def test_study_type_of_a_body_part_is_never_a_guess(self, body_part: str, study_type: str | None):
        assert study_type_of_body_part(body_part) == study_type


def saved_bare(found: Dataset) -> bytes:
    """Neither preamble nor group 0002, implicit."""
    file = io.BytesIO()
    del found.file_meta, found.preamble
    found.save_as(file, implicit_vr=True, little_endian=True, enforce_file_format=False)
    return file.getvalue()


class TestKinds:
    def test_png_and_jpeg_are_read_as_ever(self):
        pixels, file = phantom(8), io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        found = read_radiograph(file.getvalue())
        np.testing.assert_array_equal(found.gray, pixels)
        assert (found.is_dicom, found.study_uid, found.warnings) == (False, None, ())

    @pytest.mark.parametrize("kind", ["PNG", "JPEG"])
    @pytest.mark.parametrize(("tint", "share", "warns"), [(60, 0.2, True), (60, 0, False), (8, 1, False)])
    def test_a_picture_in_colour_is_told(self, kind: str, tint: int, share: float, warns: bool):
        gray = phantom(8) // 2
        pixels, file = np.stack([gray] * 3, axis=-1), io.BytesIO()
        pixels[: round(share * len(gray)), :, 0] += tint
        Image.fromarray(pixels).save(file, kind)
        found = read_radiograph(file.getvalue())
        assert ["in colour" in warning for warning in found.warnings] == [True] * warns

    def test_a_coloured_mark_is_none(self):
        pixels, file = np.stack([phantom(8)] * 3, axis=-1), io.BytesIO()
        pixels[:20, :20] = [255, 0, 0]
        Image.fromarray(pixels).save(file, "PNG")
        assert read_radiograph(file.getvalue()).warnings == ()

    @pytest.mark.parametrize("explicit", [True, False])
    def test_dicom_without_preamble(self, explicit: bool):
        whole = dicom(phantom(12), 12)
        bare = whole[132:] if explicit else saved_bare(dcmread(io.BytesIO(whole)))
        assert is_dicom(bare)
        assert b"DICM" not in bare[:140]
        np.testing.assert_array_equal(gray_of(bare), gray_of(whole))

    def test_a_file_of_two_kinds_is_refused(self):
        content = dicom(phantom(8))
        for start in (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0"):
            with pytest.raises(ValueError, match="at once"):
                read_radiograph(start + content[len(start) :])

    @pytest.mark.parametrize("content", [b"", b"DICM", b"\x08\x00", b"MURA" * 100, b"\x08\x00\x05\x00\xff\xff\xff\x7f"])
    def test_other_content_is_none(self, content: bytes):
        assert not is_dicom(content)
        with pytest.raises(ValueError, match="not a PNG or JPEG image"):
            read_radiograph(content)


def test_implicit_files_that_say_explicit_are_read():
    """As some writers leave them."""
    whole = dicom(phantom(12), 12)
    content = whole[: start_of_elements(whole)] + saved_bare(dcmread(io.BytesIO(whole)))
    np.testing.assert_array_equal(gray_of(content), gray_of(whole))


@pytest.mark.skipif(not FRACATLAS.is_dir(), reason="the FracAtlas sample does not lie beside the repository")
@pytest.mark.parametrize("name", ["JPEG lossless, selection value 1", "JPEG-LS by dcmtk", "JPEG 2000 lossless"])
def test_real_radiographs_are_the_same_as_dicom(name: str):
    num_read = 0
    for path in sorted(FRACATLAS.glob("images/*/*.jpg"))[:6]:
        try:
            gray = read_gray(path.read_bytes())
        except ValueError:  # some of the sample are damaged
            continue
        content = LOSSLESS[name](dicom(gray, WindowCenter=128, WindowWidth=256))
        np.testing.assert_array_equal(gray_of(content), gray)
        num_read += 1
    assert num_read >= 4


def test_a_table_of_dicom_files_is_converted(tmp_path: Path):
    rows = ["path,patient,study,study_type,label,split"]
    images = []
    wrist, hand = (dicom(phantom(12), 12, BodyPartExamined=part) for part in ("WRIST", "HAND"))
    for number, content in enumerate([wrist, hand, dicom(phantom(8), Modality="CT")]):
        (tmp_path / f"{number}.dcm").write_bytes(content)
        rows.append(f"{number}.dcm,p{number},s1,wrist,{number % 2},train")
    (tmp_path / "table.csv").write_text("\n".join(rows))
    collection = read_collection(tmp_path / "table.csv")
    for sample_id, study in enumerate(collection.splits["train"]):
        images.append(SourceImage(sample_id, study.views[0], study, FileStat(1, "1")))
    job = ShardJob(collection.root, str(tmp_path / "data"), "train/shard-00000.beton", 32, tuple(images))
    *_, record = convert_shard(job)
    assert isinstance(record, ShardRecord)
    first, second, refused = record.results
    assert isinstance(first, StoredImage)
    assert isinstance(refused, DamagedImage)
    assert "Modality is 'CT'" in refused.reason
    resized = resize_gray(gray_of(dicom(phantom(12), 12)), 32)
    stored = StoredImage(
        width=phantom(12).shape[1],
        height=phantom(12).shape[0],
        sha256=hashlib.sha256(resized.tobytes()).hexdigest(),
    )
    assert first.model_copy(update={"warnings": ()}) == stored
    assert isinstance(second, StoredImage)
    assert set(second.warnings) - set(first.warnings) == {"BodyPartExamined (0018,0015) says hand, not wrist"}
    assert record.shard is not None
    assert record.shard.count == 2
