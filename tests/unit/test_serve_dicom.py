"""DICOM and zips through the HTTP interface."""

import io
import re
import shutil
import struct
import subprocess
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from pydicom.filereader import dcmread

from mura_ray import dicom_out
from mura_ray.domain import NOTICE
from mura_ray.images import read_gray
from mura_ray.render.overlay import overlay
from serve.api import PREDICT_DICOM_PATH
from tests.unit.api_client import CAM, LEFT, Calibrated, MeanGray, client_of, post, problem_of
from tests.unit.dicom_files import STUDY_UID, dicom, phantom, run_tool

WINDOW = {"WindowCenter": 2048, "WindowWidth": 4096}
PIXELS = phantom(12)
PLAIN = dicom(PIXELS, 12, **WINDOW)
OTHER = dicom(PIXELS // 2, 12, SOPInstanceUID=f"{STUDY_UID}.1.2", **WINDOW)


NAMES = ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate", "StudyTime",
         "AccessionNumber", "ReferringPhysicianName")  # fmt: skip


def zipped(*files: tuple[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in files:
            archive.writestr(name, content)
    return file.getvalue()


def post_dicom(client, *views, query=""):
    return client.post(PREDICT_DICOM_PATH + query, files=[("views", view) for view in views])


class TestDicom:
    def test_is_answered_like_a_picture_with_what_its_header_says(self):
        burned = dicom(PIXELS, 12, BurnedInAnnotation="YES", **WINDOW)
        answer = post(client_of(), ("a.dcm", PLAIN), ("b.dcm", burned)).json()
        assert answer["study_type"] == "wrist"
        assert answer["views"][0]["probability"] == pytest.approx((PIXELS / 4095).mean(), abs=0.01)
        assert (answer["views"][0]["height"], answer["views"][0]["width"]) == PIXELS.shape
        (warning,) = answer["warnings"]
        assert warning.startswith("b.dcm: (0028,0301) BurnedInAnnotation is YES")

    def test_the_caller_knows_the_study_type_better_and_is_told_of_another(self):
        answer = post(client_of(), ("a.dcm", PLAIN), study_type="hand").json()
        assert answer["study_type"] == "hand"
        assert answer["warnings"] == ["a.dcm: BodyPartExamined (0018,0015) says wrist, not hand"]

    def test_views_that_disagree_have_no_study_type(self):
        hand = dicom(PIXELS // 2, 12, BodyPartExamined="HAND", **WINDOW)
        answer = post(client_of(), ("a.dcm", PLAIN), ("b.dcm", hand)).json()
        assert answer["study_type"] is None
        assert answer["warnings"] == ["b.dcm: BodyPartExamined (0018,0015) says hand, not wrist"]

    @pytest.mark.filterwarnings("ignore::UserWarning:pydicom")  # of what we write
    @pytest.mark.parametrize(
        ("body_part", "said"),
        [("CHEST", "'CHEST'"), ("up_exm", "'UP_EXM'"), ("Müller", "unreadable"), (None, None), ("", None)],
    )
    def test_a_study_type_that_is_not_known_is_told_with_what_the_file_says(self, body_part, said):
        other = dicom(PIXELS, 12, BodyPartExamined=body_part, SpecificCharacterSet="ISO_IR 100", **WINDOW)
        for predictor in (None, Calibrated()):
            answer = post(client_of(predictor), ("a.dcm", other), ("b.png", LEFT)).json()
            (warning,) = [one for one in answer["warnings"] if "calibrated_probability" not in one]
            assert warning.startswith("the study type is not known: ")
            assert (f"BodyPartExamined (0018,0015) is {said}, and" in warning) == (said is not None)
            assert "the ensemble was trained on elbow, finger" in warning
        assert post(client_of(), ("a.dcm", other), study_type="wrist").json()["warnings"] == []
        assert post(client_of(), ("a.dcm", other), ("b.dcm", PLAIN)).json()["warnings"] == []

    def test_pixel_spacing_is_told(self):
        detector = dicom(PIXELS, 12, PixelSpacing=None, ImagerPixelSpacing=[0.3, 0.4], **WINDOW)
        views = post(client_of(), ("a.dcm", PLAIN), ("b.dcm", detector), ("c.png", LEFT)).json()["views"]
        assert [view["pixel_spacing_mm"] for view in views] == [[0.2, 0.1], [0.3, 0.4], None]

    def test_views_of_several_studies_are_refused(self):
        other = dicom(PIXELS, 12, StudyInstanceUID="1.2.3", **WINDOW)
        problem = problem_of(post(client_of(), ("a.dcm", PLAIN), ("b.dcm", other), ("c.png", LEFT)))
        assert (problem["status"], problem["type"]) == (422, "urn:mura-ray:problem:several-studies")
        assert "a.dcm, b.dcm" in problem["detail"]
        assert "1.2.3" not in problem["detail"]

    def test_a_refusal_names_the_view_and_no_patient(self, caplog: pytest.LogCaptureFixture):
        caplog.set_level(0)
        response = post(client_of(), ("a.dcm", dicom(PIXELS, 12, Modality="MR")))
        problem = problem_of(response)
        assert (problem["status"], problem["view"]) == (422, "a.dcm")
        assert "Modality is 'MR'" in problem["detail"]
        assert "MILLER" not in response.text + caplog.text


class TestZip:
    def test_holds_a_whole_study(self):
        content = zipped(
            ("study/", b""), ("study/a.dcm", PLAIN), ("study/b", OTHER), ("DICOMDIR", b"index"), ("__MACOSX/._a", b"x")
        )
        answer = post(client_of(), ("study.zip", content), ("c.png", LEFT)).json()
        assert [view["name"] for view in answer["views"]] == ["study/a.dcm", "study/b", "c.png"]
        assert answer["warnings"] == []

    def test_of_a_dicom_medium_may_hold_a_viewer_and_texts(self):
        medium = [
            ("README.TXT", b"disc"), ("AUTORUN.INF", b"[autorun]"), ("VIEWER/start.exe", b"MZ" + bytes(2**21)),
            ("VIEWER/help.html", b"<html>"), ("VIEWER/viewer.jar", zipped(("a.class", b"code"))), ("VERSION", b"1"),
            *((f"VIEWER/{number}.ini", b"") for number in range(20)), ("DICOMDIR", PLAIN),
            ("DICOM/IM000001", PLAIN), ("DICOM/1.2.840", OTHER), ("photo.tmp", LEFT),
        ]  # fmt: skip
        client = client_of(views=3, view_bytes=2**20)
        answer = post(client, ("cd.zip", zipped(*medium))).json()
        assert [view["name"] for view in answer["views"]] == ["DICOM/IM000001", "DICOM/1.2.840", "photo.tmp"]
        (warning,) = answer["warnings"]
        others = "README.TXT, AUTORUN.INF, VIEWER/start.exe, ..."
        assert warning == f"cd.zip: left out 26 files that are no DICOM, PNG or JPEG: {others}"

    @pytest.mark.parametrize("name", ["a.png", "a.JPG", "a.jpeg", "a.dcm", "a.DICOM"])
    def test_a_damaged_image_is_one_by_its_name(self, name: str):
        problem = problem_of(post(client_of(), ("cd.zip", zipped((name, b"no image"), ("b.dcm", PLAIN)))))
        assert (problem["status"], problem["view"]) == (422, name)

    def test_stored_is_as_good_as_deflated(self):
        content = zipped(("a.dcm", PLAIN), method=zipfile.ZIP_STORED)
        assert post(client_of(), ("study.zip", content)).status_code == 200

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            (zipped(("inner.zip", zipped(("a.dcm", PLAIN)))), "inner.zip in the zip is a zip itself"),
            (zipped(("a.dcm", PLAIN), method=zipfile.ZIP_LZMA), "by an unusual method"),
            (zipped(("a.dcm", PLAIN))[:-30], "the zip is damaged"),
            (zipped(("a.dcm", PLAIN))[:-8] + b"\0\0\0\0\0\0\0\0", "the zip is damaged"),
            (b"PK\x03\x04" + bytes(100), "the zip is damaged"),
            (zipped(), "the zip holds no DICOM, PNG or JPEG files"),
            (zipped(("notes.txt", b"notes")), "the zip holds no DICOM, PNG or JPEG files"),
        ],
    )
    def test_of_another_kind_is_refused(self, content: bytes, words: str):
        problem = problem_of(post(client_of(), ("study.zip", content)))
        assert problem["status"] == 422
        assert words in problem["detail"]

    def test_with_a_flipped_bit_is_refused(self):
        content = bytearray(zipped(("a.dcm", PLAIN), method=zipfile.ZIP_STORED))
        content[2000] ^= 1
        assert "BadZipFile" in problem_of(post(client_of(), ("study.zip", bytes(content))))["detail"]

    def test_with_a_password_is_refused(self):
        content = bytearray(zipped(("a.dcm", PLAIN)))
        for start, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
            content[content.index(start) + place] |= 1
        assert "is encrypted" in problem_of(post(client_of(), ("study.zip", bytes(content))))["detail"]

    def test_has_as_many_views_as_a_request(self):
        content = zipped(*((f"{number}.png", LEFT) for number in range(3)))
        assert post(client_of(views=3), ("study.zip", content)).status_code == 200
        problem = problem_of(post(client_of(views=3), ("study.zip", content), ("b.png", LEFT)))
        assert (problem["status"], problem["limit"]) == (413, 3)

    def test_is_counted_while_it_inflates(self):
        bomb = zipped(("zeros.dcm", bytes(2**22)))
        assert len(bomb) < 2**14
        problem = problem_of(post(client_of(view_bytes=2**20), ("study.zip", bomb)))
        assert (problem["status"], problem["limit"], problem["view"]) == (413, 2**20, "zeros.dcm")

    def test_may_lie_of_its_size_without_gain(self):
        content = bytearray(zipped(("zeros.dcm", bytes(2**22))))
        for start, place in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
            struct.pack_into("<I", content, content.index(start) + place, 100)
        assert problem_of(post(client_of(view_bytes=2**20), ("study.zip", bytes(content))))["status"] in (413, 422)

    def test_is_bounded_in_all(self):
        content = zipped(*((f"{number}.png", LEFT) for number in range(3)))
        assert post(client_of(study_bytes=3 * len(LEFT)), ("study.zip", content)).status_code == 200
        problem = problem_of(post(client_of(study_bytes=3 * len(LEFT) - 1), ("study.zip", content)))
        assert (problem["status"], problem["limit"]) == (413, 3 * len(LEFT) - 1)

    def test_a_huge_directory_is_refused_before_it_is_read(self, monkeypatch: pytest.MonkeyPatch):
        content = zipped(*((f"{number:060}", b"") for number in range(4000)))
        monkeypatch.setattr("serve.decoding.zipfile.ZipFile", None)
        assert "the zip is damaged or of an unusual kind" in problem_of(post(client_of(), ("a.zip", content)))["detail"]

    def test_may_be_larger_than_a_view(self):
        content = zipped(("a.png", LEFT), ("b.png", LEFT), method=zipfile.ZIP_STORED)
        assert len(content) > len(LEFT)
        assert post(client_of(view_bytes=len(LEFT)), ("study.zip", content)).status_code == 200


@pytest.fixture(scope="module")
def objects() -> dict[str, bytes]:
    named = dicom(PIXELS, 12, PatientName="MÜLLER^ÄNNE", SpecificCharacterSet="ISO_IR 100", **WINDOW)
    response = post_dicom(client_of(), ("a.dcm", named), ("b.dcm", OTHER))
    assert response.headers["content-type"] == "application/zip"
    return unzipped(response)


def unzipped(response) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(response.content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def complaints(content: bytes, path: Path) -> list[str]:
    """Of dicom3tools, but for its warnings that our codes are private."""
    assert shutil.which("dciodvfy")
    path.write_bytes(content)
    told = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True).stderr.splitlines()
    return [line for line in told if line.startswith(("Error", "Warning")) and "<99MURA>" not in line]


class TestDicomAnswer:
    def test_has_an_overlay_for_each_view_and_a_report(self, objects: dict[str, bytes]):
        assert list(objects) == ["overlay-1.dcm", "overlay-2.dcm", "report.dcm"]
        capture = dcmread(io.BytesIO(objects["overlay-2.dcm"]))
        assert (capture.StudyInstanceUID, str(capture.PatientName)) == (STUDY_UID, "MILLER^ANNA")
        assert capture.SourceImageSequence[0].ReferencedSOPInstanceUID == f"{STUDY_UID}.1.2"
        gray = np.rint((PIXELS // 2) / 4095 * 255).astype(np.uint8)
        np.testing.assert_allclose(capture.pixel_array, overlay(gray, CAM), atol=2)
        assert NOTICE in capture.DerivationDescription
        assert str(dcmread(io.BytesIO(objects["overlay-1.dcm"])).PatientName) == "MÜLLER^ÄNNE"

    def test_the_report_says_what_the_json_says(self, objects: dict[str, bytes]):
        prediction = MeanGray().predict_study([read_gray_of(PIXELS), read_gray_of(PIXELS // 2)])
        text = run_report(objects["report.dcm"])
        (study, *views) = [float(line.split('="')[1].split('"')[0]) for line in text if '"Probability of abn' in line]
        assert study == pytest.approx(prediction.probability, abs=0.01)
        assert views == pytest.approx([view.probability for view in prediction.views], abs=0.01)
        told = "\n".join(text)
        for words in ("mura_ray", "0123456789abcdef", NOTICE, "threshold 0.5", "Source of Measurement", '"Normal"'):
            assert words in told

    def test_is_valid(self, objects: dict[str, bytes], tmp_path):
        for name, content in objects.items():
            assert complaints(content, tmp_path / name) == []

    def test_says_the_calibrated_probability_and_how_many_views_were_left_out(self, tmp_path):
        views = [("a.dcm", PLAIN), ("cut.dcm", PLAIN[:-400])]
        report = unzipped(post_dicom(client_of(Calibrated()), *views, query="?damaged=leave_out"))["report.dcm"]
        answer = post(client_of(Calibrated()), ("a.dcm", PLAIN)).json()
        told = "\n".join(run_report(report))
        (found,) = re.findall(r'"Calibrated probability of abnormality"\)="([0-9.]+)"', told)
        assert float(found) == pytest.approx(answer["calibrated_probability"], abs=1e-3)
        assert "views left out, for they could not be read: 1" in told
        assert complaints(report, tmp_path / "report.dcm") == []

    def test_says_how_far_the_members_are_apart(self, objects: dict[str, bytes]):
        answer = post(client_of(), ("a.dcm", PLAIN), ("b.dcm", OTHER)).json()
        told = "\n".join(run_report(objects["report.dcm"]))
        found = re.findall(r'"(?:Low|High)est probability of a member of the ensemble"\)="([0-9.]+)"', told)
        assert [float(one) for one in found] == pytest.approx(answer["member_range"], abs=1e-5)

    @pytest.mark.parametrize("missing", [*NAMES, NAMES])
    def test_a_file_without_names_has_an_answer_without_names(self, missing, tmp_path):
        lacking = [missing] if isinstance(missing, str) else missing
        nameless = dicom(PIXELS, 12, **WINDOW, **dict.fromkeys(lacking))
        response = post_dicom(client_of(), ("a.dcm", nameless))
        assert response.status_code == 200
        for name, content in unzipped(response).items():
            found = dcmread(io.BytesIO(content))
            assert [str(found.get(keyword)) for keyword in lacking] == [""] * len(lacking)
            assert [one for one in complaints(content, tmp_path / name) if "to build DICOMDIR" not in one] == []

    def test_an_image_of_an_unknown_class_is_refused_with_its_class(self):
        problem = problem_of(post_dicom(client_of(), ("a.dcm", dicom(PIXELS, 12, SOPClassUID="1.2.840.9", **WINDOW))))
        assert (problem["status"], problem["type"]) == (422, "urn:mura-ray:problem:unidentified-study")
        assert "(0008,0016) SOPClassUID is '1.2.840.9', no class of images in DICOM today: export" in problem["detail"]

    @pytest.mark.parametrize("error", [AttributeError, KeyError, RuntimeError, ValueError])
    def test_whatever_else_highdicom_raises_is_the_files_fault_and_quotes_no_name(self, error, monkeypatch, caplog):
        def fail(*_: object, **__: object) -> None:
            raise error("MILLER^ANNA")

        caplog.set_level(0)
        monkeypatch.setattr(dicom_out.sr, "ComprehensiveSR", fail)
        response = post_dicom(client_of(), ("a.dcm", PLAIN))
        assert problem_of(response)["status"] == 422
        assert error.__name__ in response.text
        assert "MILLER" not in response.text + caplog.text

    def test_captures_keep_every_pixel_spacing(self, tmp_path):
        spacings = {"PixelSpacing": None, "ImagerPixelSpacing": [0.3, 0.4], "NominalScannedPixelSpacing": [0.1, 0.2]}
        response = post_dicom(client_of(), ("a.dcm", dicom(PIXELS, 12, **WINDOW, **spacings)), ("b.dcm", OTHER))
        captures = [unzipped(response)[f"overlay-{number}.dcm"] for number in (1, 2)]
        detector, plain = (dcmread(io.BytesIO(content)) for content in captures)
        told = complaints(captures[0], tmp_path / "capture.dcm")
        assert all("Imager Pixel Spacing" in one or "Standard Extended SOP Class" in one for one in told), told
        assert [detector.get(keyword) for keyword in spacings] == [None, [0.3, 0.4], [0.1, 0.2]]
        assert [plain.get(keyword) for keyword in spacings] == [[0.2, 0.1], None, None]

    def test_other_files_are_refused(self):
        problem = problem_of(post_dicom(client_of(), ("a.dcm", PLAIN), ("b.png", LEFT)))
        assert (problem["status"], problem["view"]) == (422, "b.png")

    def test_a_view_that_is_no_ones_is_refused(self):
        nameless = dicom(PIXELS, 12, SeriesInstanceUID=None, **WINDOW)
        problem = problem_of(post_dicom(client_of(), ("a.dcm", nameless)))
        assert problem["status"] == 422
        assert "SeriesInstanceUID is missing" in problem["detail"]

    def test_requests_are_limited_as_those_for_json(self):
        response = client_of().post(PREDICT_DICOM_PATH, content=PLAIN, headers={"content-type": "application/dicom"})
        assert problem_of(response)["status"] == 415

    @pytest.mark.parametrize("name", ["M\\N", "no caret", "=", "^" * 80])
    def test_odd_names_are_neither_told_nor_fatal(self, name: str, recwarn: pytest.WarningsRecorder, caplog):
        caplog.set_level(0)
        content = PLAIN.replace(b"MILLER^ANNA ", name.encode().ljust(12)[:12])
        response = post_dicom(client_of(), ("a.dcm", content))
        assert response.status_code in (200, 422)
        assert not list(recwarn)
        assert name not in caplog.text


def read_gray_of(pixels: np.ndarray) -> np.ndarray:
    file = io.BytesIO()
    file.write(run_tool("dcm2pnm", "+on", "+Wi", "1", content=dicom(pixels, 12, **WINDOW), suffix=".png"))
    return read_gray(file.getvalue())


def run_report(content: bytes) -> list[str]:
    """The report as dcmtk shows it."""
    return (
        subprocess.run(["dsrdump", "+Pl", "-"], input=content, capture_output=True, check=True)
        .stdout.decode()
        .splitlines()
    )


def test_zlib_errors_of_a_zip_are_problems():
    content = bytearray(zipped(("a.dcm", PLAIN)))
    content[60:90] = bytes(30)
    with pytest.raises(zlib.error):
        zipfile.ZipFile(io.BytesIO(bytes(content))).read("a.dcm")
    assert problem_of(post(client_of(), ("study.zip", bytes(content))))["status"] == 422
