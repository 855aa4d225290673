import io
import subprocess
import sys
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.special import expit, logit

from mura_ray import predict
from mura_ray.images import read_gray
from mura_ray.model.ensemble import Ensemble, calibrate_ensemble
from mura_ray.platt import Calibration, FittedOn, Scaling
from mura_ray.render.overlay import overlay
from tests.unit.dicom_files import STUDY_UID, dicom, phantom
from tests.unit.tiny_ensemble import write_tiny_ensemble


@pytest.fixture(scope="module")
def ensemble(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_tiny_ensemble(tmp_path_factory.mktemp("run"))


def image_bytes(width: int, height: int, form: str = "PNG", seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format=form)
    return file.getvalue()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Two studies in MURA's layout, and what lies about in real folders."""
    files = {
        "XR_HAND/patient1/study1_positive/image1.png": image_bytes(40, 50),
        "XR_HAND/patient1/study1_positive/image3.JPG": image_bytes(33, 20, "JPEG", seed=1),
        "elsewhere/ünïcode study/view.jpeg": image_bytes(64, 64, "JPEG", seed=2),
        "XR_HAND/patient1/study1_positive/._image1.png": b"macOS",
        "XR_HAND/patient1/readme.txt": b"notes",
        ".thumbnails/image.png": image_bytes(9, 9),
    }
    for name, content in files.items():
        path = tmp_path / "source" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path / "source"


def run(ensemble: str, source: Path, out: Path, *more: str) -> int:
    return predict.main(["--ensemble", ensemble, "--source", str(source), "--out", str(out), *more])


def files_of(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_tables_and_overlays(ensemble: str, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "new" / "out"
    assert run(ensemble, source, out) == 0
    assert files_of(out) == {
        "studies.csv", "views.csv", "overlays/elsewhere/ünïcode study/view.png",
        "overlays/XR_HAND/patient1/study1_positive/image1.png", "overlays/XR_HAND/patient1/study1_positive/image3.png",
    }  # fmt: skip
    studies = pd.read_csv(out / "studies.csv", keep_default_na=False)
    views = pd.read_csv(out / "views.csv", keep_default_na=False)
    assert studies["study"].tolist() == ["XR_HAND/patient1/study1_positive", "elsewhere/ünïcode study"]
    assert studies["study_type"].tolist() == ["hand", ""]
    assert studies["num_views"].tolist() == [2, 1]
    assert views[["view", "width", "height"]].to_numpy().tolist() == [
        ["image1.png", 40, 50], ["image3.JPG", 33, 20], ["view.jpeg", 64, 64]
    ]  # fmt: skip
    captured = capsys.readouterr()
    assert "2 studies, 3 views" in captured.out
    assert "note: skipped files that are not DICOM, PNG or JPEG: 1 .txt, 1 hidden" in captured.err


def test_says_what_the_ensemble_says(ensemble: str, source: Path, tmp_path: Path):
    assert run(ensemble, source, tmp_path / "out") == 0
    study = "XR_HAND/patient1/study1_positive"
    grays = [read_gray((source / study / name).read_bytes()) for name in ("image1.png", "image3.JPG")]
    expected = Ensemble.load(ensemble).predict_study(grays)
    studies = pd.read_csv(tmp_path / "out" / "studies.csv").to_dict("records")
    (row,) = [row for row in studies if row["study"] == study]
    assert row["probability"] == pytest.approx(expected.probability)
    assert row["abnormal"] == int(expected.abnormal)
    assert row["threshold"] == 0.5
    assert [row["member_0"], row["member_1"]] == pytest.approx([m.probability for m in expected.members])
    views = pd.read_csv(tmp_path / "out" / "views.csv").set_index("study").loc[study]
    assert views["probability"].tolist() == pytest.approx([view.probability for view in expected.views])
    assert views["cam_max"].tolist() == pytest.approx([float(view.cam.max()) for view in expected.views])
    for path, gray, view in zip(views["overlay"], grays, expected.views, strict=True):
        with Image.open(tmp_path / "out" / path) as image:
            assert np.array_equal(np.asarray(image), overlay(gray, view.cam))


def test_a_calibrated_ensemble_says_its_calibrated_probability_too(ensemble: str, source: Path, tmp_path: Path):
    scaling = Scaling(slope=2, intercept=0, num_normal=20, num_abnormal=20)
    calibration = Calibration(pooled=scaling, by_type={"hand": scaling.model_copy(update={"intercept": -3.0})})
    fitted_on = FittedOn(data_id="0", split="valid", num_studies=40)
    calibrate_ensemble(ensemble, str(tmp_path / "calibrated"), calibration, fitted_on)
    for uri, out in ((ensemble, "plain"), (str(tmp_path / "calibrated"), "out")):
        assert run(uri, source, tmp_path / out, "--no-overlays") == 0
    plain, found = (pd.read_csv(tmp_path / out / "studies.csv") for out in ("plain", "out"))
    pd.testing.assert_frame_equal(found.drop(columns="calibrated_probability"), plain)
    assert found["study"].str.startswith("XR_HAND").tolist() == [True, False]
    expected = expit(2 * logit(found["probability"]) - [3, 0])
    assert found["calibrated_probability"].tolist() == pytest.approx(expected.tolist())


def test_tables_only(ensemble: str, source: Path, tmp_path: Path):
    assert run(ensemble, source, tmp_path / "out", "--no-overlays") == 0
    assert files_of(tmp_path / "out") == {"studies.csv", "views.csv"}


def test_damaged_images_are_all_told_and_nothing_is_written(
    ensemble: str, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    truncated = image_bytes(300, 300, "JPEG")[:4000]
    (source / "XR_HAND/patient1/study1_positive/image4.jpg").write_bytes(truncated)
    (source / "elsewhere/ünïcode study/empty.png").write_bytes(b"")
    (source / "elsewhere/ünïcode study/gone.png").symlink_to(tmp_path / "nowhere.png")
    assert run(ensemble, source, tmp_path / "out") == 1
    error = capsys.readouterr().err
    assert "error: 3 damaged images; --allow-damaged leaves them out" in error
    for name in ("study1_positive/image4.jpg: ", "empty.png: ", "gone.png: "):
        assert name in error
    assert [path.name for path in tmp_path.iterdir()] == ["source"]

    (source / "only damaged").mkdir()
    (source / "only damaged" / "a.png").write_bytes(b"no image")
    assert run(ensemble, source, tmp_path / "out", "--allow-damaged") == 0
    damaged = pd.read_csv(tmp_path / "out" / "damaged.csv")
    assert sorted(damaged["view"].str.rsplit("/", n=1).str[-1]) == ["a.png", "empty.png", "gone.png", "image4.jpg"]
    assert damaged["reason"].str.len().gt(10).all()
    assert pd.read_csv(tmp_path / "out" / "studies.csv")["num_views"].tolist() == [2, 1]


def test_nothing_sound(ensemble: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "source").mkdir()
    assert run(ensemble, tmp_path / "source", tmp_path / "out") == 1
    assert "holds no DICOM, PNG or JPEG files" in capsys.readouterr().err
    (tmp_path / "source" / "a.png").write_bytes(b"")
    assert run(ensemble, tmp_path / "source", tmp_path / "out", "--allow-damaged") == 1
    assert "no sound image" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_existing_out_is_left_alone(ensemble: str, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    assert run(ensemble, source, tmp_path / "out") == 1
    assert "exists already: name a new folder" in capsys.readouterr().err
    assert files_of(tmp_path / "out") == {"mine.txt"}


def test_nothing_half_written_stays(
    ensemble: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def disk_full(*_: object) -> bytes:
        raise OSError("no space left on device")

    monkeypatch.setattr(predict, "encode_png", disk_full)
    assert run(ensemble, source, tmp_path / "out") == 1
    assert "no space left on device" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_the_output_does_not_become_studies(ensemble: str, source: Path, capsys: pytest.CaptureFixture[str]):
    assert run(ensemble, source, source / "out") == 1
    assert "lies in --source" in capsys.readouterr().err
    assert not (source / "out").exists()


@pytest.mark.parametrize(
    ("ensemble_uri", "source_name", "expected"),
    [(None, "nowhere", "nowhere is no folder"), ("nowhere", "source", "no ensemble: nowhere/ensemble.json")],
)
def test_wrong_arguments(
    ensemble: str, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    ensemble_uri: str | None, source_name: str, expected: str,
):  # fmt: skip
    assert run(ensemble_uri or ensemble, source.with_name(source_name), tmp_path / "out") == 1
    assert expected in capsys.readouterr().err


def test_images_directly_in_the_source_are_one_study(ensemble: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "source").mkdir()
    for index in range(21):
        (tmp_path / "source" / f"{index:02}.png").write_bytes(image_bytes(32, 32, seed=index))
    assert predict.find_studies(str(tmp_path / "source")) == {
        PurePosixPath(): [PurePosixPath(f"{index:02}.png") for index in range(21)]
    }
    assert run(ensemble, tmp_path / "source", tmp_path / "out", "--no-overlays") == 0
    assert "has 21 images and is taken for one study" in capsys.readouterr().err


def test_dicom_files_of_one_folder_are_told_apart_by_study(
    ensemble: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    window = {"WindowCenter": 2048, "WindowWidth": 4096}
    hand = {"StudyInstanceUID": "1.2.3.4", "BodyPartExamined": "HAND", "BurnedInAnnotation": "YES"}
    files = {
        "one.dcm": dicom(phantom(12), 12, **window),
        "IM000002": dicom(phantom(12) // 2, 12, **window),
        "1.2.840.3": dicom(phantom(12), 12, **window, **hand),
        "picture.png": image_bytes(40, 40),
        "README": b"notes",
        "DICOMDIR": dicom(phantom(8)),
    }
    (tmp_path / "source").mkdir()
    for name, content in files.items():
        (tmp_path / "source" / name).write_bytes(content)
    assert run(ensemble, tmp_path / "source", tmp_path / "out") == 0
    studies = pd.read_csv(tmp_path / "out" / "studies.csv", dtype=str, keep_default_na=False)
    assert studies[["study", "study_type", "num_views"]].to_numpy().tolist() == [
        ["1.2.3.4", "hand", "1"], [STUDY_UID, "wrist", "2"], [".", "", "1"]
    ]  # fmt: skip
    captured = capsys.readouterr()
    assert "skipped files that are not DICOM, PNG or JPEG: 1 DICOMDIR, 1 README" in captured.err
    assert "note: 1.2.840.3: (0028,0301) BurnedInAnnotation is YES" in captured.err
    assert "MILLER" not in captured.err + captured.out
    assert (tmp_path / "out" / "overlays" / STUDY_UID / "one.png").is_file()


def test_series_of_one_study_in_folders_of_their_own_are_its_views(
    ensemble: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    window = {"WindowCenter": 2048, "WindowWidth": 4096}
    for series, darker in (("SE1", 1), ("SE2", 2)):
        (tmp_path / "source" / "ST1" / series).mkdir(parents=True)
        (tmp_path / "source" / "ST1" / series / "IM1").write_bytes(dicom(phantom(12) // darker, 12, **window))
    assert run(ensemble, tmp_path / "source", tmp_path / "out") == 0
    studies = pd.read_csv(tmp_path / "out" / "studies.csv", dtype=str)
    assert studies[["study", "num_views"]].to_numpy().tolist() == [[f"ST1/{STUDY_UID}", "2"]]
    views = pd.read_csv(tmp_path / "out" / "views.csv", dtype=str)
    assert views["view"].tolist() == ["SE1/IM1", "SE2/IM1"]
    assert all((tmp_path / "out" / overlay).is_file() for overlay in views["overlay"])
    assert f"study {STUDY_UID} lies in 2 folders, such as ST1/SE1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("path", "study_type"),
    [
        ("MURA-v1.1/valid/XR_WRIST/patient1/study1", "wrist"),
        ("xr_hand/p", "hand"),
        ("XR_HAND/old/XR_ELBOW", "elbow"),
        ("XR_SKULL/p", ""),
        ("XR_HANDS", ""),
        ("hand", ""),
    ],
)
def test_study_type_of_a_path(path: str, study_type: str):
    assert predict.study_type_of(PurePosixPath(path)) == study_type


def test_study_type_from_above_the_source(ensemble: str, source: Path, tmp_path: Path):
    assert run(ensemble, source / "XR_HAND" / "patient1", tmp_path / "out", "--no-overlays") == 0
    assert pd.read_csv(tmp_path / "out" / "studies.csv")["study_type"].tolist() == ["hand"]


@pytest.mark.parametrize(
    ("views", "names"),
    [
        (["a.png", "b.JPG"], ["a.png", "b.png"]),
        (["a.png", "a.jpg"], ["a.png.png", "a.jpg.png"]),
        (["A.jpg", "a.png", "b.png"], ["A.jpg.png", "a.png.png", "b.png.png"]),
        (["v1.0.png"], ["v1.0.png"]),
        (["one/IM1", "two/IM1"], ["one/IM1.png", "two/IM1.png"]),
    ],
)
def test_overlays_never_overwrite_each_other(views: list[str], names: list[str]):
    assert predict.overlay_names([PurePosixPath(view) for view in views]) == names


def test_needs_no_ray():
    code = "import sys, mura_ray.predict; sys.exit(any(m == 'ray' or m.startswith('ray.') for m in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
